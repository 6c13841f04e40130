//! Servers as processes of their own, each on its core, and what they have used.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bytes::http_answer;

/// A server that is ended when this is dropped.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
}

/// Where the servers run that are measured; the client runs on the other one.
pub const SERVER_CORE: &str = "0";
pub const CLIENT_CORE: &str = "1";

/// An address on which nobody listens.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Process {
    /// Starts a program on a core; it prints into a file in `folder`. Does not wait for it.
    pub fn spawn(core: &str, program: &Path, arguments: &[String], address: SocketAddr, log: &Path) -> Result<Self> {
        let printed = File::create(log)?;
        let child = Command::new("taskset")
            .args(["-c", core])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(printed.try_clone()?)
            .stderr(printed)
            .spawn()
            .with_context(|| format!("starting {} by taskset", program.display()))?;
        Ok(Self { child, address })
    }

    /// Waits until the address takes connections.
    pub fn listening(self) -> Result<Self> {
        self.until("listens", |process| TcpStream::connect(process.address).is_ok())
    }

    pub fn until(mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<Self> {
        let started = Instant::now();
        while !condition(&self) {
            ensure!(self.child.try_wait()?.is_none(), "a server ended before it {what}: see the logs");
            ensure!(started.elapsed() < Duration::from_secs(180), "a server never {what}");
            sleep(Duration::from_millis(5));
        }
        Ok(self)
    }

    fn folder(&self) -> PathBuf {
        PathBuf::from("/proc").join(self.child.id().to_string())
    }

    /// Seconds of CPU time of all its threads, to the nanosecond; its children's too.
    pub fn cpu_seconds(&self) -> f64 {
        let threads = fs::read_dir(self.folder().join("task")).into_iter().flatten().flatten();
        let spent = threads.filter_map(|thread| {
            let schedstat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            schedstat.split(' ').next()?.parse::<f64>().ok()
        });
        spent.sum::<f64>() / 1e9
    }

    /// Octets of memory that are resident.
    pub fn resident(&self) -> f64 {
        let status = fs::read_to_string(self.folder().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kibibytes.unwrap_or(f64::NAN) * 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The status of an answer to a GET; none if there is no answer.
pub fn get(address: SocketAddr, path: &str) -> Option<u16> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while http_answer(&answer).is_none() {
        match stream.read(&mut part).ok()? {
            0 => return None,
            count => answer.extend_from_slice(&part[..count]),
        }
    }
    str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()
}
