//! What ends a command early: Ctrl-C, or somebody who ends the program. It has one handler for the whole program, which is set
//! up where a command begins to change something: until then the program just ends, and nothing is left behind.

use std::future;
use std::sync::OnceLock;

use tokio::sync::watch;

use crate::failure::Failure;

/// Whether somebody has pressed Ctrl-C, or ended the program: also before anybody asked, so that none is missed between two waits.
static PRESSED: OnceLock<watch::Receiver<bool>> = OnceLock::new();

/// Ends once somebody has pressed Ctrl-C, closed the terminal, or ended the program.
pub async fn pressed() {
    let mut pressed = PRESSED.get_or_init(handler).clone();
    if pressed.wait_for(|pressed| *pressed).await.is_err() {
        // There is no handler: it just ends.
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

/// Listens at once; ends with Ctrl-C, when the terminal is closed, or when somebody ends the program: for what has to clear up.
///
/// # Errors
/// If signals cannot be heard.
#[cfg(unix)]
pub fn stopped() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};

    let listen = |kind| signal(kind).map_err(|error| Failure::failed(format!("Signals cannot be heard: {error}.")));
    let mut pressed = listen(SignalKind::interrupt())?;
    let (mut ended, mut closed) = (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    Ok(async move {
        tokio::select! {
            _ = pressed.recv() => {}
            _ = ended.recv() => {}
            _ = closed.recv() => {}
        }
    })
}

/// Listens at once; ends with Ctrl-C or Ctrl-Break, or when the console is closed. Then Windows leaves a few seconds.
///
/// # Errors
/// If they cannot be heard.
#[cfg(windows)]
pub fn stopped() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close};

    let unheard = |error| Failure::failed(format!("Ctrl-C cannot be heard: {error}."));
    let mut pressed = ctrl_c().map_err(unheard)?;
    let (mut ended, mut closed) = (ctrl_break().map_err(unheard)?, ctrl_close().map_err(unheard)?);
    Ok(async move {
        tokio::select! {
            _ = pressed.recv() => {}
            _ = ended.recv() => {}
            _ = closed.recv() => {}
        }
    })
}

fn handler() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    if let Ok(stopped) = stopped() {
        tokio::spawn(async move {
            stopped.await;
            sender.send_replace(true);
        });
    }
    receiver
}
