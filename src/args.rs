//! The command line. Flags are read into types here, so that an unusable value is refused with what would be good, and
//! turned into each role's options; each has a twin in the environment.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;
use rand::RngExt;
use rustls::pki_types::ServerName;

use crate::serve::listen::Address;
use crate::serve::places::Share;
use crate::serve::tls::files::PemFiles;
use crate::telemetry::LogFormat;
use crate::{authority, certificates, controller, telemetry, verifier, webhook};
use keywright_core::address::client::ClientAddressSource;
use keywright_core::{duration, usage};

/// Issues, delivers, verifies, expires and revokes API keys on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "keywright", version, about)]
pub struct Arguments {
    /// What to run.
    #[command(subcommand)]
    pub role: Role,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Makes what ApiKeys declare true: issues, delivers, expires and revokes keys.
    Controller(ControllerArguments),
    /// Tells proxies whether a request may enter.
    Verifier(VerifierArguments),
    /// Answers the API server's questions whether an ApiKey may be created or edited.
    Webhook(WebhookArguments),
    /// Looks after the webhook's certificate authority, once. Repeatable; changes nothing where nothing is wrong.
    Certificates(CertificatesArguments),
    /// Prints the CustomResourceDefinitions as YAML, or writes them to a folder.
    Crds(CrdsArguments),
}

/// What everything needs that talks to Kubernetes.
#[derive(Debug, Args)]
pub struct ProgramArguments {
    /// The kubeconfig file; else KUBECONFIG, else the Pod's ServiceAccount. An HTTP proxy on the way there is taken from the
    /// file's proxy-url, else from HTTPS_PROXY, HTTP_PROXY or ALL_PROXY where NO_PROXY does not name the API server.
    #[arg(long, env = "KEYWRIGHT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The system namespace, where records and leases are.
    #[arg(long, env = "KEYWRIGHT_NAMESPACE", default_value = "keywright-system")]
    pub namespace: String,

    /// How log lines look.
    #[arg(long, env = "KEYWRIGHT_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,

    /// What is logged, in the syntax of tracing: info, or keywright=debug,warn.
    #[arg(long, env = "KEYWRIGHT_LOG_FILTER", default_value = "info", value_parser = log_filter)]
    pub log_filter: String,
}

/// What every server needs.
#[derive(Debug, Args)]
pub struct ServerArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub program: ProgramArguments,

    /// Where /healthz, /readyz and /metrics answer. Absent: at port 9090 of all
    /// addresses, `[::]:9090`, or `0.0.0.0:9090` where there is no IPv6.
    #[arg(long, env = "KEYWRIGHT_ADMIN_ADDRESS", value_name = "ADDRESS:PORT")]
    pub admin_address: Option<SocketAddr>,
}

/// Flags of `keywright controller`.
#[derive(Debug, Args)]
pub struct ControllerArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub server: ServerArguments,

    /// Work only while holding the lease keywright-controller; a standby is Ready.
    #[arg(
        long, env = "KEYWRIGHT_LEADER_ELECT", value_name = "true|false", default_value_t = true,
        default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set
    )]
    pub leader_elect: bool,

    /// How long the record of a revoked key stays.
    #[arg(long, env = "KEYWRIGHT_TOMBSTONE_RETENTION", default_value = "90d", value_name = "DURATION", value_parser = any_duration)]
    pub tombstone_retention: SignedDuration,

    /// How many such records of generated keys each namespace's ApiKeys leave behind: beyond that the oldest go early, once
    /// they are an hour old. Those of submitted digests stay.
    #[arg(long, env = "KEYWRIGHT_TOMBSTONES_PER_NAMESPACE", default_value_t = 2000, value_name = "RECORDS")]
    pub tombstones_per_namespace: u32,

    /// How many ApiKeys are worked on at a time.
    #[arg(long, env = "KEYWRIGHT_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,

    /// At the latest after this time every ApiKey is looked at again; longer where that would cost 50 reads a second.
    #[arg(long, env = "KEYWRIGHT_RESYNC", default_value = "10m", value_name = "DURATION", value_parser = positive_duration)]
    pub resync: Duration,

    /// Look after the ApiKeys of this namespace only. Absent: of all.
    #[arg(long, env = "KEYWRIGHT_WATCH_NAMESPACE", value_name = "NAMESPACE")]
    pub watch_namespace: Option<String>,
}

