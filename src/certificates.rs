//! I/O. `keywright certificates`: creates and renews the CA in the Secret [`authority::SECRET`], and writes its bundle into
//! the webhook configurations. If everything is up to date, a run changes nothing.
//!
//! The Secret is the source: `caBundle` becomes a copy of its `ca.crt`. So a new CA takes over in three steps. After a
//! crash between any two of them the webhook still works, and the next run goes on:
//!
//! ```text
//! Secret: ca.crt = new + old,          configurations:          Secret: tls.crt, tls.key = new
//! the old one still signs       ──>    caBundle = ca.crt  ──>   replicas follow within seconds
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, ObjectMeta, PostParams};
use kube::core::ApiResource;
use kube::{Client, ResourceExt};
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tracing::{info, warn};

use crate::authority::{self, Authority, BUNDLE, Flaw, SECRET};
use crate::clock;
use keywright_core::api::MANAGED_BY;
use keywright_core::authority::{Mandate, Upkeep};

/// The options of one run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The system namespace, with the Secret.
    pub namespace: String,
    /// The names of the webhook configurations of both kinds. Empty: only the Secret is written.
    pub webhook_configurations: Vec<String>,
    /// Whether to replace a valid CA.
    pub rotate: bool,
    /// How long a new CA is valid.
    pub authority_lifetime: SignedDuration,
}

/// How many times to try again because another client wrote in between.
const ATTEMPTS: u32 = 8;

/// The longest pause before another try.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long the bundle is in the configurations before the new CA signs. API servers see the change in their watch within
/// milliseconds, but one may be late. If this is too short, edits are refused for some seconds.
const PROPAGATION: Duration = Duration::from_secs(5);

/// How many CA certificates are taken over from the configurations if the Secret is broken: the CA of the replicas'
/// certificates, and the one before.
const SALVAGED: usize = 2;

/// The field manager, for `managedFields`.
const FIELD_MANAGER: &str = "keywright-certificates";

/// Why one try ended early.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error("another client changed {0} in the meantime")]
    Conflict(String),
    #[error(transparent)]
    Failure(#[from] anyhow::Error),
}

struct Job {
    secrets: Api<Secret>,
    configurations: Vec<Configuration>,
    options: Options,
}

/// One webhook configuration, of either kind. Unknown fields are kept.
struct Configuration {
    api: Api<DynamicObject>,
    kind: String,
    name: String,
}

/// Brings the Secret and the configurations up to date, once.
///
/// # Errors
/// If a configuration does not exist, an object may not be written, or another client keeps writing. Names the object and
/// what to do.
pub async fn run(client: Client, options: Options) -> anyhow::Result<()> {
    if options.rotate && options.webhook_configurations.is_empty() {
        anyhow::bail!(
            "--rotate needs --webhook-configuration: the API server must trust a new authority before it signs"
        );
    }
    let job = Job::new(client, options);
    for attempt in 1.. {
        match job.attempt().await {
            Ok(()) => return Ok(()),
            Err(Interruption::Failure(error)) => return Err(error),
            Err(conflict) if attempt >= ATTEMPTS => {
                anyhow::bail!("{conflict}, {attempt} times in a row; run `keywright certificates` again")
            }
            Err(conflict) => {
                info!(%conflict, "trying again");
                tokio::time::sleep(LONGEST_PAUSE.mul_f64(rand::random_range(0.1..=1.0))).await;
            }
        }
    }
    Ok(())
}

impl Job {
    fn new(client: Client, options: Options) -> Self {
        let kinds = [
            ApiResource::erase::<MutatingWebhookConfiguration>(&()),
            ApiResource::erase::<ValidatingWebhookConfiguration>(&()),
        ];
        let named = |name: &String| kinds.clone().map(|kind| Configuration::new(client.clone(), &kind, name));
        let configurations = options.webhook_configurations.iter().flat_map(named).collect();
        Self { secrets: Api::namespaced(client, &options.namespace), configurations, options }
    }

