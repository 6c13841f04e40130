//! A whole cluster on this machine (`tests/testbed/node.sh`), and commands inside it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// A running node. It ends when it is dropped, or when this process does.
pub struct Node {
    state: PathBuf,
    script: Child,
    /// The node ends when this end of the pipe is closed: by us, or by the kernel after us.
    lifeline: Option<ChildStdin>,
}

impl Node {
    /// Starts a node that has the images of `make image`.
    pub fn start() -> Result<Self> {
        let programs = run(&mut Command::new(project().join("tests/testbed/build.sh")), "")?;
        let state = std::env::temp_dir().join(format!("keywright-node-{:08x}", rand::random::<u32>()));
        let mut script = Command::new(project().join("tests/testbed/node.sh"))
            .args([Path::new(programs.trim_end()), &state])
            .args(["keywright", "workload"].map(|name| project().join(format!("target/image/{name}.tar"))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("tests/testbed/node.sh")?;
        let (lifeline, stdout) = script.stdin.take().zip(script.stdout.take()).context("its pipes")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim_end() != "ready" {
            bail!("the node did not start ({}); node.sh says why above", script.wait()?);
        }
        Ok(Self { state, script, lifeline: Some(lifeline) })
    }

    /// Where the node keeps everything.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The process id of the script that holds the node.
    pub fn script(&self) -> u32 {
        self.script.id()
    }

    /// A command inside the node, as root; kubectl and helm as an administrator.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(project().join("tests/testbed/enter.sh"));
        command.arg(&self.state).args(arguments).current_dir(project());
        command
    }

    /// Ends the node, and waits until nothing is left.
    pub fn end(mut self) {
        self.finish();
    }

    /// How the script ended by itself.
    pub fn exit_code(mut self) -> Option<i32> {
        let code = self.script.wait().expect("a child can be awaited").code();
        self.lifeline = None;
        code
    }

    fn finish(&mut self) {
        drop(self.lifeline.take());
        let status = self.script.wait().expect("a child can be awaited");
        assert!(status.success(), "node.sh: {status}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.lifeline.is_some() {
            self.finish();
        }
    }
}

/// Builds `target/image` once a run, from the sources as they are.
pub fn make_image() -> Result<()> {
    static MADE: OnceLock<Result<(), String>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let mut make = Command::new("make");
        // Build scripts that look at what cargo tells this test about itself would run again, now and next time.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"]
                .iter()
                .any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
            {
                make.env_remove(name);
            }
        }
        match make.args(["--silent", "image"]).current_dir(project()).status() {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("make image: {other:?}; it says why above")),
        }
    });
    made.clone().map_err(anyhow::Error::msg)
}

/// The project's folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command to its end, with this as its standard input; its standard output, or an error with all that it said.
pub fn run(command: &mut Command, input: &str) -> Result<String> {
    let output = output(command, input)?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?}: {}: {}{}", output.status, out, error.trim_end());
    }
    Ok(out.into_owned())
}

fn output(command: &mut Command, input: &str) -> Result<Output> {
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
