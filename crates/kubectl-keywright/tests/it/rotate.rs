//! A rotation is done when the new key is where it belongs.

use serde_json::json;

use super::person::{INSIDE, Scene};

#[tokio::test]
async fn a_rotated_key_is_in_its_secret_and_the_old_one_still_works() {
    let scene = Scene::of_admin("rotate").await;
    scene.declare("ci", json!({"rotation": {"overlap": "1h"}})).await;
    let first = scene.delivered("ci").await;
    let ran = scene.run("rotate ci --wait").await.exits(0).prints("Rotated in ").prints("Old key ends ");
    let second = scene.delivered("ci").await;
    assert_ne!(first, second);
    assert!(ran.output.contains(&second[..14]) && !ran.output.contains(&second[..15]), "{ran:?}");
    for key in [&first, &second] {
        assert_eq!(scene.ask(key, INSIDE).await, 200);
    }
    let described = scene.run("describe ci").await.exits(0).prints("Rotating: let in; old key until ");
    described.prints(&format!("Old key   {}, no. 1, ends in 59 min", &first[..14]));
    scene.run("rotate ci --wait").await.exits(0);
    assert_ne!(scene.delivered("ci").await, second, "each request is a new one");
}

#[tokio::test]
async fn what_cannot_be_rotated_is_told_before_or_instead_of_waiting() {
    let scene = Scene::of_admin("no-rotation").await;
    scene.run("create laptop --local --print").await.exits(0);
    scene.run("rotate laptop --wait").await.exits(2).says("made elsewhere");
    scene.declare("ci", json!({"suspended": true})).await;
    scene.run("rotate ci --wait").await.exits(3).says("is suspended: its rotation waits until it is resumed");
}
