//! What an end-to-end test stands on: a node, Keywright installed on it by helm, a tenant's workload, and traffic.

mod cluster;
mod node;
mod tenant;
mod traffic;

use std::fmt::Debug;
use std::io::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub use cluster::{Cluster, SYSTEM};
pub use keywright_testing::command::{project, run};
pub use node::{Node, make_image};
pub use tenant::{LET_IN, Tenant};
pub use traffic::Traffic;

/// How long anything may take that normally takes seconds.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until the answer will do. For what Kubernetes has no condition for.
#[track_caller]
pub fn eventually<T: Debug>(what: &str, ask: impl Fn() -> T, good: impl Fn(&T) -> bool) -> T {
    let started = Instant::now();
    loop {
        let answer = ask();
        if good(&answer) {
            return answer;
        }
        assert!(started.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}; last: {answer:?}");
        sleep(Duration::from_millis(50));
    }
}

/// A figure for whoever looks on. Also of a test that passes, whose output is hidden otherwise.
pub fn report(figure: &str) {
    writeln!(std::io::stderr(), "    {figure}").ok();
}
