//! The plugin as kubectl finds it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use keywright_testing::output;
use serde_json::json;

use super::person::Scene;

#[tokio::test]
async fn kubectl_runs_it_and_completes_its_words() {
    let scene = Scene::of_admin("kubectl").await;
    scene.declare("ci", json!({"expiresIn": "1d"})).await;
    let plugin = Path::new(env!("CARGO_BIN_EXE_kubectl-keywright")).parent().unwrap();
    let (folder, programs) = (scene.installation.control_plane.folder(), scene.installation.control_plane.programs());
    let path = [&folder, plugin, programs].map(|folder| folder.display().to_string()).join(":");
    let kubectl = |line: &str| {
        let mut kubectl = scene.installation.control_plane.kubectl(line.split(' '));
        kubectl.env("PATH", format!("{path}:{}", std::env::var("PATH").unwrap()));
        kubectl.env("KUBECONFIG", scene.kubeconfig());
        output(&mut kubectl).unwrap()
    };
    assert!(kubectl("keywright list").contains("ci "));
    let script = kubectl("keywright completion kubectl");
    let file = folder.join("kubectl_complete-keywright");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let words = |line: &str| kubectl(line).lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(words("__complete keywright re").contains(&"revoke".to_owned()));
    assert!(words("__complete keywright describe ").contains(&"ci".to_owned()), "the names of what there is");
    assert!(words("__complete keywright list --so").contains(&"--sort-by".to_owned()));
}

#[tokio::test]
async fn scripts_and_man_pages_are_written() {
    let scene = Scene::of_admin("man").await;
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef kubectl-keywright"), ("fish", "complete -c")] {
        scene.run(&format!("completion {shell}")).await.exits(0).prints(word);
    }
    let folder = scene.installation.control_plane.folder();
    scene.run(&format!("man --directory {}", folder.display())).await.exits(0);
    scene.run("man --directory /nonexistent").await.exits(2).says("there is no such directory");
    let page = std::fs::read_to_string(folder.join("kubectl-keywright-revoke.1")).unwrap();
    assert!(page.contains("at once and for good") && page.contains("kubectl keywright revoke ci"), "{page}");
    scene.run("revoke --help").await.exits(0).prints("Usage: kubectl keywright revoke").prints("Examples:");
    scene.run("--help").await.exits(0).prints("Exit codes: 0 done");
    scene.run("nonsense").await.exits(2).says("nonsense");
}