/// Flags of `keywright verifier`.
#[derive(Debug, Args)]
pub struct VerifierArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub server: ServerArguments,

    /// Where proxies ask over HTTP: /verify. Absent: at port 8080 of all
    /// addresses, `[::]:8080`, or `0.0.0.0:8080` where there is no IPv6.
    #[arg(long, env = "KEYWRIGHT_HTTP_ADDRESS", value_name = "ADDRESS:PORT")]
    pub http_address: Option<SocketAddr>,

    /// Where Envoys ask over gRPC: envoy.service.auth.v3.Authorization/Check. Absent: at port 9001 of all
    /// addresses, `[::]:9001`, or `0.0.0.0:9001` where there is no IPv6.
    #[arg(long, env = "KEYWRIGHT_GRPC_ADDRESS", value_name = "ADDRESS:PORT")]
    pub grpc_address: Option<SocketAddr>,

    /// Whose address a request over HTTP comes from: peer, xff-hops=N or xff-proxies=CIDR,...
    #[arg(long, env = "KEYWRIGHT_HTTP_CLIENT_IP", default_value = "xff-hops=1", value_name = "SOURCE")]
    pub http_client_ip: ClientAddressSource,

    /// Whose address a request over gRPC comes from: peer (what Envoy says of the connection), xff-hops=N or
    /// xff-proxies=CIDR,...
    #[arg(long, env = "KEYWRIGHT_GRPC_CLIENT_IP", default_value = "peer", value_name = "SOURCE")]
    pub grpc_client_ip: ClientAddressSource,

    /// For how long to answer without hearing from the API server.
    #[arg(long, env = "KEYWRIGHT_LEASE_DURATION", default_value = "10m", value_name = "DURATION", value_parser = positive_duration)]
    pub lease_duration: Duration,

    /// How far the last use of a key may be behind in its record, where the budget allows that.
    #[arg(long, env = "KEYWRIGHT_LAST_USED_GRANULARITY", default_value = "60s", value_name = "DURATION", value_parser = positive_duration)]
    pub last_used_granularity: Duration,

    /// How many last uses all verifiers together write in a second; with more keys in use, the granularity grows. The
    /// same for all of them. 0: none is ever written.
    #[arg(long, env = "KEYWRIGHT_LAST_USED_WRITE_BUDGET", default_value_t = 20, value_name = "WRITES", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub last_used_write_budget: u32,

    /// How many of the connections that a listener takes one client address may have, an IPv6 network of 64 bits as one
    /// address: raise it where all proxies come from one.
    #[arg(long, env = "KEYWRIGHT_CONNECTIONS_PER_CLIENT", default_value_t = Share::DEFAULT, value_name = "PERCENT")]
    pub connections_per_client: Share,

    /// Serve TLS with the certificate in this PEM file, read again when it changes, instead of plain text.
    #[arg(long, env = "KEYWRIGHT_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,

    /// Its private key, a PEM file.
    #[arg(long, env = "KEYWRIGHT_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,

    /// Certificates of authorities, a PEM file, read again when it changes: let in clients only with a certificate by one
    /// of them.
    #[arg(long, env = "KEYWRIGHT_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_ca: Option<PathBuf>,

    /// Refuse connections in plain text. false: answer them as well, while proxies are switched to TLS or back.
    #[arg(
        long, env = "KEYWRIGHT_TLS_REQUIRED", value_name = "true|false", default_value_t = true, requires = "tls_certificate",
        default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set
    )]
    pub tls_required: bool,
}

