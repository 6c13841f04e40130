//! I/O. Clients of the Kubernetes API, with other settings than kube's defaults.
//!
//! By default kube retries 429, 503 and 504 up to fifteen times, even POST and DELETE. A write can then happen minutes after
//! it was decided. It also waits for an answer for ever. Here only the deciding loop retries, and every request except a
//! watch ends after [`REQUEST_TIMEOUT`].

use std::env;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kube::config::{ExecAuthCluster, Kubeconfig};
use kube::{Client, Config};

use keywright_core::proxy;

/// How long an answer may take. Watches have no limit here.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The configuration of the client: from the file, or else `KUBECONFIG`, or else the Pod's ServiceAccount. A proxy comes from
/// the file or the environment.
pub async fn config(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("--kubeconfig {}: cannot read this kubeconfig", path.display()))?;
            of_current_context(file)
                .with_context(|| format!("--kubeconfig {}: cannot use its current context", path.display()))?
        }
        None => match Kubeconfig::read().map_err(anyhow::Error::from).and_then(of_current_context) {
            Ok(config) => config,
            Err(_) => Config::incluster()
                .context("no configuration for the Kubernetes API: set --kubeconfig or KUBECONFIG, or run in a Pod")?,
        },
    };
    if config.proxy_url.is_none() {
        config.proxy_url = proxy::proxy_for(&config.cluster_url, |name| env::var(name).ok())?;
    }
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Ok(config)
}

/// Reads a kubeconfig like kube, except for proxies. Kube takes a proxy from the environment by itself, compares `NO_PROXY`
/// with the proxy's own name, and fails on entries that it does not know.
fn of_current_context(file: Kubeconfig) -> anyhow::Result<Config> {
    let name = file.current_context.context("there is no current-context")?;
    let context = file.contexts.into_iter().find(|named| named.name == name).and_then(|named| named.context);
    let context = context.with_context(|| format!("there is no context {name}"))?;
    let cluster = file.clusters.into_iter().find(|named| named.name == context.cluster);
    let cluster = cluster.and_then(|named| named.cluster);
    let cluster = cluster.with_context(|| format!("there is no cluster {}", context.cluster))?;
    let user = file.auth_infos.into_iter().find(|named| Some(&named.name) == context.user.as_ref());

    let described = ExecAuthCluster::try_from(&cluster)?;
    let mut config = Config::new(cluster.server.context("its cluster has no server")?.parse()?);
    if let Some(bundle) = &described.certificate_authority_data {
        let certificates = pem::parse_many(bundle)?.into_iter().filter(|block| block.tag() == "CERTIFICATE");
        config.root_cert = Some(certificates.map(pem::Pem::into_contents).collect());
    }
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or_default();
    config.disable_compression = cluster.disable_compression.unwrap_or_default();
    config.tls_server_name = cluster.tls_server_name;
    config.default_namespace = context.namespace.unwrap_or(config.default_namespace);
    let proxy_url = cluster.proxy_url.filter(|url| !url.is_empty());
    config.proxy_url = proxy_url.map(|url| proxy::proxy(&url, "proxy-url")).transpose()?;
    config.auth_info = user.and_then(|named| named.auth_info).unwrap_or_default();
    if let Some(exec) = config.auth_info.exec.as_mut().filter(|exec| exec.provide_cluster_info) {
        exec.cluster = Some(described);
    }
    Ok(config)
}

/// A client for watches: answers have no time limit. The caller must detect dead connections.
pub fn watching(config: &Config) -> anyhow::Result<Client> {
    Ok(Client::try_from(config.clone())?)
}

/// A client for everything else.
pub fn requesting(config: &Config) -> anyhow::Result<Client> {
    let mut config = config.clone();
    config.read_timeout = Some(REQUEST_TIMEOUT);
    config.write_timeout = Some(REQUEST_TIMEOUT);
    // Otherwise the idle time of a pooled connection counts against the next answer.
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}

#[cfg(test)]
mod tests {
    use kube::config::KubeConfigOptions;
    use rcgen::generate_simple_self_signed;

    use super::*;

    #[tokio::test]
    async fn a_kubeconfig_is_read_as_kube_reads_it() {
        let certificate = generate_simple_self_signed(["k8s".to_owned()]).unwrap().cert;
        let pem = pem::encode(&pem::Pem::new("CERTIFICATE", certificate.der().to_vec()));
        let bundle = serde_json::to_value(k8s_openapi::ByteString(pem.into_bytes())).unwrap();
        let file = |context: serde_json::Value, cluster: serde_json::Value| -> Kubeconfig {
            serde_json::from_value(serde_json::json!({
                "current-context": "one",
                "contexts": [{"name": "other", "context": {"cluster": "other"}}, {"name": "one", "context": context}],
                "clusters": [{"name": "one", "cluster": cluster}],
                "users": [
                    {"name": "token", "user": {"token": "secret"}},
                    {"name": "exec", "user": {"exec": {
                        "apiVersion": "client.authentication.k8s.io/v1", "command": "true", "provideClusterInfo": true,
                        "interactiveMode": "Never",
                    }}},
                ],
            }))
            .unwrap()
        };
        let server = serde_json::json!({"server": "https://k8s:6443"});
        let everything = serde_json::json!({
            "server": "https://[::1]:6443", "certificate-authority-data": bundle, "tls-server-name": "k8s",
            "disable-compression": true, "insecure-skip-tls-verify": true, "proxy-url": "http://proxy:3128",
        });
        for cluster in [server.clone(), everything] {
            for user in ["token", "exec", "absent"] {
                let context = serde_json::json!({"cluster": "one", "user": user, "namespace": "system"});
                let own = of_current_context(file(context.clone(), cluster.clone())).unwrap();
                let options = KubeConfigOptions::default();
                let mut kubes = Config::from_custom_kubeconfig(file(context, cluster.clone()), &options).await.unwrap();
                assert_eq!(own.proxy_url.is_some(), cluster["proxy-url"].is_string());
                kubes.proxy_url.clone_from(&own.proxy_url);
                let plugin = |config: &Config| serde_json::to_value(&config.auth_info.exec).unwrap();
                assert_eq!(plugin(&own), plugin(&kubes), "{cluster} {user}");
                assert_eq!(format!("{own:?}"), format!("{kubes:?}"), "{cluster} {user}");
            }
        }
        for (context, cluster, said) in [
            (serde_json::json!({"cluster": "two"}), server.clone(), "there is no cluster two"),
            (serde_json::json!({"cluster": "one"}), serde_json::json!({}), "its cluster has no server"),
            (
                serde_json::json!({"cluster": "one"}),
                serde_json::json!({"server": "https://k8s", "proxy-url": "socks5://eve:secret@proxy"}),
                "proxy-url: not the URL of an HTTP proxy; write http://HOST:PORT or https://HOST:PORT",
            ),
        ] {
            assert_eq!(of_current_context(file(context, cluster)).unwrap_err().to_string(), said);
        }
    }
}
