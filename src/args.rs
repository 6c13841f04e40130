//! The command line. Parses flags into types, so that a bad value is refused with an example of a good one, and makes each
//! role's options of them. Each flag has an environment variable.

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
use crate::{certificates, controller, telemetry, verifier, webhook};
use keywright_core::authority::{CERTIFICATE_LIFETIME, LIFETIME};
use keywright_core::client_address::ClientAddressSource;
use keywright_core::fence::{ELECTION_LEASE, LONGEST_DURATION};
use keywright_core::{duration, usage};

/// Issues, delivers, verifies, expires and revokes API keys on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "keywright", version, about)]
pub struct Arguments {
    /// The role to run.
    #[command(subcommand)]
    pub role: Role,
}

/// The roles of the program.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Reconciles ApiKeys: issues, delivers, expires and revokes keys.
    Controller(ControllerArguments),
    /// Answers proxies whether a request may pass.
    Verifier(VerifierArguments),
    /// Validates and completes ApiKeys for the API server, as an admission webhook.
    Webhook(WebhookArguments),
    /// Creates or renews the webhook's certificate authority (CA), then exits. Safe to repeat.
    Certificates(CertificatesArguments),
    /// Prints the CustomResourceDefinitions as YAML, or writes them into a folder.
    Crds(CrdsArguments),
}

/// Flags of every role that uses the Kubernetes API.
#[derive(Debug, Args)]
pub struct ProgramArguments {
    /// The kubeconfig file. Default: KUBECONFIG, or else the Pod's ServiceAccount. An HTTP proxy comes from the file's
    /// proxy-url, or else from HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, unless NO_PROXY names the API server.
    #[arg(long, env = "KEYWRIGHT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The system namespace, with the records and the lease.
    #[arg(long, env = "KEYWRIGHT_NAMESPACE", default_value = "keywright-system")]
    pub namespace: String,

    /// The format of log lines.
    #[arg(long, env = "KEYWRIGHT_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,

    /// Which lines to log, in the syntax of tracing, such as info or keywright=debug,warn.
    #[arg(long, env = "KEYWRIGHT_LOG_FILTER", default_value = "info", value_parser = log_filter)]
    pub log_filter: String,
}

/// Flags of every server.
#[derive(Debug, Args)]
pub struct ServerArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub program: ProgramArguments,

    /// The address for /healthz, /readyz and /metrics. Default: port 9090 of all addresses
    /// (`[::]:9090`, or `0.0.0.0:9090` without IPv6).
    #[arg(long, env = "KEYWRIGHT_ADMIN_ADDRESS", value_name = "ADDRESS:PORT")]
    pub admin_address: Option<SocketAddr>,
}

/// Flags of `keywright controller`.
#[derive(Debug, Args)]
pub struct ControllerArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub server: ServerArguments,

    /// Reconcile only while holding the lease keywright-controller. A standby is ready too.
    #[arg(
        long, env = "KEYWRIGHT_LEADER_ELECT", value_name = "true|false", default_value_t = true,
        default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set
    )]
    pub leader_elect: bool,

    /// How long to keep the tombstone (the record) of a revoked key.
    #[arg(long, env = "KEYWRIGHT_TOMBSTONE_RETENTION", default_value = "90d", value_name = "DURATION", value_parser = any_duration)]
    pub tombstone_retention: SignedDuration,

    /// Maximum number of tombstones of generated keys per namespace. Beyond it, the oldest that are more than an hour old
    /// are removed early. Tombstones of submitted digests stay.
    #[arg(long, env = "KEYWRIGHT_TOMBSTONES_PER_NAMESPACE", default_value_t = 2000, value_name = "RECORDS")]
    pub tombstones_per_namespace: u32,

    /// How many ApiKeys to reconcile at the same time.
    #[arg(long, env = "KEYWRIGHT_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,

    /// How often to reconcile every ApiKey without a change. Longer if that would cost more than 50 reads a second.
    #[arg(long, env = "KEYWRIGHT_RESYNC", default_value = "10m", value_name = "DURATION", value_parser = positive_duration)]
    pub resync: Duration,

    /// Watch only this namespace. Default: all namespaces.
    #[arg(long, env = "KEYWRIGHT_WATCH_NAMESPACE", value_name = "NAMESPACE")]
    pub watch_namespace: Option<String>,
}

