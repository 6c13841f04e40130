//! `ui`: the page in the user's browser.

use crate::failure::Failure;
use crate::session::Session;
use crate::ui::{self, UiOptions};

/// Serves the page until Ctrl-C.
pub async fn run(session: Session, asked: &UiOptions) -> Result<(), Failure> {
    let Session { cluster, terminal } = session;
    let tell = |address: &str| {
        terminal.print(&format!("{address}\n"))?;
        terminal.say("Open this address in a browser on this machine. It works once. Ctrl-C ends the page.");
        Ok(())
    };
    ui::run(cluster, asked, tell).await
}
