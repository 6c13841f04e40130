//! I/O. The controller: woken by name, it observes, plans in [`keywright_core::lifecycle`], writes at most once, and observes
//! again until nothing is left to write; the status comes last, and only if it changed.
//!
//! Level-triggered: watches say which ApiKey to look at and never why, and nothing is decided from what they say.

mod apply;
mod cluster;
mod election;
mod error;
mod events;
mod fairness;
mod follow;
mod gauges;
mod heads;
mod index;
mod known;
mod memory;
mod observe;
mod obstacle;
mod options;
mod readiness;
mod reconcile;
mod sweep;
mod verifiers;
mod watches;

use std::pin::pin;
use std::sync::Arc;

use futures::future;
use kube::Config;
use prometheus_client::registry::Registry;
use tracing::info;

use self::error::Error;
use self::gauges::{ApiKeyGauges, VerifierGauges};
use self::known::Known;
use self::memory::Memory;
pub use self::options::Options;
use self::readiness::Readiness;
use self::verifiers::Verifiers;
use self::watches::work;
use crate::client;
use crate::serve::admin;
use crate::serve::listen::bind;
use crate::serve::room::ConnectionMetrics;
use crate::telemetry::ControllerMetrics;

/// Works until `shutdown`.
///
/// # Errors
/// If the address cannot be listened on, or the lead is lost: then this process must end, and whoever restarts it gives
/// it a new identity.
pub async fn run(config: &Config, options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let listener = bind(options.admin_address, "--admin-address").await?;
    info!(admin_address = %listener.local_addr()?, "listening");
    let mut registry = Registry::with_prefix("keywright");
    let metrics = ControllerMetrics::new(&mut registry, &Error::KINDS);
    let memory = Arc::new(Memory::default());
    registry.register_collector(Box::new(ApiKeyGauges(memory.clone())));
    let verifiers = Arc::new(Verifiers::new(metrics.fence_waits.clone()));
    registry.register_collector(Box::new(VerifierGauges(verifiers.clone())));
    let known = Known { memory, verifiers };
    let readiness = Readiness::default();
    let checked = readiness.clone();
    let occupancy = ConnectionMetrics::new(&mut registry).of("admin");
    let admin = admin::serve(listener, move || checked.check(), Arc::new(registry), occupancy, future::pending());
    tokio::select! {
        done = elect(config, options, metrics, known, readiness, shutdown) => done,
        () = admin => anyhow::bail!("the listener for probes stopped unexpectedly"),
    }
}

/// Works only while leading, where that is asked for.
async fn elect(
    config: &Config,
    options: Options,
    metrics: ControllerMetrics,
    known: Known,
    readiness: Readiness,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (requests, watches) = (client::requesting(config)?, client::watching(config)?);
    let shutdown = pin!(shutdown);
    if !options.leader_elect {
        work(requests, watches, &options, metrics, known, readiness, shutdown).await;
        return Ok(());
    }
    let mut candidate = election::Candidate::new(requests.clone(), &options.system_namespace, options.identity.clone());
    // A standby does its work by standing by.
    readiness.set(true);
    let shutdown = match future::select(pin!(candidate.lead()), shutdown).await {
        future::Either::Left(((), shutdown)) => shutdown,
        future::Either::Right(_) => return Ok(()),
    };
    info!(identity = options.identity, "leading");
    readiness.set(false);
    let lost = {
        let work = pin!(work(requests, watches, &options, metrics, known, readiness, shutdown));
        matches!(future::select(pin!(candidate.keep()), work).await, future::Either::Left(_))
    };
    anyhow::ensure!(
        !lost,
        "lost the Lease: another controller leads, or the API server did not answer in time; this one exits and restarts"
    );
    candidate.release().await;
    Ok(())
}
