//! Waits: looks again and again, and says what is waited for.

use std::pin::pin;
use std::time::{Duration, Instant};

use jiff::Zoned;
use tokio::time;

use crate::cluster::Cluster;
use crate::failure::{ApiError, Attempt};
use crate::interrupt;
use crate::terminal::Terminal;
use crate::view::time::clock;
use crate::view::wait::{Progress, seconds};

/// Looks this often at first.
const SOON: Duration = Duration::from_millis(100);
/// For as long as this.
const IMPATIENCE: Duration = Duration::from_secs(3);
/// Looks this often afterwards.
const LATER: Duration = Duration::from_millis(500);
/// A look may take this long although the time is up: the last one begins when it is.
const LAST_LOOK: Duration = Duration::from_millis(500);

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
    look: impl AsyncFnMut(Duration) -> Result<Progress, ApiError>,
) -> Outcome {
    follow_by(&|| cluster.now(), terminal, attempt, timeout, look).await
}

async fn follow_by(
    now: &dyn Fn() -> Zoned,
    terminal: Terminal,
    attempt: Attempt<'_>,
    timeout: Duration,
    mut look: impl AsyncFnMut(Duration) -> Result<Progress, ApiError>,
) -> Outcome {
    let started = Instant::now();
    let mut line = terminal.progress();
    let mut interrupted = pin!(interrupt::pressed());
    let mut seen_at = now();
    let mut waiting = None;
    loop {
        let patience = timeout.saturating_sub(started.elapsed()).max(LAST_LOOK);
        let looked = tokio::select! {
            looked = time::timeout(patience, look(started.elapsed())) => looked,
            () = &mut interrupted => return Outcome::Interrupted,
        };
        let Ok(looked) = looked else { return late(timeout, waiting.as_deref()) };
        match looked {
            Ok(Progress::Done(message)) => return Outcome::Done(message),
            Ok(Progress::Failed(why)) => return Outcome::Failed(why),
            Ok(Progress::Waiting(what)) => {
                seen_at = now();
                line.show(&format!("{what}..."));
                waiting = Some(what);
            }
            Err(ApiError::Refused(status)) if status.code < 500 && status.code != 429 => {
                return Outcome::Failed(attempt.sentence(&ApiError::Refused(status)));
            }
            Err(error) => {
                let as_of = clock(seen_at.timestamp(), &now());
                line.show(&format!("As of {as_of}. {} Trying again...", attempt.sentence(&error)));
            }
        }
        if started.elapsed() >= timeout {
            return late(timeout, waiting.as_deref());
        }
        let pause = if started.elapsed() < IMPATIENCE { SOON } else { LATER };
        tokio::select! {
            () = time::sleep(pause.min(timeout.saturating_sub(started.elapsed()))) => {}
            () = &mut interrupted => return Outcome::Interrupted,
        }
    }
}

/// That the time is up, and what was waited for when somebody last knew.
fn late(timeout: Duration, waiting: Option<&str>) -> Outcome {
    let waiting = waiting.map_or_else(|| "no answer".to_owned(), uncapital);
    Outcome::Late(format!("After {}: {waiting}.", seconds(timeout)))
}

fn uncapital(sentence: &str) -> String {
    match sentence.strip_prefix('W') {
        Some(rest) => format!("still w{rest}"),
        None => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::future;

    use super::*;
    use crate::view::fixtures::now;

    #[tokio::test]
    async fn a_silent_api_server_does_not_outlast_the_time() {
        for (answers, said) in [
            (0, "After 0.2 s: no answer."),
            (1, "After 0.2 s: still waiting for the controller."),
            (usize::MAX, "After 0.2 s: still waiting for the controller."),
        ] {
            let mut asked = 0;
            let look = async |_: Duration| {
                asked += 1;
                if asked > answers {
                    future::pending::<()>().await;
                }
                Ok(Progress::Waiting("Waiting for the controller".to_owned()))
            };
            let attempt = Attempt { verb: "get", resource: "apikeys", name: "ci", namespace: "a", cluster: "prod-eu" };
            let (started, terminal) = (Instant::now(), Terminal::detect().quiet());
            let outcome = follow_by(&now, terminal, attempt, Duration::from_millis(200), look).await;
            assert_eq!(outcome, Outcome::Late(said.to_owned()));
            assert!(started.elapsed() < Duration::from_secs(5));
        }
    }

    #[tokio::test]
    async fn an_api_server_that_is_not_reached_has_not_answered() {
        let look = async |_: Duration| Err(ApiError::Unreachable("refused".to_owned()));
        let attempt = Attempt { verb: "get", resource: "apikeys", name: "ci", namespace: "a", cluster: "prod-eu" };
        let outcome = follow_by(&now, Terminal::detect().quiet(), attempt, Duration::ZERO, look).await;
        assert_eq!(outcome, Outcome::Late("After 0 s: no answer.".to_owned()));
    }
}