/// Flags of `keywright webhook`.
#[derive(Debug, Args)]
pub struct WebhookArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub server: ServerArguments,

    /// Where the API server asks: /mutate and /validate. Absent: at port 9443 of all
    /// addresses, `[::]:9443`, or `0.0.0.0:9443` where there is no IPv6.
    #[arg(long, env = "KEYWRIGHT_HTTPS_ADDRESS", value_name = "ADDRESS:PORT")]
    pub https_address: Option<SocketAddr>,

    /// A name or address by which the API server calls. Repeatable. Absent: keywright-webhook.NAMESPACE.svc
    #[arg(long, env = "KEYWRIGHT_SERVER_NAME", value_name = "NAME", value_delimiter = ',', value_parser = server_name)]
    pub server_name: Vec<String>,

    /// How many of the connections that a listener takes one client address may have, an IPv6 network of 64 bits as one
    /// address: raise it where all API servers come from one.
    #[arg(long, env = "KEYWRIGHT_CONNECTIONS_PER_CLIENT", default_value_t = Share::DEFAULT, value_name = "PERCENT")]
    pub connections_per_client: Share,

    /// Serve the certificate in this PEM file, read again when it changes, instead of making one.
    #[arg(long, env = "KEYWRIGHT_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,

    /// Its private key, a PEM file.
    #[arg(long, env = "KEYWRIGHT_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,

    /// How long each certificate that is made here lasts; it is replaced after two thirds of that.
    #[arg(long, env = "KEYWRIGHT_CERTIFICATE_LIFETIME", default_value_t = Shown(authority::CERTIFICATE_LIFETIME), value_name = "DURATION", value_parser = shown_duration)]
    pub certificate_lifetime: Shown,

    /// How often to look at where certificates come from: the authority's Secret, or the files.
    #[arg(long, env = "KEYWRIGHT_CERTIFICATE_POLL", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    pub certificate_poll: Duration,
}

/// Flags of `keywright certificates`.
#[derive(Debug, Args)]
pub struct CertificatesArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub program: ProgramArguments,

    /// The name of a MutatingWebhookConfiguration and a ValidatingWebhookConfiguration that are to trust the authority.
    /// Repeatable. Empty: none, only the Secret is looked after.
    #[arg(
        long,
        env = "KEYWRIGHT_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "keywright"
    )]
    pub webhook_configuration: Vec<String>,

    /// Replace the authority although it is good. The one before stays trusted until the next time.
    #[arg(long, env = "KEYWRIGHT_ROTATE")]
    pub rotate: bool,

    /// How long a new authority lasts; a run in the last third of that replaces it.
    #[arg(long, env = "KEYWRIGHT_AUTHORITY_LIFETIME", default_value_t = Shown(authority::LIFETIME), value_name = "DURATION", value_parser = shown_duration)]
    pub authority_lifetime: Shown,
}

/// Flags of `keywright crds`.
#[derive(Debug, Args)]
pub struct CrdsArguments {
    /// Write one file a definition into this folder, instead of all to standard output.
    #[arg(long, env = "KEYWRIGHT_OUTPUT_DIRECTORY", value_name = "FOLDER")]
    pub output_directory: Option<PathBuf>,
}

impl ServerArguments {
    fn admin_address(&self) -> Address {
        Address::or_all(self.admin_address, 9090)
    }
}

impl ControllerArguments {
    /// The role's options; `hostname` tells replicas apart.
    pub fn options(&self, hostname: &str) -> controller::Options {
        let life: u64 = rand::rng().random();
        controller::Options {
            system_namespace: self.server.program.namespace.clone(),
            watched_namespace: self.watch_namespace.clone(),
            admin_address: self.server.admin_address(),
            identity: format!("{hostname}_{life:016x}"),
            leader_elect: self.leader_elect,
            tombstone_retention: self.tombstone_retention,
            tombstones_per_namespace: self.tombstones_per_namespace,
            concurrency: self.concurrency,
            resync: self.resync,
        }
    }
}

