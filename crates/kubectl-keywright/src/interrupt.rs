//! Ctrl-C: one handler for the whole program. It is set up where a command begins to change something: until then Ctrl-C ends
//! the program, and nothing is left behind.

use std::future;
use std::sync::OnceLock;

use tokio::sync::watch;

/// Whether somebody has pressed Ctrl-C: also before anybody asked, so that none is missed between two waits.
static PRESSED: OnceLock<watch::Receiver<bool>> = OnceLock::new();

/// Ends once somebody has pressed Ctrl-C.
pub async fn pressed() {
    let mut pressed = PRESSED.get_or_init(handler).clone();
    if pressed.wait_for(|pressed| *pressed).await.is_err() {
        // There is no handler: Ctrl-C ends the program.
        future::pending::<()>().await;
    }
}

/// What comes of the work. `None` if somebody presses Ctrl-C before it is done.
pub async fn unless_pressed<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = pressed() => None,
    }
}

fn handler() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            sender.send_replace(true);
        }
    });
    receiver
}
