//! I/O. Serves certificates from PEM files, as a kubelet mounts them, and follows their changes.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use tracing::{info, warn};

use super::certificate::{Certificate, ClientAuthorities};
use super::served::{SOURCE_GOOD, Served};
use crate::{clock, x509};

/// The PEM files of a certificate, such as cert-manager's.
#[derive(Clone, Debug)]
pub struct PemFiles {
    /// The certificate, followed by intermediate certificates.
    pub certificate: PathBuf,
    /// The key of the first certificate.
    pub key: PathBuf,
    /// CA certificates: every client must have a certificate by one of them. Without this file, clients need none.
    pub client_authorities: Option<PathBuf>,
}

/// Serves certificates from files. Shared by the task that follows them, the probes and the metrics.
pub struct CertificateFiles {
    files: PemFiles,
    server_names: Vec<String>,
    poll: Duration,
    served: Arc<Served>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The CAs that client certificates are checked against.
    client_authorities: Vec<CertificateDer<'static>>,
    /// The result of the last read. `None` before the first.
    found: Option<Result<(), String>>,
}

impl CertificateFiles {
    /// [`Self::follow`] reads the files every `poll`. The certificate must be valid for all of `server_names`.
    ///
    /// # Errors
    /// If the TLS library refuses its configuration.
    pub fn new(
        files: PemFiles,
        server_names: Vec<String>,
        poll: Duration,
        registry: &mut Registry,
    ) -> anyhow::Result<Arc<Self>> {
        let served = Served::new(registry)?;
        let certificates = Arc::new(Self { files, server_names, poll, served, state: Mutex::default() });
        registry.register_collector(Box::new(Metrics(Arc::clone(&certificates))));
        Ok(certificates)
    }

    /// The certificate that is served, now and later.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served)
    }

    /// Follows the files for ever.
    pub async fn follow(&self) -> Infallible {
        loop {
            // Problems are logged already.
            self.refresh(clock::now()).ok();
            tokio::time::sleep(self.poll).await;
        }
    }

    /// Reads the files, and serves what is new and valid. Otherwise the old certificate stays. Logs each change once.
    ///
    /// # Errors
    /// Names each file that cannot be used, and why.
    pub fn refresh(&self, now: Timestamp) -> anyhow::Result<()> {
        let mut state = self.state();
        // A new certificate is used even if the CA file is broken, and the other way round. But nothing is served before the
        // CAs for clients are known.
        let authorities = self.take_up_authorities(&mut state);
        let is_known = self.files.client_authorities.is_none() || !state.client_authorities.is_empty();
        let certificate = self.read_certificate(now).map(|certificate| {
            if is_known {
                self.take_up_certificate(certificate, now);
            }
        });
        let problems = [certificate, authorities].into_iter().filter_map(Result::err);
        let problems: Vec<_> = problems.map(|problem| format!("{problem:#}")).collect();
        let found = if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) };
        if state.found.as_ref() != Some(&found) {
            match &found {
                Ok(()) => info!("the certificate files are valid"),
                Err(problem) if self.served.current(now).is_some() => {
                    warn!(
                        "cannot use the new certificate files, still serving the old ones: {problem}. Correct the files"
                    );
                }
                Err(problem) => warn!("cannot use the certificate files: {problem}. Correct the files"),
            }
            state.found = Some(found.clone());
        }
        found.map_err(anyhow::Error::msg)
    }

    /// Whether there is a valid certificate at `now`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn readiness(&self, now: Timestamp) -> Result<(), String> {
        let certificate = self.served.current(now).ok_or_else(|| {
            let state = self.state();
            let cause = match &state.found {
                None => "the files are not read yet",
                Some(Ok(())) => "the files hold the expired one; renew it",
                Some(Err(problem)) => problem,
            };
            match self.served.not_after() {
                Some(end) => format!("the certificate expired at {end}: {cause}"),
                None => format!("there is no certificate: {cause}"),
            }
        })?;
        self.check(&certificate, now).map_err(|problem| format!("{problem:#}"))
    }

    fn read_certificate(&self, now: Timestamp) -> anyhow::Result<Certificate> {
        let certificate = self.files.certificate()?;
        self.check(&certificate, now).with_context(|| format!("{}", self.files.certificate.display()))?;
        Ok(certificate)
    }

    fn take_up_certificate(&self, certificate: Certificate, now: Timestamp) {
        if self.served.current(now).is_none_or(|served| served.chain() != certificate.chain()) {
            info!(expires_at = %certificate.not_after(), "serving a new certificate");
            self.served.replace(certificate);
        }
    }

    fn take_up_authorities(&self, state: &mut State) -> anyhow::Result<()> {
        let Some(file) = &self.files.client_authorities else { return Ok(()) };
        let certificates = certificates(file)?;
        if state.client_authorities != certificates {
            let authorities = ClientAuthorities::new(certificates).with_context(|| format!("{}", file.display()))?;
            self.served.demand(&authorities)?;
            info!(
                authorities = authorities.certificates.len(),
                "client certificates are now checked against the new CAs"
            );
            state.client_authorities = authorities.certificates;
        }
        Ok(())
    }

    /// Checks dates and names of a certificate. Whether clients trust its CA is not known here.
    fn check(&self, certificate: &Certificate, now: Timestamp) -> anyhow::Result<()> {
        let leaf = certificate.leaf().context("there is no certificate")?;
        let (start, end) = x509::validity(leaf).context("the certificate cannot be read")?;
        if now < start {
            bail!("the certificate is not valid before {start}");
        }
        if now >= end {
            bail!("the certificate expired at {end}");
        }
        let leaf = ParsedCertificate::try_from(leaf)?;
        self.server_names.iter().try_for_each(|name| {
            let server_name = ServerName::try_from(name.as_str())?;
            verify_server_name(&leaf, &server_name).with_context(|| format!("the certificate is not valid for {name}"))
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PemFiles {
    /// Reads the certificate and its key.
    ///
    /// # Errors
    /// Names the file and the problem, and nothing of its content. A kubelet replaces both files at once, but they are read
    /// one after the other: if they do not match now, they may match at the next read.
    fn certificate(&self) -> anyhow::Result<Certificate> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&zeroize::Zeroizing::new(read(&self.key)?)).ok();
        let key = key.with_context(|| format!("{}: not a private key in PEM", self.key.display()))?;
        let fit = || format!("{} and {} cannot be used", self.certificate.display(), self.key.display());
        Certificate::new(chain, key).with_context(fit)
    }
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    let certificates = certificates.ok().filter(|certificates| !certificates.is_empty());
    certificates.with_context(|| format!("{}: not certificates in PEM", file.display()))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("{}: cannot be read", file.display()))
}

/// Whether the files are valid, read at each scrape.
struct Metrics(Arc<CertificateFiles>);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let is_good = matches!(self.0.state().found, Some(Ok(())));
        let gauge = ConstGauge::new(f64::from(u8::from(is_good)));
        let (name, help) = SOURCE_GOOD;
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests;
