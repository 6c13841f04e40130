//! Runs the decision a number of times, for `run.sh` to count the instructions of it under callgrind.

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use keywright::key::{Key, credential};
use keywright::keyring::Keyring;
use keywright::verify::{Request, Route, check};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

const KEYS: u64 = 1000;

fn main() -> Result<()> {
    let rounds: usize = std::env::args().nth(1).context("how many rounds?")?.parse()?;
    let now: Timestamp = "2026-11-23T12:00:00Z".parse()?;
    let mut keyring = Keyring::default();
    let mut keys = Vec::new();
    for number in 0..KEYS {
        let key = Key::mint(&mut StdRng::seed_from_u64(number))?;
        let spec = json!({
            "digest": key.digest().to_string(),
            "apiKey": { "namespace": format!("team-{}", number % 10), "name": format!("billing-{number}"), "uid": "u" },
            "owner": "jane@example.com",
            "scopes": ["orders:read", "orders:write"],
            "allowedIPs": ["192.0.2.0/24", "10.0.0.0/8"],
            "notAfter": "2030-01-02T03:04:05Z",
        });
        keyring.upsert(&format!("00000000-0000-4000-8000-{number:012x}-1"), &spec)?;
        keys.push(key);
    }
    let mut allowed = 0;
    for _ in 0..rounds {
        allowed += keys.iter().filter(|key| decide(&keyring, key.reveal().as_bytes(), now)).count();
    }
    ensure!(allowed == rounds * keys.len(), "a good key was refused");
    Ok(())
}

/// From the value of a header to the decision, with every property that a key can have.
fn decide(keyring: &Keyring, key: &[u8], now: Timestamp) -> bool {
    let request = Request {
        credential: credential([].into_iter(), [black_box(key)].into_iter()),
        route: Route::read([("scope".into(), "orders:read".into())].into_iter()),
        client_address: &|| Ok([192, 0, 2, 7].into()),
    };
    black_box(check(keyring, &request, now)).is_ok()
}