/// Flags of `keywright verifier`.
#[derive(Debug, Args)]
pub struct VerifierArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub server: ServerArguments,

    /// The address for proxies that ask over HTTP, at /verify. Default: port 8080 of all addresses
    /// (`[::]:8080`, or `0.0.0.0:8080` without IPv6).
    #[arg(long, env = "KEYWRIGHT_HTTP_ADDRESS", value_name = "ADDRESS:PORT")]
    pub http_address: Option<SocketAddr>,

    /// The address for Envoy, which asks over gRPC: envoy.service.auth.v3.Authorization/Check. Default: port 9001 of all
    /// addresses (`[::]:9001`, or `0.0.0.0:9001` without IPv6).
    #[arg(long, env = "KEYWRIGHT_GRPC_ADDRESS", value_name = "ADDRESS:PORT")]
    pub grpc_address: Option<SocketAddr>,

    /// Where the client's address of an HTTP request comes from: peer, xff-hops=N or xff-proxies=CIDR,...
    #[arg(long, env = "KEYWRIGHT_HTTP_CLIENT_IP", default_value = "xff-hops=1", value_name = "SOURCE")]
    pub http_client_ip: ClientAddressSource,

    /// Where the client's address of a gRPC request comes from: peer (the client of Envoy), xff-hops=N or
    /// xff-proxies=CIDR,...
    #[arg(long, env = "KEYWRIGHT_GRPC_CLIENT_IP", default_value = "peer", value_name = "SOURCE")]
    pub grpc_client_ip: ClientAddressSource,

    /// The name of this verifier's Lease, which must be its Pod's. No two verifiers may have the same. Default: POD_NAME, or
    /// else the host's name.
    #[arg(long, env = "KEYWRIGHT_IDENTITY", value_name = "NAME", value_parser = identity)]
    pub identity: Option<String>,

    /// How long the verifier answers without renewing its Lease, and without news of the records. After that it answers 503. A
    /// verifier that crashed holds up deletions of ApiKeys for about as long. At most 1d.
    #[arg(long, env = "KEYWRIGHT_LEASE_DURATION", default_value = "10m", value_name = "DURATION", value_parser = lease_duration)]
    pub lease_duration: Duration,

    /// How late lastUsedAt may be, if the write budget allows.
    #[arg(long, env = "KEYWRIGHT_LAST_USED_GRANULARITY", default_value = "60s", value_name = "DURATION", value_parser = positive_duration)]
    pub last_used_granularity: Duration,

    /// How many last uses all verifiers together write per second. With more keys in use, lastUsedAt gets later. Set the same
    /// value for all verifiers. 0: never write last uses.
    #[arg(long, env = "KEYWRIGHT_LAST_USED_WRITE_BUDGET", default_value_t = 20, value_name = "WRITES", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub last_used_write_budget: u32,

    /// Maximum share of a listener's connections for one client address. An IPv6 /64 network counts as one address. Raise it
    /// if all proxies have the same address.
    #[arg(long, env = "KEYWRIGHT_CONNECTIONS_PER_CLIENT", default_value_t = Share::DEFAULT, value_name = "PERCENT")]
    pub connections_per_client: Share,

    /// Serve TLS with the certificate in this PEM file, which is read again when it changes. Default: plain text.
    #[arg(long, env = "KEYWRIGHT_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,

    /// The private key of --tls-certificate, a PEM file.
    #[arg(long, env = "KEYWRIGHT_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,

    /// Accept only clients with a certificate by one of the CAs in this PEM file, which is read again when it changes.
    #[arg(long, env = "KEYWRIGHT_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_ca: Option<PathBuf>,

    /// Refuse plain text. false: accept plain text too, while proxies are switched to TLS or back.
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

    /// The address for the API server, which asks at /mutate and /validate. Default: port 9443 of all addresses
    /// (`[::]:9443`, or `0.0.0.0:9443` without IPv6).
    #[arg(long, env = "KEYWRIGHT_HTTPS_ADDRESS", value_name = "ADDRESS:PORT")]
    pub https_address: Option<SocketAddr>,

    /// A name or address that the API server uses for the webhook. Repeatable. Default: keywright-webhook.NAMESPACE.svc
    #[arg(long, env = "KEYWRIGHT_SERVER_NAME", value_name = "NAME", value_delimiter = ',', value_parser = server_name)]
    pub server_name: Vec<String>,

    /// Maximum share of a listener's connections for one client address. An IPv6 /64 network counts as one address. Raise it
    /// if all API servers have the same address.
    #[arg(long, env = "KEYWRIGHT_CONNECTIONS_PER_CLIENT", default_value_t = Share::DEFAULT, value_name = "PERCENT")]
    pub connections_per_client: Share,

    /// Serve the certificate in this PEM file, which is read again when it changes. Default: issue one.
    #[arg(long, env = "KEYWRIGHT_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,

    /// The private key of --tls-certificate, a PEM file.
    #[arg(long, env = "KEYWRIGHT_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,

    /// How long a certificate that the webhook issues is valid. It is renewed after two thirds of that.
    #[arg(long, env = "KEYWRIGHT_CERTIFICATE_LIFETIME", default_value_t = Shown(CERTIFICATE_LIFETIME), value_name = "DURATION", value_parser = shown_duration)]
    pub certificate_lifetime: Shown,

    /// How often to read the CA's Secret, or the certificate files.
    #[arg(long, env = "KEYWRIGHT_CERTIFICATE_POLL", default_value = "10s", value_name = "DURATION", value_parser = positive_duration)]
    pub certificate_poll: Duration,
}

