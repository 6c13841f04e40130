//! Logs and metrics. They never contain a key. No label contains a name, an owner or an address.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use jiff::SignedDuration;
use kube::core::Status;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text, for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The log filter in `text`, in tracing's syntax. It always excludes kube's client: at level WARN, the client logs the whole
/// body of an answer that it cannot read, and the body may be a Secret.
///
/// # Errors
/// If `text` is not a filter.
pub fn log_filter(text: &str) -> anyhow::Result<EnvFilter> {
    Ok(EnvFilter::try_new(text)?.add_directive("kube_client::client=off".parse()?))
}

/// Starts logging to standard error.
///
/// # Errors
/// If logging has been started before.
pub fn start_log(format: LogFormat, filter: EnvFilter) -> anyhow::Result<()> {
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// The metrics of the controller.
#[derive(Clone)]
pub struct ControllerMetrics {
    passes: Histogram,
    errors: Family<ErrorKind, Counter>,
    issues: Histogram,
    /// From a write of a record to its acknowledgement by every verifier.
    pub fence_waits: Histogram,
    /// Counts failed lists and watches.
    pub watch_errors: WatchErrors,
    /// The number of tombstones in the watch: records of revoked keys.
    pub tombstones: Gauge,
    /// Counts tombstones that were removed before the end of their retention.
    pub tombstones_removed_early: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorKind {
    kind: &'static str,
}

impl ControllerMetrics {
    /// Registers the metrics. Every kind of failure exists from the start, at 0: a rate needs a first value.
    pub fn new(registry: &mut Registry, error_kinds: &[&'static str]) -> Self {
        let metrics = Self {
            passes: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            errors: Family::default(),
            issues: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            fence_waits: Histogram::new(exponential_buckets(0.005, 2.0, 18)),
            watch_errors: WatchErrors::new(registry),
            tombstones: Gauge::default(),
            tombstones_removed_early: Counter::default(),
        };
        registry.register_with_unit(
            "reconcile_duration",
            "Time of one reconcile of one ApiKey",
            Unit::Seconds,
            metrics.passes.clone(),
        );
        registry.register("reconcile_errors", "Failed reconciles, by kind of failure", metrics.errors.clone());
        registry.register_with_unit(
            "issue",
            "From the event that made a key necessary to the key in its Secret",
            Unit::Seconds,
            metrics.issues.clone(),
        );
        registry.register_with_unit(
            "fence_wait",
            "From a write of a record to its acknowledgement by every verifier",
            Unit::Seconds,
            metrics.fence_waits.clone(),
        );
        registry.register("tombstones", "Tombstones: records of revoked keys", metrics.tombstones.clone());
        registry.register(
            "tombstones_removed_early",
            "Tombstones removed before --tombstone-retention, because of --tombstones-per-namespace",
            metrics.tombstones_removed_early.clone(),
        );
        for kind in error_kinds {
            drop(metrics.errors.get_or_create(&ErrorKind { kind }));
        }
        metrics
    }

    /// Notes a pass: its time, and the kind of its failure if it failed.
    pub fn observe_pass(&self, took: Duration, failure: Option<&'static str>) {
        self.passes.observe(took.as_secs_f64());
        if let Some(kind) = failure {
            self.errors.get_or_create(&ErrorKind { kind }).inc();
        }
    }

    /// Notes an issued key: the time from the event that made it necessary to the key in its Secret.
    pub fn observe_issue(&self, took: SignedDuration) {
        self.issues.observe(took.as_secs_f64().max(0.0));
    }
}

/// Counts and logs errors of lists and watches. The first of each kind is logged at once, then one per minute. Clones share
/// their counts.
#[derive(Clone)]
pub struct WatchErrors {
    counts: Family<ErrorKind, Counter>,
    logged: Arc<Mutex<HashMap<(&'static str, WatchErrorKind), Logged>>>,
}

/// The last logged error of one kind, for one kind of object.
struct Logged {
    at: Instant,
    /// How many errors were not logged since.
    suppressed: u64,
}

/// How often an error that goes on is logged.
const WATCH_ERROR_INTERVAL: Duration = Duration::from_secs(60);

/// The kind of an error of a list or a watch. Each has its own remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WatchErrorKind {
    /// 401: the API server does not accept the credentials.
    Unauthorized,
    /// 403: the rights are missing.
    Forbidden,
    /// 404: the API server does not serve this kind.
    NotFound,
    /// 410: the version to go on from is too old. A new list follows.
    Expired,
    /// Any other status that is not a success.
    Refused,
    /// There is no connection, it broke, or there was no answer in time.
    Unreachable,
    /// An answer that cannot be read, and everything else.
    Other,
}

impl WatchErrors {
    /// Registers the counter. Every kind exists from the start, at 0: a rate needs a first value.
    pub fn new(registry: &mut Registry) -> Self {
        let errors = Self::default();
        let help = "Failed lists and watches, by kind of failure";
        registry.register("watch_errors", help, errors.counts.clone());
        for kind in WatchErrorKind::ALL {
            drop(errors.counts.get_or_create(&ErrorKind { kind: kind.as_str() }));
        }
        errors
    }

    /// Notes an `error` at `now` of a list or watch of `watched`, a plural name such as `apikeyrecords`.
    pub fn note(&self, watched: &'static str, kind: WatchErrorKind, error: &dyn fmt::Display, now: Instant) {
        self.counts.get_or_create(&ErrorKind { kind: kind.as_str() }).inc();
        let Some(suppressed) = self.admit(watched, kind, now) else { return };
        let not_logged = (suppressed > 0).then_some(suppressed);
        let (kind_name, remedy) = (kind.as_str(), kind.remedy());
        match kind {
            WatchErrorKind::Expired => {
                warn!(kind = kind_name, %error, not_logged, "cannot follow {watched}: {remedy}");
            }
            _ => error!(kind = kind_name, %error, not_logged, "cannot follow {watched}: {remedy}"),
        }
    }

    /// Whether to log one more error: the number of errors that were not logged before it, or `None`.
    fn admit(&self, watched: &'static str, kind: WatchErrorKind, now: Instant) -> Option<u64> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        match logged.get_mut(&(watched, kind)) {
            Some(last) if now.saturating_duration_since(last.at) < WATCH_ERROR_INTERVAL => {
                last.suppressed += 1;
                None
            }
            before => {
                let suppressed = before.map_or(0, |last| last.suppressed);
                logged.insert((watched, kind), Logged { at: now, suppressed: 0 });
                Some(suppressed)
            }
        }
    }
}

impl Default for WatchErrors {
    /// Counts that are in no registry.
    fn default() -> Self {
        Self { counts: Family::default(), logged: Arc::default() }
    }
}

impl WatchErrorKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::Expired,
        Self::Refused,
        Self::Unreachable,
        Self::Other,
    ];

    /// The kind of an error of kube's client.
    pub fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_) => Self::Unreachable,
            _ => Self::Other,
        }
    }

    /// The kind of an error response, or of an error event on a watch. Some proxies and old API servers omit the code of a
    /// 410.
    pub fn of_status(status: &Status) -> Self {
        match (status.code, &*status.reason) {
            (401, _) => Self::Unauthorized,
            (403, _) => Self::Forbidden,
            (404, _) => Self::NotFound,
            (410, _) | (_, "Expired" | "Gone") => Self::Expired,
            _ => Self::Refused,
        }
    }

    /// The word for log and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Other => "other",
        }
    }

    /// What to do.
    fn remedy(self) -> &'static str {
        match self {
            Self::Unauthorized => {
                "check that the token belongs to an existing ServiceAccount of this cluster, or that the credentials of the \
                 kubeconfig have not expired"
            }
            Self::Forbidden => {
                "check that the chart's roles are bound to this ServiceAccount: kubectl auth can-i --list --as \
                 system:serviceaccount:NAMESPACE:NAME -n NAMESPACE"
            }
            Self::NotFound => {
                "check that the definitions are installed and served (kubectl get crd). If not, apply the output of \
                 `keywright crds`"
            }
            Self::Expired => "listing again; nothing to do unless this goes on",
            Self::Refused => "check what the API server's log says about such requests, and whether it is overloaded",
            Self::Unreachable => {
                "check that the API server runs, that its address and certificate are right, and that no NetworkPolicy or \
                 proxy blocks it"
            }
            Self::Other => "check that the API server answers, and not a proxy in its place",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{self, Write};

    use prometheus_client::encoding::text;

    use super::*;

    /// What was logged.
    #[derive(Clone, Default)]
    pub(crate) struct Lines(pub(crate) Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(octets)
        }

        fn flush(&mut self) -> io::Result<()> {
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

    fn api_error(code: u16, reason: &str) -> kube::Error {
        let status = Status { code, reason: reason.to_owned(), ..Status::default() };
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn an_error_of_a_watch_has_a_kind_that_says_what_to_do() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let cases = [
            (api_error(401, "Unauthorized"), "unauthorized"),
            (api_error(403, "Forbidden"), "forbidden"),
            (api_error(404, "NotFound"), "not_found"),
            (api_error(410, ""), "expired"),
            (api_error(0, "Expired"), "expired"),
            (api_error(500, "InternalError"), "refused"),
            (api_error(429, "TooManyRequests"), "refused"),
            (kube::Error::Service(refused().into()), "unreachable"),
            (kube::Error::ReadEvents(refused()), "unreachable"),
            (kube::Error::LinesCodecMaxLineLengthExceeded, "other"),
        ];
        for (error, kind) in cases {
            assert_eq!(WatchErrorKind::of(&error).as_str(), kind, "{error}");
        }
    }

    #[test]
    fn an_error_that_goes_on_is_told_at_once_and_then_every_minute_and_counted_each_time() {
        let mut registry = Registry::with_prefix("keywright");
        let errors = WatchErrors::new(&mut registry);
        let (lines, start) = (Lines::default(), Instant::now());
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log, || {
            let note = |watched, kind, second| {
                errors.note(watched, kind, &"the API server's words", start + Duration::from_secs(second));
            };
            for second in 0..150 {
                note("apikeyrecords", WatchErrorKind::Forbidden, second);
            }
            note("apikeyrecords", WatchErrorKind::Expired, 150);
            note("apikeys", WatchErrorKind::Forbidden, 150);
        });
        let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let count = |part: &str| said.lines().filter(|line| line.contains(part)).count();
        assert_eq!(count("ERROR"), 4, "at 0, 60 and 120 s, and one of another kind of object: {said}");
        assert_eq!(count("not_logged=59"), 2, "{said}");
        assert_eq!((count("WARN"), count("cannot follow apikeys: check that")), (1, 1), "{said}");
        assert_eq!(count("the API server's words"), 5, "{said}");
        let mut metrics = String::new();
        text::encode(&mut metrics, &registry).unwrap();
        for line in [
            r#"keywright_watch_errors_total{kind="forbidden"} 151"#,
            r#"keywright_watch_errors_total{kind="expired"} 1"#,
            r#"keywright_watch_errors_total{kind="unreachable"} 0"#,
        ] {
            assert!(metrics.lines().any(|said| said == line), "{line} in {metrics}");
        }
    }
}
