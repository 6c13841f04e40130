//! One real control plane for the whole test run: started at its first use, gone with the test process.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use super::command::{Script, output, programs, project};

/// A control plane without nodes: Pods stay Pending, everything else is as in any cluster.
pub struct ControlPlane {
    programs: PathBuf,
    state: PathBuf,
    kubeconfig: PathBuf,
    /// The content of that file.
    admin: Value,
    /// The control plane ends when this end of the pipe is closed: by this process, or by the kernel after it.
    lifeline: Mutex<Option<ChildStdin>>,
    script: u32,
}

static SHARED: OnceLock<Result<ControlPlane>> = OnceLock::new();

impl ControlPlane {
    /// The control plane of this run. The first caller starts it, and may have to build it first.
    pub async fn shared() -> &'static Self {
        Self::started_once(&SHARED, || {
            let control_plane = Self::start()?;
            control_plane.install_custom_resources()?;
            Ok(control_plane)
        })
        .await
    }

    /// One more, with nothing installed, for a test that installs Keywright as a user does, with all that is
    /// cluster-wide. The test ends it.
    pub async fn empty() -> &'static Self {
        let place = Box::leak(Box::new(OnceLock::new()));
        Self::started_once(place, Self::start).await
    }

    /// Ends its programs. Their folder goes with them.
    pub fn end(&self) {
        drop(self.lifeline.lock().unwrap().take());
    }

    /// One more, ready for installations, for a test that disturbs it. The test ends it.
    pub async fn of_its_own() -> &'static Self {
        let control_plane = Self::empty().await;
        let installed = tokio::task::spawn_blocking(|| control_plane.install_custom_resources()).await;
        installed.expect("no panic").expect("the custom resource definitions");
        control_plane
    }

    /// Has the API server killed and started again. Nobody who shares it may be disturbed.
    pub fn restart_api_server(&self) {
        let sent = Command::new("kill").args(["-USR1", &self.script.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "the control plane's script runs");
    }

    async fn started_once(place: &'static OnceLock<Result<Self>>, start: fn() -> Result<Self>) -> &'static Self {
        let started = tokio::task::spawn_blocking(move || place.get_or_init(start)).await;
        match started.expect("starting the control plane does not panic") {
            Ok(control_plane) => control_plane,
            Err(error) => panic!("the control plane did not start: {error:#}"),
        }
    }

    fn start() -> Result<Self> {
        let programs = programs()?;
        // Short, as it also holds Unix sockets, whose paths are limited to 107 octets.
        let state = std::env::temp_dir().join(format!("keywright-testbed-{:08x}", rand::random::<u32>()));
        let (mut script, line) = Script::start("control-plane.sh", [&programs, &state])?;
        let ready = line.strip_prefix("ready ").context("control-plane.sh says above what went wrong")?;
        let kubeconfig = PathBuf::from(ready);
        let admin = serde_yaml::from_str(&std::fs::read_to_string(&kubeconfig)?)?;
        Ok(Self {
            programs,
            state,
            kubeconfig,
            admin,
            lifeline: Mutex::new(script.take_lifeline()),
            script: script.id(),
        })
    }

    fn install_custom_resources(&self) -> Result<()> {
        let folder = project().join("crds").canonicalize()?; // kubectl does not follow a link to a folder
        output(self.kubectl(["apply", "--filename"]).arg(folder))?;
        output(&mut self.kubectl(["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"]))?;
        Ok(())
    }

    /// A new client with an administrator's rights. Each test needs its own, as a client ends with its runtime.
    pub async fn client(&self) -> kube::Client {
        self.client_of(&self.kubeconfig).await
    }

    /// A new client of whoever the kubeconfig file is for. It tries nothing twice, so that a test sees what happened.
    pub async fn client_of(&self, kubeconfig: &Path) -> kube::Client {
        kube::Client::try_from(Self::config(kubeconfig).await).expect("a usable kubeconfig")
    }

    /// A client without credentials of its own, for requests that bring theirs.
    pub(crate) async fn client_without_credentials(&self) -> kube::Client {
        let mut config = Self::config(&self.kubeconfig).await;
        config.auth_info = Default::default();
        kube::Client::try_from(config).expect("a usable kubeconfig")
    }

    async fn config(kubeconfig: &Path) -> kube::Config {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a readable kubeconfig");
        let options = KubeConfigOptions::default();
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a complete kubeconfig");
        config.proxy_url = None; // the environment's: never for loopback
        config.default_retry = false;
        config
    }

    /// Writes a kubeconfig file: the administrator's, or a token's owner's; for the API server, or for whoever stands
    /// in front of it at this address without TLS (a fault proxy).
    pub fn write_kubeconfig(&self, token: Option<&str>, server: Option<&str>) -> PathBuf {
        let mut kubeconfig = self.admin.clone();
        if let Some(token) = token {
            kubeconfig["users"][0]["user"] = json!({"token": token});
        }
        if let Some(server) = server {
            kubeconfig["clusters"][0]["cluster"] = json!({"server": server});
        }
        self.write_private(&format!("{:08x}.kubeconfig", rand::random::<u32>()), &kubeconfig.to_string())
    }

    /// Writes a file that we alone may read, and that is removed with the control plane.
    pub fn write_private(&self, name: &str, text: &str) -> PathBuf {
        let path = self.state.join(name);
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Where the API server writes its audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.state.join("audit.log")
    }

    /// `kubectl ARGUMENTS`, as an administrator.
    pub fn kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        command
    }

    /// `helm ARGUMENTS`, as an administrator.
    pub fn helm<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(self.programs.join("helm"));
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        command
    }

    /// A new folder that is removed with the control plane.
    pub fn folder(&self) -> PathBuf {
        let folder = self.state.join(format!("{:08x}", rand::random::<u32>()));
        std::fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        folder
    }

    /// The folder of the programs: kubectl, helm and the others.
    pub fn programs(&self) -> &Path {
        &self.programs
    }
}