/// Flags of `keywright certificates`.
#[derive(Debug, Args)]
pub struct CertificatesArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub program: ProgramArguments,

    /// The name of the MutatingWebhookConfiguration and the ValidatingWebhookConfiguration that get the CA as caBundle.
    /// Repeatable. Empty: write the Secret only.
    #[arg(
        long,
        env = "KEYWRIGHT_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "keywright"
    )]
    pub webhook_configuration: Vec<String>,

    /// Replace the CA even if it is valid. The old CA stays trusted until the next rotation.
    #[arg(long, env = "KEYWRIGHT_ROTATE")]
    pub rotate: bool,

    /// How long a new CA is valid. A run in the last third of that replaces it.
    #[arg(long, env = "KEYWRIGHT_AUTHORITY_LIFETIME", default_value_t = Shown(LIFETIME), value_name = "DURATION", value_parser = shown_duration)]
    pub authority_lifetime: Shown,
}

/// Flags of `keywright crds`.
#[derive(Debug, Args)]
pub struct CrdsArguments {
    /// Write one file per definition into this folder. Default: standard output.
    #[arg(long, env = "KEYWRIGHT_OUTPUT_DIRECTORY", value_name = "FOLDER")]
    pub output_directory: Option<PathBuf>,
}

impl ServerArguments {
    fn admin_address(&self) -> Address {
        Address::or_all(self.admin_address, 9090)
    }
}

impl ControllerArguments {
    /// The role's options. `hostname` identifies the replica.
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
    /// The role's options. `hostname` identifies the verifier if no flag does.
    ///
    /// # Errors
    /// If that cannot be the name of a Lease.
    pub fn options(&self, hostname: &str) -> anyhow::Result<verifier::Options> {
        let identity = match &self.identity {
            Some(identity) => identity.clone(),
            None => identity(hostname).map_err(|problem| {
                anyhow::anyhow!("POD_NAME, or else the host's name, is {hostname}, but {problem}. Set --identity")
            })?,
        };
        Ok(verifier::Options {
            namespace: self.server.program.namespace.clone(),
            identity,
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
        })
    }
}

impl WebhookArguments {
    /// The certificate's files, if the webhook does not issue it itself.
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

/// The files of a certificate. The command line has the first two together or not at all.
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

/// Checks the name of a verifier's Lease: a DNS subdomain (RFC 1123), as a Pod's name is.
fn identity(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        let is_plain = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit();
        let (first, last) = (label.bytes().next(), label.bytes().last());
        first.is_some_and(is_plain)
            && last.is_some_and(is_plain)
            && label.bytes().all(|octet| is_plain(octet) || octet == b'-')
    };
    if text == ELECTION_LEASE {
        Err(format!(
            "must not be {ELECTION_LEASE}, which is the Lease of the controllers; keywright-verifier-0, for example"
        ))
    } else if text.len() <= 253 && text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err("must be the Pod's name: up to 253 lower-case letters, digits, - and ., such as keywright-verifier-0"
            .to_owned())
    }
}

/// Checks how long a Lease is valid.
fn lease_duration(text: &str) -> Result<Duration, String> {
    let duration = positive_duration(text)?;
    if duration <= LONGEST_DURATION { Ok(duration) } else { Err("must be at most 1d".to_owned()) }
}

/// A duration that help texts show as users write it.
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

/// Checks a name or address for a certificate.
fn server_name(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("must be a DNS name or an IP address, such as keywright-webhook.keywright-system.svc".to_owned()),
    }
}

/// Checks a log filter, and keeps the text because a filter cannot be cloned.
fn log_filter(text: &str) -> Result<String, String> {
    match telemetry::log_filter(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(problem) => Err(format!("{problem}; write info or keywright=debug,warn, for example")),
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
        let options = verifier.options("here").unwrap();
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
    fn a_verifier_is_named_by_its_flag_or_else_by_its_host_in_a_way_that_a_lease_can_be() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["keywright", "verifier"], words].concat());
        let identity = |words: &[&str], hostname: &str| match parse(words).unwrap().role {
            Role::Verifier(arguments) => arguments.options(hostname).map(|options| options.identity),
            _ => unreachable!(),
        };
        assert_eq!(identity(&["--identity=a-1.b"], "here").unwrap(), "a-1.b");
        assert_eq!(identity(&[], "here").unwrap(), "here");
        let said = identity(&[], "My_Host").unwrap_err().to_string();
        assert!(said.contains("My_Host") && said.contains("Set --identity"), "{said}");
        let long = "a".repeat(254);
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "\u{e4}", "keywright-controller", &long] {
            let said = parse(&[&format!("--identity={bad}")]).unwrap_err().to_string();
            assert!(said.contains("--identity") && said.contains("keywright-verifier-0"), "{said}");
        }
        let said = parse(&["--lease-duration=25h"]).unwrap_err().to_string();
        assert!(said.contains("must be at most 1d"), "{said}");
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
                Role::Verifier(arguments) => arguments.options("here").unwrap().tls_required,
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
