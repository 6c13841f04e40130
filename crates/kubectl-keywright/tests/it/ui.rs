//! How the page gets into the browser. The page itself: `tests/browser`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use keywright_testing::{Program, wait};

use super::person::Scene;

/// Stands in for a desktop: keeps its arguments, and what the file says that they name.
const BROWSER: &str = r#"#!/bin/sh
folder=$(dirname "$0")
stat -c %a "$1" >"$folder/mode"
cat "$1" >"$folder/signpost"
printf '%s\n' "$*" >"$folder/arguments.new"
mv "$folder/arguments.new" "$folder/arguments"
"#;

#[tokio::test]
async fn the_token_of_the_page_is_no_argument_of_the_browser() {
    let scene = Scene::of_admin("ui-browser").await;
    let folder = scene.installation.control_plane.folder().join("browser");
    std::fs::create_dir(&folder).unwrap();
    let browser = folder.join("xdg-open");
    std::fs::write(&browser, BROWSER).unwrap();
    std::fs::set_permissions(&browser, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("PATH={}:{}", folder.display(), std::env::var("PATH").unwrap());
    let kubeconfig = format!("--kubeconfig={}", scene.kubeconfig().display());
    let command = ["env", &path, env!("CARGO_BIN_EXE_kubectl-keywright"), "ui", &kubeconfig].map(str::to_owned);
    let page = Program::other("the page", &command).await;
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    wait::until("the browser is opened", async || !read("arguments").is_empty()).await;

    let printed = page.printed();
    let address = printed.lines().find(|line| line.starts_with("http://")).unwrap();
    let (_, token) = address.split_once('#').unwrap();
    let (arguments, signpost) = (read("arguments"), read("signpost"));
    assert!(!arguments.contains(token), "{arguments}");
    assert!(signpost.contains(&format!("url={address}\"")), "{signpost}");
    assert_eq!(read("mode"), "600\n");
    page.signal("INT");
    assert_eq!(page.exited().await.code(), Some(0));
    assert!(!Path::new(arguments.trim_end()).exists(), "it goes with the page");
}
