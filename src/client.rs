//! I/O. Clients of the Kubernetes API, with the settings that the defaults get wrong for us.
//!
//! kube retries 429, 503 and 504 up to fifteen times by default, POST and DELETE among them, so that a write can land
//! minutes after it was decided on; and it waits for an answer without end. Here nothing is retried below the loop that
//! decides, and whatever is not a watch is given up after [`REQUEST_TIMEOUT`].

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// How long an answer may take, watches apart.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the API server is and who we are: the file, else `KUBECONFIG`, else the Pod's ServiceAccount.
pub async fn config(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("--kubeconfig {}: not a readable kubeconfig", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("--kubeconfig {}: its current context is not usable", path.display()))?
        }
        None => Config::infer()
            .await
            .context("no way to the Kubernetes API: give --kubeconfig or KUBECONFIG, or run in a Pod")?,
    };
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Ok(config)
}

/// A client for watches: an answer may go on for ever. Whoever uses it notices a dead connection by itself.
pub fn watching(config: &Config) -> anyhow::Result<Client> {
    Ok(Client::try_from(config.clone())?)
}

/// A client for everything else.
pub fn requesting(config: &Config) -> anyhow::Result<Client> {
    let mut config = config.clone();
    config.read_timeout = Some(REQUEST_TIMEOUT);
    config.write_timeout = Some(REQUEST_TIMEOUT);
    // Otherwise the time that a pooled connection lay idle counts against the next answer.
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}
