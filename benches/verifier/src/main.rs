//! Measures Keywright's verifier, always beside a server that decides nothing and in turns with it.
//!
//! Only ratios within one run mean anything: see `docs/performance.md`. This is a tool, run by hand: it stops with a
//! message where something is not as it should be.

mod base;
mod bytes;
mod load;
mod processes;
mod records;
mod report;

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use keywright_measure::population;
use mimalloc::MiMalloc;

use crate::load::{Client, Load, Protocol};

/// The same as the verifier's.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const USAGE: &str = "keywright-bench-verifier base-http ADDRESS | base-grpc ADDRESS | \
                     load ADDRESS CONNECTIONS STREAMS KEYS SECONDS | report KEYWRIGHT FOLDER";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["base-http", address] => base::http(address.parse().context(USAGE)?),
        ["base-grpc", address] => base::grpc(address.parse().context(USAGE)?),
        ["load", address, connections, streams, keys, seconds] => {
            let protocol = Protocol::Grpc { streams: streams.parse().context(USAGE)? };
            let keys: Vec<_> = (0..keys.parse().context(USAGE)?).map(population::key_text).collect();
            let duration = Duration::from_secs(seconds.parse().context(USAGE)?);
            let (address, connections) = (address.parse().context(USAGE)?, connections.parse().context(USAGE)?);
            // With the API server.
            let shares_its_core = true;
            let load = Load { address, protocol, connections, keys: &keys, rate: None, duration, shares_its_core };
            let outcome = Client::connect(load)?.run()?;
            ensure!(
                outcome.allowed == outcome.answered(),
                "{} of {} were allowed",
                outcome.allowed,
                outcome.answered()
            );
            println!("{:.0}", outcome.per_second());
            Ok(())
        }
        ["report", program, folder] => report::run(program.as_ref(), folder.as_ref()),
        _ => bail!(USAGE),
    }
}
