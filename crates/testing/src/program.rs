//! The real `keywright` program as a child process: started, awaited, killed; never outliving its test.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::command::keywright;
use super::faults::FaultProxy;
use super::installation::{Credentials, Installation};
use super::printed::Output;
use super::wait::DEADLINE;

/// A program about to be started. See [`Installation::program`].
#[must_use]
pub struct Launch<'a> {
    installation: &'a Installation,
    role: &'static str,
    server: Option<String>,
    credentials: Option<&'a Credentials>,
    arguments: Vec<String>,
    environment: Vec<String>,
}

/// A running `keywright`. Dropping it kills it.
pub struct Program {
    child: Child,
    output: Arc<Output>,
    /// The fields of its `listening` line.
    listening: Value,
    /// Held for as long as the thread has to live that started the child.
    _thread: mpsc::Sender<()>,
}

/// A program's memory, in KiB.
#[derive(Clone, Copy)]
pub struct Memory {
    /// The most that was ever resident.
    pub peak: u64,
    /// What is resident now.
    pub resident: u64,
}

impl<'a> Launch<'a> {
    /// Reaches the API server through the fault proxy.
    pub fn through(mut self, faults: &FaultProxy) -> Self {
        self.server = Some(faults.url());
        self
    }

    /// Runs in the Pod of these credentials, as a restarted container does; otherwise it gets a Pod of its own.
    pub fn in_pod(mut self, credentials: &'a Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// One more argument: `--resync=1m`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// With this variable in its environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// Starts the program and waits until it listens.
    pub async fn start(self) -> Program {
        let mut program = self.spawn().await;
        program.listening = program.output.line("\"listening\"").await;
        program
    }

    /// Runs the program to its end: its exit code, and what it printed.
    pub async fn run(self) -> (Option<i32>, String) {
        let program = self.spawn().await;
        let output = program.output.clone();
        let status = program.exited().await;
        output.complete().await;
        (status.code(), output.text())
    }

    async fn spawn(self) -> Program {
        let own;
        let credentials = match self.credentials {
            Some(credentials) => credentials,
            None => {
                own = self.installation.credentials(self.role).await;
                &own
            }
        };
        let output = Output::new(format!("keywright {} in {}", self.role, credentials.pod_name));
        self.installation.keep_output(output.clone());
        Program::spawn(self.command(credentials), output).await
    }

    fn command(self, credentials: &Credentials) -> Vec<String> {
        let kubeconfig = credentials.write_kubeconfig(self.server.as_deref());
        let mut command = vec!["setpriv".to_owned(), "--pdeathsig=KILL".to_owned()];
        command.push("env".to_owned());
        // As the chart has it by the downward API.
        command.push(format!("POD_NAME={}", credentials.pod_name));
        command.extend(self.environment);
        command.extend([keywright().display().to_string(), self.role.to_owned()]);
        command.push(format!("--kubeconfig={}", kubeconfig.display()));
        command.push(format!("--namespace={}", self.installation.system_namespace));
        if self.role != "certificates" {
            command.push("--admin-address=127.0.0.1:0".to_owned());
        }
        match self.role {
            "controller" => command.push(format!("--watch-namespace={}", self.installation.tenant_namespace)),
            "verifier" => {
                command.extend(["--http-address=127.0.0.1:0", "--grpc-address=127.0.0.1:0"].map(str::to_owned));
            }
            "webhook" => command.push("--https-address=127.0.0.1:0".to_owned()),
            _ => {}
        }
        command.extend(self.arguments);
        command
    }
}

impl Installation {
    /// The program in the role `controller`, `verifier` or `webhook`, to be started.
    pub fn program(&self, role: &'static str) -> Launch<'_> {
        Launch {
            installation: self,
            role,
            server: None,
            credentials: None,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }
}

impl Program {
    /// Any other program, by its path and arguments.
    pub async fn other(title: &str, command: &[String]) -> Self {
        let command = ["setpriv", "--pdeathsig=KILL"].into_iter().map(str::to_owned).chain(command.iter().cloned());
        Self::spawn(command.collect(), Output::new(title.to_owned())).await
    }

    async fn spawn(command: Vec<String>, output: Arc<Output>) -> Self {
        let (started, starting) = oneshot::channel();
        let (_thread, dropped) = mpsc::channel();
        let runtime = tokio::runtime::Handle::current();
        let reader = output.clone();
        // pdeathsig is delivered when the thread that started the child ends, so that one must live as long as the child.
        thread::spawn(move || {
            let _entered = runtime.enter();
            let (from_child, child) = spawn(&command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
            if started.send(child).is_ok() {
                reader.read(from_child);
                let _: Result<(), _> = dropped.recv();
            }
        });
        let child = starting.await.expect("the program starts");
        Self { child, output, listening: Value::Null, _thread }
    }

    /// The address that it listens on, by the name of the flag: `http` or `admin`.
    pub fn address(&self, of: &str) -> SocketAddr {
        let address = self.listening[format!("{of}_address")].as_str().and_then(|address| address.parse().ok());
        address.unwrap_or_else(|| panic!("no {of}_address in {}", self.listening))
    }

    /// Waits until `/readyz` says 200.
    pub async fn ready(&self) {
        let address = self.address("admin");
        let polled = timeout(DEADLINE, async {
            while !matches!(get(address, "/readyz").await, Ok((StatusCode::OK, _))) {
                sleep(Duration::from_millis(20)).await;
            }
        });
        polled.await.unwrap_or_else(|_| panic!("{} was not ready within {DEADLINE:?}", self.output.title));
    }

    /// What `/readyz` says, and whether that is 200.
    pub async fn readiness(&self) -> (bool, String) {
        let (status, text) = get(self.address("admin"), "/readyz").await.expect("its readiness");
        (status == StatusCode::OK, text)
    }

    /// What `/metrics` says.
    pub async fn metrics(&self) -> String {
        get(self.address("admin"), "/metrics").await.expect("its metrics").1
    }

    /// Waits until it has printed a line that holds the text.
    pub async fn says(&self, text: &str) {
        self.output.line(text).await;
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("a child that was not awaited has an id")
    }

    /// What it takes of memory, and has taken at most.
    pub fn memory(&self) -> Memory {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("its status");
        let kibibytes = |name: &str| -> Option<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().strip_suffix(" kB")?.parse().ok()
        };
        let memory = kibibytes("VmHWM:").zip(kibibytes("VmRSS:")).map(|(peak, resident)| Memory { peak, resident });
        memory.unwrap_or_else(|| panic!("no memory in {status}"))
    }

    /// The CPU time of all threads that it has now.
    pub fn processor_time(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).expect("its threads");
        let nanoseconds = threads.map(|thread| {
            let schedstat = thread.expect("a thread").path().join("schedstat");
            // One that has just ended has no schedstat any more.
            let statistics = std::fs::read_to_string(schedstat).unwrap_or_default();
            statistics.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0)
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Everything that it has printed so far.
    pub fn printed(&self) -> String {
        self.output.text()
    }

    /// What it prints, also once it is gone.
    pub fn output(&self) -> Arc<Output> {
        self.output.clone()
    }

    /// SIGKILL, and gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("a child can be killed");
    }

    /// SIGTERM, and how it then ended.
    pub async fn terminate(self) -> ExitStatus {
        self.signal("TERM");
        self.exited().await
    }

    /// Sends a signal: `STOP`, or `CONT`.
    pub fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{}: SIG{name} could not be sent", self.output.title);
    }

    /// How it ended by itself.
    pub async fn exited(mut self) -> ExitStatus {
        let exited = timeout(DEADLINE, self.child.wait()).await;
        exited.unwrap_or_else(|_| panic!("{} did not exit within {DEADLINE:?}", self.output.title)).expect("its status")
    }
}

fn spawn(command: &[String]) -> std::io::Result<(std::io::PipeReader, Child)> {
    let (from_child, to_us) = std::io::pipe()?;
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]).stdin(Stdio::null()).stdout(to_us.try_clone()?).stderr(to_us).kill_on_drop(true);
    for variable in "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY KUBECONFIG".split(' ') {
        child.env_remove(variable.to_lowercase());
        child.env_remove(variable);
    }
    Ok((from_child, child.spawn()?))
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, String)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    let request = Request::get(path).header("Host", address.to_string()).body(Empty::<Bytes>::new())?;
    let answer = async {
        let answer = sender.send_request(request).await.inspect(|_| drop(sender))?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8(body.into())?))
    };
    tokio::join!(answer, connection).0
}
