//! What people copy out of the documents, as they would.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::{ApiKey, Reason};
use kube::api::PostParams;
use serde_json::json;

use super::scene::{api_key, is};
use keywright_testing::{ControlPlane, Installation, output, project, wait};

/// The first block of code after `title`, as it stands in the page.
fn block(page: &str, title: &str) -> String {
    let text = std::fs::read_to_string(project().join(page)).unwrap();
    let (_, after) = text.split_once(title).unwrap_or_else(|| panic!("{page} has no {title:?}"));
    let lines = after.lines().skip_while(|line| !line.starts_with("    "));
    let lines = lines.map_while(|line| if line.is_empty() { Some("") } else { line.strip_prefix("    ") });
    lines.fold(String::new(), |block, line| block + line + "\n").trim_end().to_owned() + "\n"
}

/// A shell with `kubectl` in it; `input` is what is typed.
fn typed(control_plane: &ControlPlane, commands: &str, input: &str) -> String {
    let kubectl = control_plane.kubectl([""; 0]);
    let mut bash = Command::new("bash");
    bash.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let path = format!("{}:{}", control_plane.programs().display(), std::env::var("PATH").unwrap());
    bash.env("PATH", path).args(["-euo", "pipefail", "-c", commands]);
    let mut bash = bash.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let answer = bash.wait_with_output().unwrap();
    assert!(answer.status.success(), "{commands}\n{}", String::from_utf8_lossy(&answer.stderr));
    String::from_utf8(answer.stdout).unwrap()
}

#[tokio::test]
async fn the_owner_of_a_leaked_key_is_found_and_the_key_is_sent_to_nobody() {
    let installation = Installation::new("documents-leaked").await;
    let control_plane = installation.control_plane;
    let _controller = installation.program("controller").start().await;
    let api_keys = installation.tenant::<ApiKey>();
    api_keys.create(&PostParams::default(), &api_key("ci", json!({"owner": "ada"}))).await.unwrap();
    wait::for_object(&api_keys, "ci", |api_key| is(api_key, Reason::Active)).await;
    let secret = installation.tenant::<Secret>().get("ci").await.unwrap();
    let key = String::from_utf8(secret.data.unwrap()["api-key"].0.clone()).unwrap();

    for (page, title) in [("README.md", "### A leaked key"), ("docs/runbooks.md", "### You have the key")] {
        let commands = block(page, title).replace("keywright-system", &installation.system_namespace);
        assert!(commands.contains("apikeyrecords.keywright.dev"), "{page}: {commands}");
        let said = typed(control_plane, &commands, &format!("{key}\n"));
        let line = said.lines().find(|line| line.contains(&key[..14])).unwrap_or_else(|| panic!("{page}: {said}"));
        assert!(line.contains(&installation.tenant_namespace) && line.contains(" ci "), "{page}: {line}");
        assert!(!said.contains(&key[..15]), "{page} shows the key");
    }
    let asked = installation.audited_requests().await;
    assert!(asked.iter().any(|request| request.resource == "apikeyrecords" && request.verb == "list"), "{asked:?}");
    let log = std::fs::read_to_string(control_plane.audit_log()).unwrap();
    assert!(!log.contains(&key[7..]), "the key is in the audit log");
}

#[tokio::test]
async fn every_example_is_accepted() {
    let control_plane = ControlPlane::shared().await;
    let namespace = format!("documents-{:06x}", rand::random::<u32>() >> 8);
    output(&mut control_plane.kubectl(["create", "namespace", &namespace])).unwrap();
    let mut tried = 0;
    for folder in ["examples", "examples/rights", "examples/workload"] {
        for file in std::fs::read_dir(project().join(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "yaml") {
                accepted(control_plane, &file, &namespace);
                tried += 1;
            }
        }
    }
    assert!(tried >= 5, "the examples are not where they were");
    output(&mut control_plane.kubectl(["delete", "namespace", "--wait=false", &namespace])).unwrap();
}

