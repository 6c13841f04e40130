//! The page in a real Chromium: the real plugin, on a real API server, with the real controller, webhook and verifier.
//!
//! This starts all of it, and then `node --test`. What the browser does and sees stands in the `.mjs` files beside this one.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a test, stopping with a message is how a failure is told"
)]

mod http;
mod outage;
mod stage;

use std::path::Path;
use std::process::Stdio;

use self::stage::Stage;

#[tokio::test]
async fn the_page_works_in_a_browser() {
    let stage = Stage::new("page").await;
    stage.fill().await;
    stage.crowd().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    let files = ["path.test.mjs", "states.test.mjs", "hostile.test.mjs", "budget.test.mjs"];
    let only = std::env::var("KEYWRIGHT_BROWSER_TESTS").ok();
    let files = files
        .into_iter()
        .filter(|file| only.as_ref().is_none_or(|only| only.split(' ').any(|one| file.starts_with(one))));
    let names = std::env::var("KEYWRIGHT_BROWSER_NAMES").ok().map(|names| format!("--test-name-pattern={names}"));
    let mut node = tokio::process::Command::new("node");
    node.args(["--test", "--test-concurrency=1"]).args(names).args(files).current_dir(folder).kill_on_drop(true);
    node.env("KEYWRIGHT_STAGE", stage.told().await.to_string()).stdin(Stdio::null());
    let status = node.status().await.expect("node runs: make browser installs it");
    assert!(status.success(), "the browser's tests: {status}");
    stage.assert_that_no_key_was_printed();
}
