//! Clocks of machines that are set while programs run. Expiry goes by them; what revocation promises does not.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use keywright_core::fence::{Content, Holder, State};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use crate::scene::{INSIDE, Scene};
use keywright_testing::{Installation, Program, output};

/// The wall clock of some programs. Their monotonic clocks are the machine's.
struct WallClock {
    offset: PathBuf,
}

impl WallClock {
    fn new(installation: &Installation) -> Self {
        let clock = Self { offset: std::env::temp_dir().join(format!("{}-clock", installation.tenant_namespace)) };
        clock.set("+0");
        clock
    }

    /// Off by so much from now on: `+3600`, in seconds.
    fn set(&self, offset: &str) {
        let written = self.offset.with_extension("new");
        std::fs::write(&written, offset).unwrap();
        std::fs::rename(&written, &self.offset).unwrap();
    }

    async fn start(&self, installation: &Installation, role: &'static str, argument: &str) -> Program {
        let launch = installation.program(role).argument(argument);
        let program = launch
            .variable("LD_PRELOAD", &library())
            .variable("FAKETIME_TIMESTAMP_FILE", self.offset.to_str().unwrap())
            .variable("FAKETIME_NO_CACHE", "1")
            .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .start()
            .await;
        program.ready().await;
        program
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.offset);
    }
}

/// What stands between a program and its wall clock, as `faketime` has it loaded; `-m`: into one with threads.
fn library() -> String {
    let mut faketime = Command::new("faketime");
    output(faketime.args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"])).unwrap().trim_end().to_owned()
}

#[tokio::test]
async fn an_hour_forward_and_an_hour_back_change_nothing_but_expiry() {
    let installation = Installation::new("clocks").await;
    let clock = WallClock::new(&installation);
    let verifier = clock.start(&installation, "verifier", "--lease-duration=10s").await;
    let controller = clock.start(&installation, "controller", "--leader-elect=false").await;
    let scene = Scene { verifier, controller: Some(controller), installation };
    scene.declare("short", json!({"expiresIn": "30m"})).await;
    let short = scene.key("short", 1).await;
    for name in ["forward", "back", "lasting"] {
        scene.declare(name, json!({})).await;
    }
    let lasting = scene.key("lasting", 1).await;

    for (offset, name, expected) in [("+3600", "forward", 401), ("+0", "back", 200)] {
        let key = scene.key(name, 1).await;
        scene.answers(&key, INSIDE, 200).await;
        clock.set(offset);
        // So the clock was set.
        scene.answers(&short, INSIDE, expected).await;
        // For longer than the verifier relies on one renewal.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(12) {
            assert_eq!(scene.ask(&lasting, INSIDE, "/verify").await.status, 200, "{name}: {:?}", began.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        scene.delete(name).await;
        assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 401, "{name}");
    }

    // A silent Lease is waited for by the monotonic clock, however far the other one jumps.
    let leases: Api<Lease> = scene.installation.system();
    for (offset, name) in [("+3600", "waits-forward"), ("+0", "waits-back")] {
        let began = Timestamp::now();
        let content = Content { state: State::Joining, applied: None };
        let silent = content.object(&Holder::new("silent", 1, Duration::from_secs(6)), None, Timestamp::now());
        leases.create(&PostParams::default(), &silent).await.unwrap();
        scene.declare(name, json!({})).await;
        clock.set(offset);
        scene.key(name, 1).await;
        scene.delete(name).await;
        let took = Timestamp::now().duration_since(began);
        assert!(took >= SignedDuration::from_secs(6), "{offset}: {took}");
        assert!(took < SignedDuration::from_mins(30), "{offset}: {took}, and not until the clock says so");
        assert!(leases.get_opt("silent").await.unwrap().is_none());
    }
}