#[tokio::test]
async fn every_recipe_for_the_secret_is_accepted() {
    let control_plane = ControlPlane::shared().await;
    let namespace = format!("documents-{:06x}", rand::random::<u32>() >> 8);
    output(&mut control_plane.kubectl(["create", "namespace", &namespace])).unwrap();
    let file = control_plane.folder().join("recipe.yaml");
    for title in ["### Environment variables", "### Files", "### Restart with Stakater Reloader"] {
        std::fs::write(&file, block("docs/apikeys.md", title)).unwrap();
        accepted(control_plane, &file, &namespace);
    }
    let spec = block("docs/apikeys.md", "## The Secret");
    let api_key = format!("apiVersion: keywright.dev/v1alpha1\nkind: ApiKey\nmetadata: {{name: ci}}\n{spec}");
    std::fs::write(&file, api_key).unwrap();
    accepted(control_plane, &file, &namespace);
    output(&mut control_plane.kubectl(["delete", "namespace", "--wait=false", &namespace])).unwrap();
}

/// The clients of docs/apikeys.md read the key again once the kubelet has swapped the folder's link.
#[test]
fn the_clients_in_the_documents_use_a_new_key_without_a_restart() {
    const ECHO_PYTHON: &str = "
import sys
for line in sys.stdin:
    print(call(line.strip()).read().decode(), flush=True)
";
    const ECHO_NODE: &str = "
import { createInterface } from 'node:readline';
for await (const line of createInterface({ input: process.stdin })) {
  console.log(await (await call(line)).text());
}
";
    for (program, title, file, echo) in
        [("python3", "\nPython:\n", "client.py", ECHO_PYTHON), ("node", "\nNode.js:\n", "client.mjs", ECHO_NODE)]
    {
        if Command::new(program).arg("--version").output().is_err() {
            println!("{program} is not installed: its client is not tried");
            continue;
        }
        let folder = std::env::temp_dir().join(format!("keywright-client-{:08x}", rand::random::<u32>()));
        let mounted = folder.join("mounted");
        std::fs::create_dir_all(&mounted).unwrap();
        mount(&mounted, "1", "first");
        std::os::unix::fs::symlink("..data/api-key", mounted.join("api-key")).unwrap();
        let code = block("docs/apikeys.md", title);
        assert!(code.contains("/var/run/keywright"), "{title} has no client");
        let code = code.replace("/var/run/keywright", mounted.to_str().unwrap()) + echo;
        std::fs::write(folder.join(file), code).unwrap();
        let mut client = Command::new(program);
        let client = client.arg(folder.join(file)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = client.spawn().unwrap();
        let (mut input, output) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let (url, mut said) = (echoing_server(), BufReader::new(output).lines());
        for key in ["first", "second"] {
            mount(&mounted, key, key);
            writeln!(input, "{url}").unwrap();
            assert_eq!(said.next().unwrap().unwrap(), format!("Bearer {key}"), "{program}");
        }
        drop(input);
        assert!(client.wait().unwrap().success(), "{program}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Writes a folder beside the old one and swaps the link to it, as the kubelet does.
fn mount(folder: &Path, version: &str, key: &str) {
    let target = format!("..{version}");
    std::fs::create_dir_all(folder.join(&target)).unwrap();
    std::fs::write(folder.join(&target).join("api-key"), key).unwrap();
    std::os::unix::fs::symlink(target, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

/// Answers each request with its `Authorization`, for as long as the test runs.
fn echoing_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let lines = BufReader::new(connection.try_clone().unwrap()).lines().map(Result::unwrap);
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let field = |line: &String| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("authorization").then(|| value.trim().to_owned())
            };
            let said = head.iter().find_map(field).unwrap_or_default();
            let length = said.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            connection.write_all(format!("{head}{said}").as_bytes()).unwrap();
        }
    });
    url
}

/// In a namespace that exists, as a dry run makes none.
fn accepted(control_plane: &ControlPlane, file: &Path, namespace: &str) {
    let mut text = std::fs::read_to_string(file).unwrap();
    for named in ["team-a", "keywright-system"] {
        text = text.replace(&format!("namespace: {named}\n"), &format!("namespace: {namespace}\n"));
    }
    let copy = control_plane.folder().join("example.yaml");
    std::fs::write(&copy, text).unwrap();
    let create = ["create", "--dry-run=server", "--validate=strict", "--namespace", namespace, "--filename"];
    output(control_plane.kubectl(create).arg(copy)).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
