//! `ui`: the page in the user's browser.

use crate::args::Ui;
use crate::failure::Failure;
use crate::session::Session;
use crate::ui;

/// Serves the page until somebody ends it.
pub async fn run(session: Session, asked: &Ui) -> Result<(), Failure> {
    ui::run(session.cluster, asked, session.terminal).await
}
