//! A whole cluster on this machine (`tests/testbed/node.sh`), and commands inside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, bail};
use keywright_testing::command::{Script, programs, project};

/// A running node. It ends when it is dropped, or when this process does.
pub struct Node {
    state: PathBuf,
    script: Script,
}

impl Node {
    /// Starts a node that has the images of `make image`.
    pub fn start() -> Result<Self> {
        let programs = programs()?;
        let state = std::env::temp_dir().join(format!("keywright-node-{:08x}", rand::random::<u32>()));
        let images = ["keywright", "workload"].map(|name| project().join(format!("target/image/{name}.tar")));
        let (mut script, line) = Script::start("node.sh", [programs, state.clone()].iter().chain(&images))?;
        if line != "ready" {
            bail!("the node did not start ({:?}); node.sh says why above", script.wait());
        }
        Ok(Self { state, script })
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
        self.script.wait()
    }

    fn finish(&mut self) {
        let code = self.script.end();
        assert_eq!(code, Some(0), "node.sh");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.script.is_held() {
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
