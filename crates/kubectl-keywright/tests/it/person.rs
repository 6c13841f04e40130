//! A person in a tenant's namespace, at a shell or in front of a terminal.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use keywright_core::api::ApiKey;
use keywright_testing::{FaultProxy, Installation, Program, project, wait};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

/// An address that the tests' keys are allowed from.
pub const INSIDE: &str = "192.0.2.44";
/// One that they are not.
pub const OUTSIDE: &str = "198.51.100.7";

/// A namespace with a controller and a verifier at work, and somebody who has rights there.
pub struct Scene {
    pub verifier: Program,
    /// `None` once it was killed.
    pub controller: Option<Program>,
    pub installation: Installation,
    kubeconfig: PathBuf,
}

/// What a run of the plugin has come to.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub output: String,
    pub said: String,
}

/// The rights that the chart's role of this name gives, as its file says.
pub fn keywright_role(name: &str) -> Value {
    let verbs: &[&str] = match name {
        "keywright-view" => &["get", "list", "watch"],
        "keywright-admin" => &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"],
        other => panic!("no such role: {other}"),
    };
    json!({"apiGroups": ["keywright.dev"], "resources": ["apikeys"], "verbs": verbs})
}

/// The right to read what the keys are delivered in.
pub fn secret_reader() -> Value {
    json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]})
}

impl Scene {
    /// The person has these rights in the tenant's namespace, and no other.
    pub async fn new(test_name: &str, rights: &[Value]) -> Self {
        let installation = Installation::new(test_name).await;
        let verifier = installation.program("verifier").start().await;
        verifier.ready().await;
        let controller = installation.program("controller").argument("--leader-elect=false").start().await;
        controller.ready().await;
        let kubeconfig = person(&installation, rights).await;
        Self { verifier, controller: Some(controller), installation, kubeconfig }
    }

    /// Somebody with `keywright-admin` who may read Secrets.
    pub async fn of_admin(test_name: &str) -> Self {
        Self::new(test_name, &[keywright_role("keywright-admin"), secret_reader()]).await
    }

    pub fn api_keys(&self) -> Api<ApiKey> {
        self.installation.tenant()
    }

    pub fn secrets(&self) -> Api<Secret> {
        self.installation.tenant()
    }

    pub fn namespace(&self) -> &str {
        &self.installation.tenant_namespace
    }

    /// The person's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The person's kubeconfig for a way to the API server on which something goes wrong.
    pub fn kubeconfig_through(&self, faults: &FaultProxy) -> PathBuf {
        let mut kubeconfig: Value = serde_yaml::from_str(&std::fs::read_to_string(&self.kubeconfig).unwrap()).unwrap();
        kubeconfig["clusters"][0]["cluster"] = json!({"server": faults.url()});
        self.installation.control_plane.write_private(&format!("{}.faults", self.namespace()), &kubeconfig.to_string())
    }

