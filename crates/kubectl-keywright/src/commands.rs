//! The commands: each reads, asks the pure part what to say, and prints.

mod check_route;
mod completion;
mod create;
mod describe;
mod explain;
mod follow;
mod list;
mod man;
mod revoke;
mod rotate;
mod ui;
mod whose;

use crate::args::{Arguments, Command};
use crate::failure::Failure;
use crate::session::Session;

/// Carries a command out.
///
/// # Errors
/// Why it was not done.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let options = &arguments.cluster;
    match arguments.command {
        Command::Create(asked) => create::run(options, &asked).await,
        Command::List(asked) => list::list(&Session::start(options).await?, &asked).await,
        Command::Unused(asked) => list::unused(&Session::start(options).await?, &asked).await,
        Command::Expiring(asked) => list::expiring(&Session::start(options).await?, &asked).await,
        Command::Describe(asked) => describe::run(&Session::start(options).await?, &asked).await,
        Command::Rotate(asked) => rotate::run(&Session::start(options).await?, &asked).await,
        Command::Revoke(asked) => revoke::run(&Session::start(options).await?, &asked).await,
        Command::Explain(asked) => explain::run(&Session::start(options).await?, &asked).await,
        Command::Whose(asked) => whose::run(&Session::start(options).await?, &asked).await,
        Command::CheckRoute(asked) => check_route::run(&Session::start(options).await?, &asked).await,
        Command::Ui(asked) => ui::run(Session::start(options).await?, &asked).await,
        Command::Completion(asked) => completion::script(asked.shell),
        Command::Complete(asked) => completion::complete(options, &asked.words).await,
        Command::Man(asked) => man::write(&asked.directory),
    }
}
