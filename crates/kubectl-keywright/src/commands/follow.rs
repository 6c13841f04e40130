//! Waits: looks again and again, and says what is waited for.

use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::failure::{ApiError, Attempt};
use crate::interrupt;
use crate::terminal::Terminal;
use crate::view::time;
use crate::view::wait::{Progress, seconds};

/// Looks this often at first.
const SOON: Duration = Duration::from_millis(100);
/// For as long as this.
const IMPATIENCE: Duration = Duration::from_secs(3);
/// Looks this often afterwards.
const LATER: Duration = Duration::from_millis(500);

/// How a wait has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done: what there is to say.
    Done(String),
    /// It will not be done: why.
    Failed(String),
    /// The time is up: how long that was, and what was still waited for.
    Late(String),
    /// Somebody pressed Ctrl-C.
    Interrupted,
}

/// Looks until it is done, or cannot be, or the time is up, or somebody presses Ctrl-C.
pub async fn follow(
    (cluster, terminal): (&Cluster, Terminal),
    attempt: Attempt<'_>,
    timeout: Duration,
    mut look: impl AsyncFnMut(Duration) -> Result<Progress, ApiError>,
) -> Outcome {
    let started = Instant::now();
    let mut line = terminal.progress();
    let mut interrupted = pin!(interrupt::pressed());
    let mut seen_at = cluster.now();
    let mut waiting = String::new();
    loop {
        let looked = tokio::select! {
            looked = look(started.elapsed()) => looked,
            () = &mut interrupted => return Outcome::Interrupted,
        };
        match looked {
            Ok(Progress::Done(message)) => return Outcome::Done(message),
            Ok(Progress::Failed(why)) => return Outcome::Failed(why),
            Ok(Progress::Waiting(what)) => {
                seen_at = cluster.now();
                line.show(&format!("{what}..."));
                waiting = what;
            }
            Err(ApiError::Refused(status)) if status.code < 500 && status.code != 429 => {
                return Outcome::Failed(attempt.sentence(&ApiError::Refused(status)));
            }
            Err(error) => {
                let as_of = time::clock(seen_at.timestamp(), &cluster.now());
                line.show(&format!("As of {as_of}. {} Trying again...", attempt.sentence(&error)));
            }
        }
        if started.elapsed() >= timeout {
            return Outcome::Late(format!("After {}: {}.", seconds(timeout), uncapital(&waiting)));
        }
        let pause = if started.elapsed() < IMPATIENCE { SOON } else { LATER };
        tokio::select! {
            () = sleep(pause.min(timeout.saturating_sub(started.elapsed()))) => {}
            () = &mut interrupted => return Outcome::Interrupted,
        }
    }
}

fn uncapital(sentence: &str) -> String {
    match sentence.strip_prefix('W') {
        Some(rest) => format!("still w{rest}"),
        None => sentence.to_owned(),
    }
}
