//! Measures Keywright's verifier, always beside a server that decides nothing and in turns with it.
//!
//! Only ratios within one run mean anything: see `docs/performance.md`. This is a tool, run by hand: it stops with a
//! message where something is not as it should be.

mod base;
mod bytes;
mod load;
mod population;
mod processes;
mod records;
mod report;
mod statistics;

use anyhow::{Context, bail};
use mimalloc::MiMalloc;

/// The same as the verifier's.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const USAGE: &str = "keywright-bench-verifier base-http ADDRESS | base-grpc ADDRESS | report KEYWRIGHT FOLDER";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["base-http", address] => base::http(address.parse().context(USAGE)?),
        ["base-grpc", address] => base::grpc(address.parse().context(USAGE)?),
        ["report", program, folder] => report::run(program.as_ref(), folder.as_ref()),
        _ => bail!(USAGE),
    }
}
