//! A key is shown once, to whom it belongs, and works when it is shown.

use std::process::Stdio;

use keywright_core::key::{Digest, Presented};
use keywright_testing::wait;
use kube::ResourceExt;
use tokio::process::Command;

use super::person::{INSIDE, OUTSIDE, Scene, keywright_role};

#[tokio::test]
async fn a_key_works_when_it_is_shown_and_is_all_of_standard_output() {
    let scene = Scene::of_admin("create").await;
    let line =
        "create ci --print --expires 90d --allow-ip 192.0.2.0/24,2001:db8::1 --scope read --owner ann@example.org";
    let ran = scene.run(line).await.exits(0).says("known to every verifier after").says("Key, shown once:");
    assert!(Presented::parse(ran.output.as_bytes()).is_ok(), "a key and nothing else: {} octets", ran.output.len());
    assert_eq!(scene.ask(&ran.output, INSIDE).await, 200, "at once");
    assert_eq!(scene.ask(&ran.output, OUTSIDE).await, 403);
    assert_eq!(scene.delivered("ci").await, ran.output);
    assert!(!ran.said.contains(&ran.output));
    let spec = scene.api_keys().get("ci").await.unwrap().spec;
    assert_eq!((spec.expires_in.as_deref(), spec.owner.as_deref()), (Some("90d"), Some("ann@example.org")));
    assert_eq!((spec.allowed_ips.unwrap().len(), spec.scopes), (2, vec!["read".to_owned()]));
    scene.run("create ci --print").await.exits(1).says("There is already an ApiKey ci");
}

#[tokio::test]
async fn a_key_that_is_made_here_leaves_only_its_digest_there() {
    let mut scene = Scene::new("local", &[keywright_role("keywright-admin")]).await;
    let ran = scene.run("create laptop --local --print --expires 30d").await.exits(0).says("known to every verifier");
    assert_eq!(scene.ask(&ran.output, INSIDE).await, 200);
    let spec = scene.api_keys().get("laptop").await.unwrap().spec;
    assert_eq!(spec.key_hash, Some(Digest::of(ran.output.as_bytes()).to_string()));
    assert!(scene.secrets().get_opt("laptop").await.unwrap().is_none());

    scene.controller.take().unwrap().kill().await;
    let late = scene.run("create late --local --print --timeout 2s").await.exits(3).says("not known everywhere");
    let digest = scene.api_keys().get("late").await.unwrap().spec.key_hash;
    assert_eq!(digest, Some(Digest::of(late.output.as_bytes()).to_string()), "nobody else has the key: it is shown");
}

#[tokio::test]
async fn a_key_goes_into_a_file_of_its_owner_and_never_over_another() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::of_admin("file").await;
    let folder = scene.installation.control_plane.folder();
    let file = folder.join("ci.key");
    let line = format!("create ci --output-file {}", file.display());
    let ran = scene.run(&line).await.exits(0).says("The key is in ");
    assert_eq!(ran.output, "");
    let key = std::fs::read_to_string(&file).unwrap();
    assert_eq!(scene.ask(&key, INSIDE).await, 200);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    scene.run(&line.replace("create ci", "create cd")).await.exits(2).says("it exists, and is not written over");
    assert!(scene.api_keys().get_opt("cd").await.unwrap().is_none());
    let refused = folder.join("ci-again.key");
    scene.run(&format!("create ci --output-file {}", refused.display())).await.exits(1);
    assert!(!refused.exists(), "a file without a key in it goes");
    scene.run(&format!("create ci --local --output-file {}", refused.display())).await.exits(1);
    assert!(!refused.exists(), "so does one whose key was refused");
}

#[tokio::test]
async fn a_key_that_cannot_be_written_is_not_made_and_one_that_is_lost_is_named() {
    let scene = Scene::of_admin("unwritten").await;
    let file = scene.installation.control_plane.folder().join("unwritten.key");
    let is_there = async |name: &str| scene.api_keys().get_opt(name).await.unwrap().is_some();

    let no_space = "trap '' XFSZ; ulimit -f 0; exec \"$@\"";
    let into_file = |name: &str| format!("create {name} --expires 1d --output-file {}", file.display());
    let ran = scene.run_by_shell(no_space, &format!("{} --local", into_file("full"))).await.exits(2);
    ran.says("cannot be written").says("Nothing was created.");
    assert!(!is_there("full").await && !file.exists());
    let ran = scene.run_by_shell(no_space, &into_file("delivered")).await.exits(1).says("cannot be written");
    ran.says("The key is in Secret delivered, entry api-key.");
    assert!(!file.exists());

    let to_full = "exec \"$@\" >/dev/full";
    let ran = scene.run_by_shell(to_full, "create lost --local --print --expires 1d").await.exits(1);
    ran.says("Standard output cannot be written").says("/lost on testbed is lost, and may be let in: revoke it.");
    let ran = scene.run_by_shell(to_full, "create kept --print --expires 1d").await.exits(1);
    ran.says("Standard output cannot be written").says("The key is in Secret kept, entry api-key.");

    for nowhere in ["exec \"$@\" >&-", "exec \"$@\" >/dev/null"] {
        for flags in ["--local --print", "--print"] {
            let ran = scene.run_by_shell(nowhere, &format!("create nowhere {flags}")).await.exits(2);
            ran.says("Standard output is closed, or the null device").says("Nothing was created.");
        }
    }
    assert!(!is_there("nowhere").await);
    scene.run("create late --local --print --expires 2020-01-01").await.exits(2).says("has passed");
    assert!(!is_there("late").await);
}