    async fn attempt(&self) -> Result<(), Interruption> {
        // Before the first write: a wrong name should change nothing.
        let mut bundles = Vec::new();
        for configuration in &self.configurations {
            bundles.extend(configuration.read().await?.bundles());
        }
        let secret = self.secrets.get_opt(SECRET).await.map_err(|error| self.failure("read", error))?;
        let now = clock::now();
        let data = secret.as_ref().map(|secret| secret.data.clone().unwrap_or_default());
        let mandate = Mandate { publishes: !self.configurations.is_empty(), rotates: self.options.rotate };
        let read = data.as_ref().map_or(Err(Flaw::Absent), |data| Authority::read(data, now));
        let authority = match read {
            Ok(authority) => match authority.judge(mandate, now) {
                Upkeep::Keep => {
                    if now >= authority.renewal_at() {
                        warn!(expires_at = %authority.not_after(), "the CA is in the last third of its life: run `keywright certificates` with --webhook-configuration");
                    }
                    authority
                }
                Upkeep::Prune => {
                    let pruned = authority.pruned(now);
                    self.write(secret.as_ref(), pruned.data()).await?;
                    info!(certificates = pruned.bundle().len(), "removed expired CA certificates from the bundle");
                    pruned
                }
                Upkeep::Roll => self.succeed(secret, [authority.certificate().clone()]).await?,
            },
            Err(flaw) => {
                let trusted = bundles.iter().flat_map(|bundle| authority::salvage(bundle, SALVAGED, now));
                let trusted: Vec<_> = trusted.collect();
                if flaw != Flaw::Absent {
                    warn!(secret = %self.secret(), %flaw, "the Secret cannot be used: replacing its CA");
                }
                self.succeed(secret, trusted).await?
            }
        };
        if !self.publish(&authority.encoded_bundle()).await? {
            info!("everything is up to date");
        }
        Ok(())
    }

    /// Replaces the CA. `trusted` are the CAs of certificates that replicas may still serve.
    async fn succeed(
        &self,
        secret: Option<Secret>,
        trusted: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Authority, Interruption> {
        let key = KeyPair::generate().map_err(anyhow::Error::new)?;
        let successor = Authority::establish(key, self.options.authority_lifetime, clock::now());
        let successor = successor.map_err(anyhow::Error::new)?.trusting(trusted);
        let mut secret = secret;
        if successor.bundle().len() > 1 && !self.configurations.is_empty() {
            let data = secret.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
            secret = Some(self.write(secret.as_ref(), authority::staged(&data, &successor)).await?);
            self.publish(&successor.encoded_bundle()).await?;
            info!(waiting = ?PROPAGATION, "both CAs are trusted; waiting before the new one signs");
            tokio::time::sleep(PROPAGATION).await;
        }
        self.write(secret.as_ref(), successor.data()).await?;
        info!(secret = %self.secret(), expires_at = %successor.not_after(), "the new CA signs now");
        Ok(successor)
    }

    /// Writes the Secret's data: creates it, or replaces what was read and nothing newer.
    async fn write(&self, read: Option<&Secret>, data: BTreeMap<String, ByteString>) -> Result<Secret, Interruption> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let (written, conflicts) = match read {
            Some(read) => {
                let secret = Secret { data: Some(data), ..read.clone() };
                // 404: another client deleted it.
                (self.secrets.replace(SECRET, &parameters, &secret).await, &[409, 404][..])
            }
            None => {
                let labels = BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())]);
                let metadata =
                    ObjectMeta { name: Some(SECRET.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
                let type_ = Some("kubernetes.io/tls".to_owned());
                let secret = Secret { metadata, type_, data: Some(data), ..Secret::default() };
                (self.secrets.create(&parameters, &secret).await, &[409][..])
            }
        };
        written.map_err(|error| match &error {
            kube::Error::Api(status) if conflicts.contains(&status.code) => Interruption::Conflict(self.secret()),
            _ => self.failure("written", error).into(),
        })
    }

    /// Writes `bundle` into every `caBundle` that differs. Returns whether any did.
    async fn publish(&self, bundle: &[u8]) -> Result<bool, Interruption> {
        let mut is_written = false;
        for configuration in &self.configurations {
            let mut read = configuration.read().await?;
            if !read.set_bundle(bundle)? {
                continue;
            }
            // Another run may be under way. After this check, either that run has yet to write to this configuration, or our
            // write is refused because its version is older.
            let secret = self.secrets.get_opt(SECRET).await.map_err(|error| self.failure("read", error))?;
            let data = secret.and_then(|secret| secret.data).unwrap_or_default();
            if data.get(BUNDLE).is_none_or(|current| current.0 != bundle) {
                return Err(Interruption::Conflict(self.secret()));
            }
            configuration.write(&read).await?;
            info!(configuration = %configuration.describe(), "caBundle written");
            is_written = true;
        }
        Ok(is_written)
    }

    fn secret(&self) -> String {
        format!("Secret {}/{SECRET}", self.options.namespace)
    }

    fn failure(&self, done: &str, error: kube::Error) -> anyhow::Error {
        anyhow::anyhow!("{} cannot be {done}: {}", self.secret(), describe_api_error(error))
    }
}