impl VerifierArguments {
    /// The role's options.
    pub fn options(&self) -> verifier::Options {
        verifier::Options {
            namespace: self.server.program.namespace.clone(),
            http_address: Address::or_all(self.http_address, 8080),
            grpc_address: Address::or_all(self.grpc_address, 9001),
            admin_address: self.server.admin_address(),
            http_client_address_source: self.http_client_ip.clone(),
            grpc_client_address_source: self.grpc_client_ip.clone(),
            lease_duration: self.lease_duration,
            connections_per_client: self.connections_per_client,
            last_used: usage::Policy {
                granularity: self.last_used_granularity,
                budget: usage::Budget { writes_per_second: self.last_used_write_budget },
            },
            tls: pem_files(&self.tls_certificate, &self.tls_key, &self.tls_client_ca),
            tls_required: self.tls_required,
        }
    }
}

impl WebhookArguments {
    /// Where the certificate comes from, if it is not made here.
    pub fn pem_files(&self) -> Option<PemFiles> {
        pem_files(&self.tls_certificate, &self.tls_key, &None)
    }

    /// The role's options.
    pub fn options(&self) -> webhook::Options {
        let namespace = self.server.program.namespace.clone();
        let server_names = match self.server_name.as_slice() {
            [] => vec![format!("keywright-webhook.{namespace}.svc")],
            names => names.to_vec(),
        };
        webhook::Options {
            namespace,
            https_address: Address::or_all(self.https_address, 9443),
            admin_address: self.server.admin_address(),
            server_names,
            certificate_lifetime: self.certificate_lifetime.0,
            certificate_poll: self.certificate_poll,
            connections_per_client: self.connections_per_client,
        }
    }
}

impl CertificatesArguments {
    /// The role's options.
    pub fn options(&self) -> certificates::Options {
        let named = self.webhook_configuration.iter().filter(|name| !name.is_empty());
        certificates::Options {
            namespace: self.program.namespace.clone(),
            webhook_configurations: named.cloned().collect(),
            rotate: self.rotate,
            authority_lifetime: self.authority_lifetime.0,
        }
    }
}

/// The command line has the first two together or not at all.
fn pem_files(
    certificate: &Option<PathBuf>,
    key: &Option<PathBuf>,
    client_authorities: &Option<PathBuf>,
) -> Option<PemFiles> {
    let (certificate, key) = certificate.clone().zip(key.clone())?;
    Some(PemFiles { certificate, key, client_authorities: client_authorities.clone() })
}

fn any_duration(text: &str) -> Result<SignedDuration, duration::InvalidDuration> {
    duration::parse(text)
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration::parse(text).map_err(|problem| problem.to_string())?;
    Duration::try_from(duration)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "must be at least 1s".to_owned())
}

/// A default that is a constant elsewhere, shown as it is written.
#[derive(Clone, Copy, Debug)]
pub struct Shown(pub SignedDuration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        duration::Display(self.0).fmt(f)
    }
}

fn shown_duration(text: &str) -> Result<Shown, String> {
    positive_duration(text)?;
    Ok(Shown(duration::parse(text).map_err(|problem| problem.to_string())?))
}

/// What a certificate can hold and a client can demand.
fn server_name(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("must be a DNS name or an IP address, such as keywright-webhook.keywright-system.svc".to_owned()),
    }
}

