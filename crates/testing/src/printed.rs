//! What a program prints, kept while it runs and after.

use std::io::{BufRead, BufReader};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

use super::wait::DEADLINE;

/// What a program printed: both of its streams, in order.
pub struct Output {
    /// Which program, and where it runs.
    pub title: String,
    printed: watch::Sender<Printed>,
}

#[derive(Default)]
struct Printed {
    text: String,
    complete: bool,
}

impl Output {
    pub(crate) fn new(title: String) -> Arc<Self> {
        Arc::new(Self { title, printed: watch::Sender::default() })
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        self.printed.borrow().text.clone()
    }

    pub(crate) fn read(&self, from_child: std::io::PipeReader) {
        let mut lines = BufReader::new(from_child);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            self.printed.send_modify(|printed| printed.text += &String::from_utf8_lossy(&line));
            line.clear();
        }
        self.printed.send_modify(|printed| printed.complete = true);
    }

    /// Waits until the program can print no more.
    pub(crate) async fn complete(&self) {
        let mut printed = self.printed.subscribe();
        let waited = timeout(DEADLINE, printed.wait_for(|printed| printed.complete)).await;
        assert!(waited.is_ok_and(|waited| waited.is_ok()), "{}: its output does not end", self.title);
    }

    /// Waits for a JSON line that holds the text, and gives its fields.
    pub(crate) async fn line(&self, containing: &str) -> Value {
        let find = |printed: &Printed| {
            let line = printed.text.lines().find(|line| line.contains(containing) && line.ends_with('}'))?;
            serde_json::from_str(line).ok()
        };
        let mut printed = self.printed.subscribe();
        let waited = timeout(DEADLINE, printed.wait_for(|printed| printed.complete || find(printed).is_some())).await;
        let found = waited.ok().and_then(Result::ok).and_then(|printed| find(&printed));
        found.unwrap_or_else(|| panic!("{} ended or took too long; no {containing} in:\n{}", self.title, self.text()))
    }
}