#[tokio::test]
async fn a_key_that_was_made_here_is_shown_when_the_program_is_ended() {
    let scene = Scene::of_admin("stopped").await;
    scene.verifier.signal("STOP");
    for signal in ["TERM", "HUP"] {
        let name = signal.to_lowercase();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-keywright"));
        command.args(["create", &name, "--local", "--print"]).env("KUBECONFIG", scene.kubeconfig());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let api_keys = scene.api_keys();
        wait::until("it is created", async || api_keys.get_opt(&name).await.unwrap().is_some()).await;
        let process = child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-s", signal, &process]).status().await.unwrap().success());
        let ended = child.wait_with_output().await.unwrap();
        assert_eq!(ended.status.code(), Some(130), "{ended:?}");
        let stored = api_keys.get(&name).await.unwrap().spec.key_hash;
        assert_eq!(stored, Some(Digest::of(&ended.stdout).to_string()), "{ended:?}");
    }
    scene.verifier.signal("CONT");
}

#[tokio::test]
async fn a_pipe_gets_no_key_unasked_and_a_terminal_does() {
    let scene = Scene::of_admin("pipe").await;
    scene.run("create ci").await.exits(2).says("Standard output is no terminal").says("Nothing was created.");
    assert!(scene.api_keys().get_opt("ci").await.unwrap().is_none());
    let seen = scene.at_terminal("create ci --expires 1d", 120, &[]).await.exits(0).prints("Key, shown once:").output;
    let key = scene.delivered("ci").await;
    assert_eq!(seen.matches(&key).count(), 1, "{}", seen.replace(&key, "KEY"));
    let ran = scene.run("create quiet --expires 1d --no-print").await.exits(0).says("The key is in Secret quiet");
    assert_eq!(ran.output, "");
}

#[tokio::test]
async fn a_mistake_is_told_before_anything_is_made_and_a_final_failure_at_once() {
    let scene = Scene::of_admin("mistake").await;
    let ran = scene.run("create ci --no-print --allow-ip 10.0.0.1/8").await.exits(2);
    ran.says("spec.allowedIPs[0]").says("did you mean \"10.0.0.0/8\"?").says("Nothing was created.");
    assert!(scene.api_keys().get_opt("ci").await.unwrap().is_none());
    let taken = serde_json::json!({"metadata": {"name": "taken"}, "stringData": {"x": "y"}});
    let taken = serde_json::from_value(taken).unwrap();
    scene.secrets().create(&Default::default(), &taken).await.unwrap();
    let started = std::time::Instant::now();
    let ran = scene.run("create taken --print --timeout 1m").await.exits(1).says("SecretNameTaken");
    assert_eq!(ran.output, "");
    assert!(started.elapsed() < wait::DEADLINE, "no need to wait for what cannot come");
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let scene = Scene::of_admin("dry-run").await;
    let manifest = scene.run("create ci --expires 90d --dry-run=client -o yaml").await.exits(0).output;
    let read: serde_json::Value = serde_yaml::from_str(&manifest).unwrap();
    assert_eq!((&read["kind"], &read["spec"]["expiresIn"]), (&"ApiKey".into(), &"90d".into()));
    let stored = scene.run("create ci --expires 90d --dry-run=server -o json").await.exits(0).output;
    let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
    assert!(stored["metadata"]["uid"].is_string(), "what the API server says: {stored}");
    assert_eq!(scene.api_keys().list(&Default::default()).await.unwrap().items.len(), 0);
    let file = scene.installation.control_plane.write_private("plugin-manifest.yaml", &manifest);
    let mut apply = scene.installation.control_plane.kubectl(["apply", "--filename"]);
    keywright_testing::output(apply.arg(file)).unwrap();
    assert_eq!(scene.api_keys().get("ci").await.unwrap().name_any(), "ci");
}

#[tokio::test]
async fn what_the_webhook_warns_of_is_told() {
    let scene = Scene::of_admin("warnings").await;
    let _webhook = scene.installation.webhook().await;
    let ran = scene.run("create ci --no-print").await.exits(0).says("Warning: ").says("never expires");
    drop(ran);
    let owner = scene.api_keys().get("ci").await.unwrap().spec.owner.unwrap();
    assert!(owner.ends_with(":ann"), "who creates a key answers for it: {owner}");
}
