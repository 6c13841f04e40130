//! Something done over and over beside a test, each time with a line that says how it went.

use std::io::BufRead;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use keywright_testing::command::lines;

use super::tenant::{KEY_FILE, LET_IN, Tenant, request};
use super::{DEADLINE, report};

/// Runs until it is stopped.
pub struct Traffic {
    child: Child,
    reader: Option<JoinHandle<()>>,
    tally: Arc<(Mutex<Tally>, Condvar)>,
}

/// How it went so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// How often it was done.
    pub done: usize,
    /// The lines that were not as expected.
    pub wrong: Vec<String>,
}

impl Traffic {
    /// The Pod calls the workload with its mounted key, one request after the other.
    pub fn of_requests(tenant: &Tenant<'_>, pod: &str) -> Self {
        let script = format!("while :; do {} || echo failed; sleep 0.01; done", request(KEY_FILE));
        let exec = ["kubectl", "-n", &tenant.namespace, "exec", pod, "--", "sh", "-c", &script];
        Self::start(tenant.cluster.node().command(&exec), |line| line == LET_IN)
    }

    /// The shell script runs inside the node, and its lines have to satisfy `good`.
    pub fn start(mut command: Command, good: impl Fn(&str) -> bool + Send + 'static) -> Self {
        let (child, output) = lines(&mut command).expect("it starts");
        let tally = Arc::new((Mutex::new(Tally::default()), Condvar::new()));
        let shared = Arc::clone(&tally);
        let reader = thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let mut tally = shared.0.lock().unwrap();
                tally.done += 1;
                if !good(&line) {
                    tally.wrong.push(line);
                }
                shared.1.notify_all();
            }
        });
        Self { child, reader: Some(reader), tally }
    }

    /// Waits until it was done so many times more.
    #[track_caller]
    pub fn goes_on(&self, times: usize) {
        let (tally, changed) = &*self.tally;
        let tally = tally.lock().unwrap();
        let goal = tally.done + times;
        let (tally, waited) = changed.wait_timeout_while(tally, DEADLINE, |tally| tally.done < goal).unwrap();
        assert!(!waited.timed_out(), "done {} times, awaited {goal}", tally.done);
    }

    /// Ends it. How it went.
    pub fn stop(mut self, what: &str) -> Tally {
        self.end();
        let tally = std::mem::take(&mut *self.tally.0.lock().unwrap());
        report(&format!("{what}: {} times, {} wrong", tally.done, tally.wrong.len()));
        tally
    }

    fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

impl Tally {
    /// It was done at least so often, and not once went wrong.
    #[track_caller]
    pub fn flawless(&self, at_least: usize) {
        assert!(self.done >= at_least && self.wrong.is_empty(), "{} times; wrong: {:#?}", self.done, self.wrong);
    }
    /// Some requests got no answer, which nginx says as 500, but nobody was refused.
    #[track_caller]
    pub fn no_refusal(&self) {
        let refusal = |line: &&String| !line.contains("returned error: 500") && *line != "failed";
        assert_eq!(self.wrong.iter().filter(refusal).count(), 0, "{:#?}", self.wrong);
    }
}