/// Checked here and kept as text, because a filter cannot be cloned.
fn log_filter(text: &str) -> Result<String, String> {
    match telemetry::log_filter(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(problem) => Err(format!("{problem}; info or keywright=debug,warn would be good")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_twin_in_the_environment() {
        for role in Arguments::command().get_subcommands() {
            for flag in role.get_arguments().filter(|flag| flag.get_id() != "help") {
                let expected = format!("KEYWRIGHT_{}", flag.get_id().as_str().to_uppercase());
                assert_eq!(flag.get_env().unwrap().to_str().unwrap(), expected, "{}", role.get_name());
            }
        }
    }

    #[test]
    fn an_unusable_value_is_named_with_what_would_be_good() {
        for (flag, value, good) in [
            ("--resync", "0s", "at least 1s"),
            ("--resync", "10", "10m"),
            ("--tombstone-retention", "forever", "90d"),
            ("--concurrency", "0", "1..=1024"),
            ("--log-filter", "a=b=c", "keywright=debug,warn"),
            ("--admin-address", "9090", "invalid socket address"),
        ] {
            let error = Arguments::try_parse_from(["keywright", "controller", flag, value]).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(flag) && said.contains(value) && said.contains(good), "{said}");
            assert_eq!(error.exit_code(), 2);
        }
        let error = Arguments::try_parse_from(["keywright", "verifier", "--http-client-ip", "xff-hops=0"]).unwrap_err();
        assert!(error.to_string().contains("xff-hops"), "{error}");
    }

    #[test]
    fn a_certificate_comes_with_its_key_and_client_authorities_with_both() {
        let files = [("--tls-certificate", "tls.crt"), ("--tls-key", "tls.key"), ("--tls-client-ca", "ca.crt")];
        for given in 0..8_usize {
            let chosen = files.iter().enumerate().filter(|(index, _)| given & (1 << index) != 0);
            let words = chosen.flat_map(|(_, (flag, file))| [*flag, *file]);
            let parsed = Arguments::try_parse_from(["keywright", "verifier"].into_iter().chain(words));
            assert_eq!(parsed.is_ok(), [0, 3, 7].contains(&given), "{given:03b}");
        }
    }

    #[test]
    fn what_is_not_told_where_to_listen_listens_on_all_addresses() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["keywright"], words].concat()).unwrap().role;
        let Role::Verifier(verifier) = parse(&["verifier", "--grpc-address=[::]:9002"]) else { unreachable!() };
        let options = verifier.options();
        assert_eq!((options.http_address, options.admin_address), (Address::All(8080), Address::All(9090)));
        assert_eq!(options.grpc_address, Address::All(9002));
        let Role::Webhook(webhook) = parse(&["webhook", "--admin-address=0.0.0.0:1"]) else { unreachable!() };
        let options = webhook.options();
        assert_eq!(options.https_address, Address::All(9443));
        assert_eq!(options.admin_address, Address::Given("0.0.0.0:1".parse().unwrap()));
        let Role::Controller(controller) = parse(&["controller"]) else { unreachable!() };
        assert_eq!(controller.options("here").admin_address, Address::All(9090));
    }

    #[test]
    fn whether_tls_is_required_is_a_question_only_where_it_is_served() {
        let files = ["--tls-certificate=tls.crt", "--tls-key=tls.key"];
        for (words, expected) in [
            (vec![], Some(true)),
            (files.to_vec(), Some(true)),
            ([&files[..], &["--tls-required=false"]].concat(), Some(false)),
            (vec!["--tls-required=false"], None),
        ] {
            let parsed = Arguments::try_parse_from(["keywright", "verifier"].into_iter().chain(words.clone()));
            let required = parsed.ok().map(|arguments| match arguments.role {
                Role::Verifier(arguments) => arguments.options().tls_required,
                _ => unreachable!(),
            });
            assert_eq!(required, expected, "{words:?}");
        }
    }

    #[test]
    fn leader_election_is_switched_by_a_value_or_by_none() {
        for (words, expected) in [
            (&["keywright", "controller"][..], true),
            (&["keywright", "controller", "--leader-elect"], true),
            (&["keywright", "controller", "--leader-elect=true"], true),
            (&["keywright", "controller", "--leader-elect=false"], false),
        ] {
            let Role::Controller(arguments) = Arguments::try_parse_from(words).unwrap().role else { unreachable!() };
            assert_eq!(arguments.leader_elect, expected, "{words:?}");
        }
    }
}
