//! Logs and metrics. Neither ever holds a key, and no label holds a name, an owner or an address.

use std::time::Duration;

use clap::ValueEnum;
use jiff::SignedDuration;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error. Fails where something already did.
pub fn start_log(format: LogFormat, filter: EnvFilter) -> anyhow::Result<()> {
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// What the controller counts.
#[derive(Clone)]
pub struct ControllerMetrics {
    passes: Histogram,
    errors: Family<ErrorKind, Counter>,
    issues: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorKind {
    kind: &'static str,
}

impl ControllerMetrics {
    /// Registers them all; `registry` gives the prefix.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            passes: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            errors: Family::default(),
            issues: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
        };
        registry.register_with_unit(
            "reconcile_duration",
            "One pass over one ApiKey",
            Unit::Seconds,
            metrics.passes.clone(),
        );
        registry.register("reconcile_errors", "Passes that failed, by kind of failure", metrics.errors.clone());
        registry.register_with_unit(
            "issue",
            "From an ApiKey's creation to its key in the Secret",
            Unit::Seconds,
            metrics.issues.clone(),
        );
        metrics
    }

    /// One pass, and the kind of its failure.
    pub fn observe_pass(&self, took: Duration, failure: Option<&'static str>) {
        self.passes.observe(took.as_secs_f64());
        if let Some(kind) = failure {
            self.errors.get_or_create(&ErrorKind { kind }).inc();
        }
    }

    /// One key handed out, this long after its ApiKey was created.
    pub fn observe_issue(&self, took: SignedDuration) {
        self.issues.observe(took.as_secs_f64().max(0.0));
    }
}
