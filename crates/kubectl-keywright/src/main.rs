//! `kubectl keywright`: API keys for people, on their own rights.

use std::process::ExitCode;

use clap::Parser;
use kubectl_keywright::args::{Arguments, refuse_keys};
use kubectl_keywright::commands;
use kubectl_keywright::failure::Failure;
use kubectl_keywright::terminal::Terminal;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            Terminal::detect().say(&failure.to_string());
            ExitCode::from(failure.code().number())
        }
    }
}

async fn run() -> Result<(), Failure> {
    refuse_keys(std::env::args_os())?;
    commands::run(Arguments::parse()).await
}
