//! The node and the image themselves: what is left of the one, and what is in the other.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::testbed::{Cluster, Node, make_image, project, run};

/// A second node beside the shared one.
fn second() -> Node {
    make_image().expect("the image");
    Node::start().expect("a node starts")
}

/// What the node that this script kept in this folder has left on the machine.
fn remains(state: &Path, script: u32) -> Vec<String> {
    let groups = run(Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("keywright-node-{script}")]), "");
    let processes = run(Command::new("ps").args(["-eo", "args"]), "").unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let state = state.to_str().unwrap();
    let mentions = |text: &str| text.lines().filter(|line| line.contains(state)).map(str::to_owned).collect::<Vec<_>>();
    let folders = fs::exists(state).unwrap().then(|| state.to_owned()).into_iter();
    let groups = groups.unwrap_or_default();
    groups.lines().map(str::to_owned).chain(folders).chain(mentions(&processes)).chain(mentions(&mounts)).collect()
}

#[test]
fn nothing_is_left_of_a_node() {
    let _turn = Cluster::turn(); // two nodes are enough
    let node = second();
    let (state, script) = (node.state().to_owned(), node.script());
    run(&mut node.command(&["kubectl", "wait", "--for=condition=Ready", "node", "--all"]), "").expect("it is in order");
    let seen = remains(&state, script);
    assert!(seen.len() > 10, "what is to go would be noticed: {seen:#?}");
    node.end();
    assert_eq!(remains(&state, script), [""; 0]);
}

#[test]
fn nothing_is_left_of_a_node_that_is_terminated() {
    let _turn = Cluster::turn();
    let node = second();
    let (state, script) = (node.state().to_owned(), node.script());
    run(Command::new("kill").args(["-TERM", &script.to_string()]), "").expect("it runs");
    assert_eq!(node.exit_code(), Some(1));
    assert_eq!(remains(&state, script), [""; 0]);
}

#[test]
fn a_machine_that_cannot_run_a_node_is_told_so() {
    let state = std::env::temp_dir().join(format!("keywright-node-{:08x}", rand::random::<u32>()));
    let script = project().join("tests/testbed/node.sh");
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let output = Command::new("setpriv").args(nobody).arg(script).args([Path::new("/bin"), &state]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*said), (Some(3), "node.sh: no node can run here: it takes root\n"));
    assert!(!state.exists());
}

/// One file of an OCI layout in a tar.
fn member(image: &Path, name: &str) -> Vec<u8> {
    let tar = Command::new("tar").arg("xOf").arg(image).arg(name).output().unwrap();
    assert!(tar.status.success(), "{name}: {}", String::from_utf8_lossy(&tar.stderr));
    tar.stdout
}

fn described(image: &Path, descriptor: &Value) -> Vec<u8> {
    member(image, &format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/")))
}

#[test]
fn the_image_is_small_and_holds_one_program_that_runs_as_nobody() {
    make_image().expect("the image");
    let image = project().join("target/image/keywright.tar");
    let parse = |octets: Vec<u8>| serde_json::from_slice::<Value>(&octets).unwrap();
    let index = parse(member(&image, "index.json"));
    let manifest = parse(described(&image, &index["manifests"][0]));
    let config = parse(described(&image, &manifest["config"]))["config"].clone();
    // As the last stage of the Dockerfile has it.
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/keywright"]));
    assert_eq!(config["Labels"]["org.opencontainers.image.title"], "Keywright");
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    let layer = described(&image, &manifest["layers"][0]);
    assert!(layer.len() < 8_000_000, "{} octets, compressed", layer.len());
    let folder = std::env::temp_dir().join(format!("keywright-image-{:08x}.tar.gz", rand::random::<u32>()));
    fs::write(&folder, layer).unwrap();
    let listing = run(Command::new("tar").arg("tzf").arg(&folder), "").unwrap();
    fs::remove_file(&folder).unwrap();
    assert_eq!(listing, "keywright\n");
}
