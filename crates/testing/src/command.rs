//! Where the project and its programs are, and commands that are run.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// The project's folder.
pub fn project() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).expect("this package is in crates/")
}

/// The program under test, as cargo has built it beside this test.
///
/// # Panics
/// If it is not there: only tests and benchmarks of the package `keywright` have it built.
pub fn keywright() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let program = test.ancestors().nth(2).expect("a test is in target/<profile>/deps").join("keywright");
    assert!(program.is_file(), "{} is not there: run a test of the package keywright", program.display());
    program
}

/// The folder of the test bed's programs (etcd, kubectl and the others), built if they are not there.
pub fn programs() -> Result<PathBuf> {
    let mut build = Command::new(project().join("tests/testbed/build.sh"));
    Ok(PathBuf::from(output(build.stderr(Stdio::inherit()))?.trim_end()))
}

/// A script of the test bed that runs until its standard input is closed: by us, or by the kernel after us.
pub struct Script {
    child: Child,
    lifeline: Option<ChildStdin>,
}

impl Script {
    /// Starts `tests/testbed/<name>`, and waits for the first line that it prints.
    pub fn start(name: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<(Self, String)> {
        let mut command = Command::new(project().join("tests/testbed").join(name));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("tests/testbed/{name}"))?;
        let (lifeline, stdout) = child.stdin.take().zip(child.stdout.take()).context("its pipes")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        Ok((Self { child, lifeline: Some(lifeline) }, line.trim_end().to_owned()))
    }

    /// What keeps it running, for somebody else to hold.
    pub fn take_lifeline(&mut self) -> Option<ChildStdin> {
        self.lifeline.take()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether nobody has ended it yet.
    pub fn is_held(&self) -> bool {
        self.lifeline.is_some()
    }

    /// Lets go of it, and waits for its end. Its exit code, if no signal ended it.
    pub fn end(&mut self) -> Option<i32> {
        drop(self.lifeline.take());
        self.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Option<i32> {
        let code = self.child.wait().expect("a child can be awaited").code();
        self.lifeline = None;
        code
    }
}

/// Runs a command to its end; its standard output, or an error that holds its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a command to its end, with this as its standard input; its standard output, or an error with all that it said.
pub fn run(command: &mut Command, input: &str) -> Result<String> {
    let output = output_with(command, input)?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?}: {}: {}{}", output.status, out, error.trim_end());
    }
    Ok(out.into_owned())
}

fn output_with(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    // What does not read its input to the end (a usage error, say) tells us more than the broken pipe.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    child.wait_with_output().with_context(|| format!("{command:?}"))
}

/// A running command whose standard output is read line by line.
pub fn lines(command: &mut Command) -> Result<(Child, BufReader<impl Read + use<>>)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let stdout = child.stdout.take().context("its standard output")?;
    Ok((child, BufReader::new(stdout)))
}
