//! Lists are for people in a terminal, and complete in a pipe.

use futures::StreamExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::person::{INSIDE, Scene};

#[tokio::test]
async fn a_list_says_what_kubectl_says_and_sorts_never_where_it_belongs() {
    let scene = Scene::of_admin("list").await;
    scene.declare("forever", json!({"owner": "bob@x", "displayName": "Old\u{202e}cron"})).await;
    scene.declare("short", json!({"owner": "ann@x", "expiresIn": "1d", "allowedIPs": ["192.0.2.0/24"]})).await;
    let key = scene.delivered("short").await;
    assert_eq!(scene.ask(&key, INSIDE).await, 200);

    let names = |text: &str| -> Vec<String> {
        text.lines().skip(1).map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let listed = scene.run("list --sort-by expires").await.exits(0).prints("in 23h").prints("Never").output;
    let header: Vec<_> =
        listed.lines().next().unwrap().split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(header, ["NAME", "OWNER", "KEY", "CREATED", "LAST USED", "EXPIRES", "STATUS"]);
    assert_eq!(names(&listed), ["short", "forever"]);
    assert!(!listed.contains('\u{1b}'), "a pipe has no colours");
    assert_eq!(names(&scene.run("list").await.output), ["forever", "short"]);
    assert_eq!(names(&scene.run("list --owner ann@x").await.output), ["short"]);
    let wide = scene.run("list -o wide").await.exits(0).prints("192.0.2.0/24").prints("Old\\u{202e}cron");
    assert!(!wide.output.contains('\u{202e}'));
    wide.prints("no end, any address");

    let list: Value = serde_json::from_str(&scene.run("list -o json").await.exits(0).output).unwrap();
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("List"), 2));
    assert_eq!(list["items"][0]["kind"], "ApiKey");
    assert_eq!(scene.run("list -o name").await.output, "apikey.keywright.dev/forever\napikey.keywright.dev/short\n");
    let one: Value = serde_json::from_str(&scene.run("describe short -o json").await.exits(0).output).unwrap();
    assert_eq!((&one["kind"], &one["metadata"]["name"]), (&json!("ApiKey"), &json!("short")));

    assert_eq!(names(&scene.run("expiring --within 2d").await.output), ["short"]);
    scene.run("expiring --within 1h").await.exits(0).says("No active API key ends within 1h");
    scene.run("unused --for 1d").await.exits(0).says("No active API key was unused for 1d");
    assert_eq!(names(&scene.run("unused --for 0s").await.output).len(), 2);
}

#[tokio::test]
async fn a_narrow_terminal_gets_fewer_columns_and_is_told_so() {
    let scene = Scene::of_admin("narrow").await;
    scene.declare("a-rather-long-name-of-a-key", json!({"owner": "ann@example.org", "expiresIn": "1d"})).await;
    let wide = scene.at_terminal("list", 200, &[]).await.exits(0).prints("CREATED").prints("\u{1b}[32mActive").output;
    assert!(!wide.contains("Too narrow"));
    let narrow = scene.at_terminal("list", 80, &[]).await.exits(0).prints("a-rather-long-name-of-a-key").output;
    assert!(!narrow.contains("ann@example.org"), "{narrow}");
    assert!(narrow.contains("Too narrow for CREATED, OWNER"), "{narrow}");
}

#[tokio::test]
async fn who_wants_no_colours_gets_lines_and_no_controls() {
    let scene = Scene::of_admin("plain").await;
    let ran = scene.at_plain_terminal("create ci --expires 1d").await.exits(0).prints("Waiting for the controller...");
    let key = scene.delivered("ci").await;
    assert!(ran.output.contains(&key) && !ran.output.contains('\u{1b}'), "{}", ran.output.replace(&key, "KEY"));
    let ran = scene.at_plain_terminal("list").await.exits(0).prints("Active");
    assert!(!ran.output.contains('\u{1b}'), "{ran:?}");
}

#[tokio::test]
async fn a_list_is_complete_however_many_there_are() {
    let mut scene = Scene::of_admin("pages").await;
    scene.controller.take().unwrap().kill().await;
    let api_keys = scene.api_keys();
    let created = (0..501).map(|number| {
        let name = format!("key-{number}");
        let object =
            json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name}, "spec": {}});
        let (api_keys, object) = (api_keys.clone(), serde_json::from_value(object).unwrap());
        async move { api_keys.create(&Default::default(), &object).await.unwrap() }
    });
    futures::stream::iter(created).buffer_unordered(16).for_each(|_| async {}).await;
    let listed = scene.run("list").await.exits(0).prints("New").output;
    assert_eq!(listed.lines().count(), 1 + 501);
}

#[tokio::test]
async fn what_others_wrote_into_a_status_hides_no_key() {
    let mut scene = Scene::of_admin("unreadable").await;
    scene.declare("bad", json!({"owner": "ann@x", "expiresIn": "1d"})).await;
    scene.declare("good", json!({"description": "Old\u{202e}cron", "expiresIn": "1d"})).await;
    scene.controller.take().unwrap().kill().await;
    let status = Patch::Merge(json!({"status": {"lastUsedAt": "9999-12-31T23:59:59Z"}}));
    let unreadable = scene.api_keys().patch_status("bad", &PatchParams::default(), &status).await;
    assert!(unreadable.is_err(), "the API server takes it, and no ApiKey can hold it");
    scene.run("list").await.exits(0).prints("good").prints("bad   ann@x");
    scene.run("describe bad").await.exits(0).prints("ann@x");
    for format in ["json", "yaml"] {
        let list = scene.run(&format!("list -o {format}")).await.exits(0).prints("Old\\u202ecron");
        let list: Value = serde_yaml::from_str(&list.output).unwrap();
        assert_eq!(list["items"][1]["spec"]["description"], "Old\u{202e}cron");
    }
    let ahead = [("", "y\r"), ("Revoke bad? [y/N] ", "n\r")];
    scene.at_terminal("revoke bad", 120, &ahead).await.exits(1).prints("Nothing was revoked.");
    scene.run("revoke bad --yes --timeout 1s").await.says("bad");
    assert!(scene.api_keys().get_metadata("bad").await.unwrap().metadata.deletion_timestamp.is_some());
}