/// A webhook configuration as it was read.
struct Read(DynamicObject);

impl Read {
    fn webhooks(&self) -> impl Iterator<Item = &Value> {
        self.0.data.get("webhooks").and_then(Value::as_array).into_iter().flatten()
    }

    /// The bundles of its webhooks, as PEM.
    fn bundles(&self) -> Vec<Vec<u8>> {
        let bundles = self.webhooks().filter_map(|webhook| webhook.pointer("/clientConfig/caBundle"));
        bundles
            .filter_map(|bundle| serde_json::from_value::<ByteString>(bundle.clone()).ok())
            .map(|text| text.0)
            .collect()
    }

    /// Sets every `caBundle`. Returns whether that changes anything.
    fn set_bundle(&mut self, bundle: &[u8]) -> anyhow::Result<bool> {
        let bundle = serde_json::to_value(ByteString(bundle.to_vec()))?;
        let mut is_changed = false;
        for webhook in self.0.data.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(client) = webhook.get_mut("clientConfig").and_then(Value::as_object_mut) else { continue };
            is_changed |= client.insert("caBundle".to_owned(), bundle.clone()).as_ref() != Some(&bundle);
        }
        Ok(is_changed)
    }
}

impl Configuration {
    fn new(client: Client, kind: &ApiResource, name: &str) -> Self {
        Self { api: Api::all_with(client, kind), kind: kind.kind.clone(), name: name.to_owned() }
    }

    fn describe(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    async fn read(&self) -> Result<Read, Interruption> {
        match self.api.get_opt(&self.name).await {
            Ok(Some(read)) => Ok(Read(read)),
            Ok(None) => Err(anyhow::anyhow!(
                "{} does not exist: install the chart first, or name the one that it made with --webhook-configuration",
                self.describe()
            )
            .into()),
            Err(error) => {
                Err(anyhow::anyhow!("{} cannot be read: {}", self.describe(), describe_api_error(error)).into())
            }
        }
    }

    /// Replaces the configuration, under the resource version that was read.
    async fn write(&self, read: &Read) -> Result<(), Interruption> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match self.api.replace(&read.0.name_any(), &parameters, &read.0).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Err(Interruption::Conflict(self.describe())),
            Err(error) => {
                Err(anyhow::anyhow!("{} cannot be written: {}", self.describe(), describe_api_error(error)).into())
            }
        }
    }
}

/// The API server's error message. An answer that cannot be read is not repeated: it may be a Secret.
fn describe_api_error(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        kube::Error::SerdeError(_) => "the API server's answer cannot be read".to_owned(),
        error => error.to_string(),
    }
}
