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

/// What is logged: `text` in tracing's syntax, and never what kube's client says. That repeats the whole body of an
/// answer which it cannot read, at level WARN, and the body may be a Secret.
///
/// # Errors
/// If `text` is no filter.
pub fn log_filter(text: &str) -> anyhow::Result<EnvFilter> {
    Ok(EnvFilter::try_new(text)?.add_directive("kube_client::client=off".parse()?))
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
    /// Registers them all; `registry` gives the prefix. Every kind of failure is there from the start, at 0: a rate needs
    /// a value to rise from.
    pub fn new(registry: &mut Registry, error_kinds: &[&'static str]) -> Self {
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
        for kind in error_kinds {
            drop(metrics.errors.get_or_create(&ErrorKind { kind }));
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(octets)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_filter_lets_the_client_repeat_what_it_cannot_read() {
        for filter in ["trace", "kube_client=trace", "kube_client::client=trace", "info,kube_client::client=warn"] {
            let lines = Lines::default();
            let writer = lines.clone();
            let log = tracing_subscriber::fmt()
                .with_env_filter(log_filter(filter).unwrap())
                .with_writer(move || writer.clone())
                .finish();
            tracing::subscriber::with_default(log, || {
                tracing::warn!(target: "kube_client::client", "the body of a Secret");
                tracing::warn!(target: "keywright", "something else");
                tracing::error!(target: "kube_client::config", "something else");
            });
            let directives = log_filter(filter).unwrap().to_string();
            assert!(directives.contains("kube_client::client=off"), "{filter}: {directives}");
            let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert!(!said.contains("Secret"), "{filter}: {said}");
        }
        assert!(log_filter("a=b=c").is_err());
    }
}