    /// Declares an ApiKey as an administrator does, and waits until it lets callers in.
    pub async fn declare(&self, name: &str, spec: Value) -> ApiKey {
        let object =
            json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name}, "spec": spec});
        let object: ApiKey = serde_json::from_value(object).unwrap();
        self.api_keys().create(&PostParams::default(), &object).await.unwrap();
        wait::for_object(&self.api_keys(), name, |key: &ApiKey| {
            key.status.as_ref().is_some_and(|status| status.enforced_generation == key.metadata.generation)
        })
        .await
    }

    /// The key in a Secret.
    pub async fn delivered(&self, secret: &str) -> String {
        let secret = self.secrets().get(secret).await.unwrap();
        String::from_utf8(secret.data.unwrap()["api-key"].0.clone()).unwrap()
    }

    /// What the verifier answers to this key.
    pub async fn ask(&self, key: &str, client: &str) -> u16 {
        let mut connection = TcpStream::connect(self.verifier.address("http")).await.unwrap();
        let request = format!(
            "GET /verify HTTP/1.1\r\nHost: verifier\r\nX-API-Key: {key}\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).await.unwrap();
        text.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// `kubectl keywright LINE` in a pipe, with nothing on standard input.
    pub async fn run(&self, line: &str) -> Ran {
        self.run_with(line, "").await
    }

    /// The same, with this on standard input.
    pub async fn run_with(&self, line: &str, input: &str) -> Ran {
        let mut command = self.command(env!("CARGO_BIN_EXE_kubectl-keywright"));
        command.args(line.split_whitespace());
        self.finished(command, input).await
    }

    /// The same by a shell, which gets the command as `"$@"`.
    pub async fn run_by_shell(&self, script: &str, line: &str) -> Ran {
        let mut command = self.command("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_kubectl-keywright")]).args(line.split_whitespace());
        self.finished(command, "").await
    }

    /// The same, with these variables in the environment.
    pub async fn run_in(&self, variables: &[(&str, &str)], line: &str) -> Ran {
        let mut command = self.command(env!("CARGO_BIN_EXE_kubectl-keywright"));
        command.args(line.split_whitespace()).envs(variables.iter().copied());
        self.finished(command, "").await
    }

    /// The same in a terminal of this many columns, in front of somebody who waits for each of the prompts and then types
    /// the answer. What is seen there is the output.
    pub async fn at_terminal(&self, line: &str, columns: u16, answers: &[(&str, &str)]) -> Ran {
        self.finished(self.terminal(line, columns, answers), "").await
    }

    /// The same, in a terminal whose owner wants no colours.
    pub async fn at_plain_terminal(&self, line: &str) -> Ran {
        let mut command = self.terminal(line, 120, &[]);
        command.env("NO_COLOR", "1");
        self.finished(command, "").await
    }

    fn terminal(&self, line: &str, columns: u16, answers: &[(&str, &str)]) -> Command {
        let mut command = self.command("python3");
        command.arg(project().join("crates/kubectl-keywright/tests/terminal.py"));
        command.arg(columns.to_string()).arg(json!(answers).to_string());
        command.arg(env!("CARGO_BIN_EXE_kubectl-keywright")).args(line.split_whitespace());
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", "/nonexistent").env("KUBECONFIG", &self.kubeconfig).env("TERM", "xterm").env("TZ", "UTC");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn finished(&self, mut command: Command, input: &str) -> Ran {
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // What does not read its input tells us more than the broken pipe.
        stdin.write_all(input.as_bytes()).await.ok();
        drop(stdin);
        let finished = tokio::time::timeout(wait::DEADLINE * 2, child.wait_with_output()).await;
        let Output { status, stdout, stderr } = finished.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: status.code(), output: text(stdout), said: text(stderr) }
    }
}

impl Ran {
    /// Checks the exit code; all that was said, if it is another one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Checks that this was said on standard error.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.said.contains(text), "not said: {text}\n{self:?}");
        self
    }

    /// Checks that this was printed on standard output.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert!(self.output.contains(text), "not printed: {text}\n{self:?}");
        self
    }
}

/// The kubeconfig of a new ServiceAccount with these rights.
async fn person(installation: &Installation, rights: &[Value]) -> PathBuf {
    let namespace = &installation.tenant_namespace;
    let metadata = json!({"name": "ann", "namespace": namespace});
    let group = "rbac.authorization.k8s.io";
    installation
        .apply(&[
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
            json!({"apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": metadata, "rules": rights}),
            json!({
                "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": metadata,
                "roleRef": {"apiGroup": group, "kind": "Role", "name": "ann"},
                "subjects": [{"kind": "ServiceAccount", "name": "ann", "namespace": namespace}],
            }),
        ])
        .unwrap();
    let request: TokenRequest = serde_json::from_value(json!({"metadata": {}, "spec": {"audiences": []}})).unwrap();
    let accounts: Api<ServiceAccount> = installation.tenant();
    let answer = accounts.create_token_request("ann", &PostParams::default(), &request).await.unwrap();
    let token = answer.status.unwrap().token;
    let written = installation.control_plane.write_kubeconfig(Some(&token), None);
    let mut kubeconfig: Value = serde_yaml::from_str(&std::fs::read_to_string(&written).unwrap()).unwrap();
    kubeconfig["contexts"][0]["context"]["namespace"] = json!(namespace);
    std::fs::write(&written, kubeconfig.to_string()).unwrap();
    written
}
