//! The chart, by real helm: what it renders, what the real API server says to it, and what an installation goes through.

mod lifecycle;
mod readme;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use keywright::args::Arguments;
use keywright_core::api::{ApiKey, Reason};
use kube::api::PostParams;
use serde::Deserialize;
use serde_json::{Value, json};

use super::scene::{api_key, is};
use keywright_testing::{ControlPlane, Installation, output, project, wait};

/// What people set, by name.
const VALUE_SETS: [(&str, &str); 6] = [
    ("default", "{}"),
    ("daemon", "{verifier: {kind: DaemonSet, service: {trafficDistribution: PreferSameNode}}}"),
    ("cert-manager", "{webhook: {certManager: {enabled: true}}}"),
    ("host-network", "{webhook: {hostNetwork: true, port: 8443, adminPort: 8444}}"),
    (
        "bare",
        "{crds: {install: false}, networkPolicies: {enabled: false}, flowControl: {enabled: false}, \
         priorityClassName: system-cluster-critical}",
    ),
    ("everything", include_str!("chart/everything.yaml")),
];

/// Kinds whose definitions come with other projects, and are not in the test bed.
const FOREIGN: [&str; 2] = ["cert-manager.io/v1", "monitoring.coreos.com/v1"];

fn chart() -> PathBuf {
    project().join("charts/keywright")
}

/// `helm SUBCOMMAND... CHART --namespace keywright-system --values FILE`.
fn helm(control_plane: &ControlPlane, subcommand: &[&str], values: &str) -> Command {
    let file = control_plane.folder().join("values.yaml");
    std::fs::write(&file, values).unwrap();
    let mut helm = control_plane.helm(subcommand);
    helm.arg(chart()).args(["--namespace", "keywright-system", "--values"]).arg(file);
    helm
}

fn rendered(control_plane: &ControlPlane, values: &str) -> String {
    output(&mut helm(control_plane, &["template", "keywright"], values)).unwrap()
}

/// The objects of every set of values.
fn objects(control_plane: &ControlPlane) -> BTreeMap<&'static str, Vec<Value>> {
    VALUE_SETS.iter().map(|(name, values)| (*name, parsed(&rendered(control_plane, values)))).collect()
}

fn parsed(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

fn title(object: &Value) -> String {
    format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
}

/// What runs Pods.
fn pod_templates(objects: &[Value]) -> impl Iterator<Item = (String, &Value)> {
    let templates = objects.iter().filter(|object| object["spec"]["template"]["spec"].is_object());
    templates.map(|object| (title(object), &object["spec"]["template"]))
}

/// A namespace that enforces the restricted profile. Removed when dropped.
struct Restricted {
    control_plane: &'static ControlPlane,
    name: String,
}

impl Restricted {
    fn new(control_plane: &'static ControlPlane, test_name: &str) -> Self {
        let name = format!("{test_name}-{:06x}", rand::random::<u32>() >> 8);
        output(&mut control_plane.kubectl(["create", "namespace", &name])).unwrap();
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        output(&mut control_plane.kubectl(["label", "namespace", &name, enforce])).unwrap();
        Self { control_plane, name }
    }
}

impl Drop for Restricted {
    fn drop(&mut self) {
        // Best effort: what is left goes with the control plane.
        let _ = output(&mut self.control_plane.kubectl(["delete", "namespace", "--wait=false", &self.name]));
    }
}

#[tokio::test]
async fn helm_finds_nothing_to_complain_about() {
    let control_plane = ControlPlane::shared().await;
    for (name, values) in VALUE_SETS {
        let said = output(&mut helm(control_plane, &["lint", "--strict"], values))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!said.contains("[WARNING]"), "{name}: {said}");
    }
}

#[tokio::test]
async fn typos_and_nonsense_are_refused() {
    let control_plane = ControlPlane::shared().await;
    for (values, at, why) in [
        ("{verifer: {}}", "at ''", "additional properties 'verifer' not allowed"),
        ("{verifier: {replica: 3}}", "at '/verifier'", "additional properties 'replica' not allowed"),
        ("{controller: {resources: {limit: {}}}}", "at '/controller/resources'", "'limit' not allowed"),
        ("{verifier: {replicas: two}}", "at '/verifier/replicas'", "got string, want integer"),
        ("{webhook: {replicas: -1}}", "at '/webhook/replicas'", "got -1, want 0"),
        ("{verifier: {kind: StatefulSet}}", "at '/verifier/kind'", "'Deployment', 'DaemonSet'"),
        (
            "{verifier: {leaseDuration: 600}}",
            "verifier.leaseDuration must be",
            "such as 30s, 5m, 1h30m or 90d, not \"600\"",
        ),
        (
            "{verifier: {leaseDuration: 5minutes}}",
            "verifier.leaseDuration must be",
            "5m, 1h30m or 90d, not \"5minutes\"",
        ),
        ("{verifier: {leaseDuration: ''}}", "verifier.leaseDuration must be", "not \"\""),
        ("{verifier: {lastUsedGranularity: 1w}}", "verifier.lastUsedGranularity must be", "not \"1w\""),
        ("{controller: {tombstoneRetention: never}}", "controller.tombstoneRetention must be", "not \"never\""),
        ("{controller: {resync: 10 m}}", "controller.resync must be", "not \"10 m\""),
        (
            "{monitoring: {serviceMonitor: {enabled: true, interval: 30}}}",
            "serviceMonitor.interval must be",
            "not \"30\"",
        ),
        ("{controller: {tombstonesPerNamespace: -1}}", "at '/controller/tombstonesPerNamespace'", "got -1, want 0"),
        ("{webhook: {port: 443}}", "at '/webhook/port'", "got 443, want 1,024"),
        ("{webhook: {port: 9090}}", "webhook.port and webhook.adminPort", "must differ"),
        ("{webhook: {hostNetwork: true, port: 10250}}", "10250 is the kubelet's", "choose another"),
        ("{certificates: {activeDeadlineSeconds: 0}}", "at '/certificates/activeDeadlineSeconds'", "got 0, want 10"),
        ("{verifier: {lastUsedWriteBudget: -1}}", "at '/verifier/lastUsedWriteBudget'", "got -1, want 0"),
        ("{verifier: {httpClientIP: xff}}", "at '/verifier/httpClientIP'", "xff-hops"),
        ("{verifier: {grpcClientIP: xff}}", "at '/verifier/grpcClientIP'", "xff-hops"),
        ("{verifier: {tls: {clientCertificates: true}}}", "at '/verifier/tls/secretName'", "minLength: got 0, want 1"),
        ("{webhook: {timeoutSeconds: 60}}", "at '/webhook/timeoutSeconds'", "got 60, want 30"),
        ("{image: {digest: 'sha256:12'}}", "at '/image/digest'", "does not match pattern"),
        ("{image: {pullPolicy: Sometimes}}", "at '/image/pullPolicy'", "'Always', 'IfNotPresent', 'Never'"),
        ("{commonLabels: {helm.sh/chart: x}}", "at '/commonLabels/helm.sh~1chart'", "false schema"),
        ("{commonLabels: {number: 1}}", "at '/commonLabels/number'", "got number, want string"),
        ("{controller: {extraArgs: [concurrency=1]}}", "at '/controller/extraArgs/0'", "does not match pattern"),
        ("{networkPolicies: {verifierFrom: [{podselector: {}}]}}", "/verifierFrom/0'", "'podselector' not allowed"),
        ("{networkPolicies: {apiServer: {ports: []}}}", "at '/networkPolicies/apiServer/ports'", "got 0, want 1"),
        ("{crds: {keep: 'yes'}}", "at '/crds/keep'", "got string, want boolean"),
    ] {
        let refused = output(&mut helm(control_plane, &["template", "keywright"], values));
        let said = refused.expect_err(values).to_string();
        assert!(said.contains(at) && said.contains(why), "{values}: {said}");
    }
}

#[tokio::test]
async fn rendering_is_repeatable_and_holds_nothing_secret() {
    let control_plane = ControlPlane::shared().await;
    for (name, values) in VALUE_SETS {
        let once = rendered(control_plane, values);
        assert_eq!(once, rendered(control_plane, values), "{name}");
        assert!(!once.contains("-----BEGIN"), "{name} holds a certificate or a key");
        for object in parsed(&once) {
            assert_ne!(object["kind"], "Secret", "{name}");
            for webhook in object["webhooks"].as_array().into_iter().flatten() {
                let keys: Vec<_> = webhook["clientConfig"].as_object().unwrap().keys().collect();
                assert_eq!(keys, ["service"], "{name}: a caBundle is not known before the Secret is");
            }
        }
    }
}

#[tokio::test]
async fn the_api_server_accepts_every_object() {
    let control_plane = ControlPlane::shared().await;
    let namespace = Restricted::new(control_plane, "chart-accepted");
    for (name, mut objects) in objects(control_plane) {
        objects.retain(|object| !FOREIGN.contains(&object["apiVersion"].as_str().unwrap()));
        assert!(objects.len() > 20, "{name}");
        for object in &mut objects {
            // A dry run makes no namespace that the next object could be in.
            if object["metadata"]["namespace"].is_string() {
                object["metadata"]["namespace"] = json!(namespace.name);
            }
        }
        let file = control_plane.folder().join("objects.json");
        std::fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
        let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename"];
        let mut kubectl = control_plane.kubectl(apply);
        let answer = kubectl.arg(&file).output().unwrap();
        let complaints = String::from_utf8_lossy(&answer.stderr);
        // As values.yaml says of this value, and of no other.
        let is_warned_of = |line: &&str| name == "host-network" && line.contains("host namespaces (hostNetwork=true)");
        let complaints: Vec<_> = complaints.lines().filter(|line| !is_warned_of(line)).collect();
        assert!(answer.status.success() && complaints.is_empty(), "{name}: {complaints:?}");
        let accepted = String::from_utf8_lossy(&answer.stdout).lines().count();
        assert_eq!(accepted, objects.len(), "{name}");
    }
}

#[tokio::test]
async fn pods_pass_the_restricted_profile() {
    let control_plane = ControlPlane::shared().await;
    let namespace = Restricted::new(control_plane, "chart-restricted");
    let mut seen = BTreeSet::new();
    for (name, objects) in objects(control_plane) {
        for (owner, template) in pod_templates(&objects) {
            let mut pod =
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
            pod["metadata"]["name"] = json!("restricted");
            let spec = pod["spec"].as_object_mut().unwrap();
            // They would have to exist.
            spec.remove("priorityClassName");
            spec.remove("serviceAccountName");
            let container = &spec["containers"][0];
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{name}: {owner}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}: {owner}");
            let file = control_plane.folder().join("pod.json");
            std::fs::write(&file, pod.to_string()).unwrap();
            let create = ["create", "--dry-run=server", "--namespace", &namespace.name, "--filename"];
            let answer = output(control_plane.kubectl(create).arg(file));
            if pod["spec"]["hostNetwork"] == true {
                // As values.yaml says of this value: no profile but the privileged one allows it.
                let refused = answer.expect_err(&owner).to_string();
                let only = "violates PodSecurity \"restricted:latest\": host namespaces (hostNetwork=true), hostPort";
                assert!(refused.contains(only) && !refused.contains("unrestricted"), "{name}: {owner}: {refused}");
                continue;
            }
            answer.unwrap_or_else(|error| panic!("{name}: {owner}: {error}"));
            seen.insert(owner);
        }
    }
    assert_eq!(
        seen.iter().map(String::as_str).collect::<Vec<_>>(),
        [
            "DaemonSet keywright-verifier",
            "Deployment keywright-controller",
            "Deployment keywright-verifier",
            "Deployment keywright-webhook",
            "Job keywright-certificates",
            "Job keywright-certificates-bundle",
        ]
    );
}

/// OpenShift assigns a uid to each namespace, and refuses Pods that ask for another one.
#[tokio::test]
async fn no_pod_asks_for_a_uid_unless_a_value_does() {
    let control_plane = ControlPlane::shared().await;
    let always = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    for (name, objects) in objects(control_plane) {
        for (owner, template) in pod_templates(&objects) {
            let spec = &template["spec"];
            let mut expected = always.clone();
            if name == "everything" {
                expected["runAsUser"] = json!(1000);
                expected["fsGroup"] = json!(1000);
            }
            assert_eq!(spec["securityContext"], expected, "{name}: {owner}");
            let container = &spec["containers"][0]["securityContext"];
            assert!(container["runAsUser"].is_null() && container["runAsGroup"].is_null(), "{name}: {owner}");
        }
    }
    // The kubelet believes no name: without a number, it refuses to start what must not be root.
    let dockerfile = std::fs::read_to_string(project().join("Dockerfile")).unwrap();
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{user}");
}

/// One value moves the listener and all that leads to it.
#[tokio::test]
async fn the_webhooks_ports_move_together() {
    let control_plane = ControlPlane::shared().await;
    for (values, https, admin, on_host) in [
        ("{}", 9443, 9090, false),
        ("{webhook: {port: 10250}}", 10250, 9090, false),
        ("{webhook: {port: 8443, adminPort: 8444}}", 8443, 8444, false),
        ("{webhook: {hostNetwork: true}}", 9443, 9090, true),
        ("{webhook: {hostNetwork: true, port: 8443, adminPort: 8444}}", 8443, 8444, true),
    ] {
        let objects = parsed(&rendered(control_plane, values));
        let find = |wanted: &str| objects.iter().find(|object| title(object) == wanted).unwrap();
        let deployment = &find("Deployment keywright-webhook")["spec"];
        let pod = &deployment["template"]["spec"];
        let container = &pod["containers"][0];

        // Where it listens: absent, at the program's own port on all addresses.
        let arguments = container["args"].as_array().unwrap();
        let listens = |flag: &str, default: u16| {
            let words =
                arguments.iter().filter_map(|word| word.as_str().unwrap().strip_prefix(flag)?.strip_prefix('='));
            let given: Vec<SocketAddr> = words.map(|word| word.parse().unwrap()).collect();
            assert!(
                given.len() <= 1 && given.iter().all(|address| address.ip().is_unspecified()),
                "{values}: {given:?}"
            );
            given.first().map_or(default, SocketAddr::port)
        };
        assert_eq!((listens("--https-address", 9443), listens("--admin-address", 9090)), (https, admin), "{values}");

        let served = |name: &str| {
            let ports = container["ports"].as_array().unwrap();
            let port = ports.iter().find(|port| port["name"] == name).unwrap();
            let expected_on_host = if on_host { port["containerPort"].clone() } else { Value::Null };
            assert_eq!(port["hostPort"], expected_on_host, "{values}");
            port["containerPort"].as_u64().unwrap()
        };
        assert_eq!((served("https"), served("admin")), (https.into(), admin.into()), "{values}");
        // By name, so that they follow.
        for probe in ["livenessProbe", "readinessProbe"] {
            assert_eq!(container[probe]["httpGet"]["port"], "admin", "{values}");
        }
        let service = &find("Service keywright-webhook")["spec"]["ports"];
        assert_eq!((&service[0]["port"], &service[0]["targetPort"]), (&json!(443), &json!("https")), "{values}");
        assert_eq!((&service[1]["port"], &service[1]["targetPort"]), (&json!(9090), &json!("admin")), "{values}");
        let policy = &find("NetworkPolicy keywright-webhook")["spec"]["ingress"][0]["ports"];
        assert_eq!(*policy, json!([{"port": "https", "protocol": "TCP"}]), "{values}");

        let strategy = &deployment["strategy"]["rollingUpdate"];
        if on_host {
            assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&json!(true), &json!("ClusterFirstWithHostNet")));
            // A Pod too many finds no node on which the port is free.
            assert_eq!(*strategy, json!({"maxUnavailable": 1, "maxSurge": 0}));
        } else {
            assert!(pod["hostNetwork"].is_null() && pod["dnsPolicy"].is_null(), "{values}");
            assert_eq!(*strategy, json!({"maxUnavailable": 0, "maxSurge": "25%"}));
        }
        for other in ["Deployment keywright-controller", "Deployment keywright-verifier", "Job keywright-certificates"]
        {
            assert!(find(other)["spec"]["template"]["spec"]["hostNetwork"].is_null(), "{values}: {other}");
        }
    }
}

#[tokio::test]
async fn the_programs_understand_their_arguments() {
    let control_plane = ControlPlane::shared().await;
    for (name, objects) in objects(control_plane) {
        for (owner, template) in pod_templates(&objects) {
            let arguments = template["spec"]["containers"][0]["args"].as_array().unwrap();
            let words = std::iter::once("keywright").chain(arguments.iter().map(|word| word.as_str().unwrap()));
            if let Err(problem) = Arguments::try_parse_from(words) {
                panic!("{name}: {owner}: {problem}");
            }
        }
    }
}

/// Services, budgets and policies reach Pods by labels, ports by names: a slip in either goes unnoticed otherwise.
#[tokio::test]
async fn selectors_find_pods_and_ports() {
    let control_plane = ControlPlane::shared().await;
    for (name, objects) in objects(control_plane) {
        let templates: Vec<_> = pod_templates(&objects).collect();
        let selected = |labels: &Value| -> Vec<&Value> {
            let has = |template: &Value| {
                let mut labels = labels.as_object().unwrap().iter();
                labels.all(|(label, value)| template["metadata"]["labels"][label] == *value)
            };
            templates.iter().map(|(_, template)| *template).filter(|template| has(template)).collect()
        };
        let mut checked = 0;
        for object in &objects {
            let spec = &object["spec"];
            let (selector, ports) = match object["kind"].as_str().unwrap() {
                "Service" => (&spec["selector"], ports(&spec["ports"], "targetPort")),
                "PodDisruptionBudget" | "Deployment" | "DaemonSet" => (&spec["selector"]["matchLabels"], vec![]),
                "NetworkPolicy" => (&spec["podSelector"]["matchLabels"], ports(&spec["ingress"][0]["ports"], "port")),
                _ => continue,
            };
            let found = selected(selector);
            let served = |port: &Value| {
                let mut ports =
                    found.iter().filter_map(|pod| pod["spec"]["containers"][0]["ports"].as_array()).flatten();
                ports.any(|served| served["name"] == *port)
            };
            // Only the policy for all is for more than one program.
            assert_eq!(found.len() == 1, title(object) != "NetworkPolicy keywright", "{name}: {}", title(object));
            for port in ports {
                assert!(served(&port), "{name}: {} names {port}, which no Pod has", title(object));
            }
            checked += 1;
        }
        assert!(checked >= 9, "{name}");
    }
}

fn ports(list: &Value, key: &str) -> Vec<Value> {
    list.as_array().unwrap().iter().map(|port| port[key].clone()).collect()
}

#[tokio::test]
async fn what_is_set_gets_where_it_belongs() {
    let control_plane = ControlPlane::shared().await;
    let mut objects = objects(control_plane);
    let everything = objects.remove("everything").unwrap();
    for object in &everything {
        assert_eq!(object["metadata"]["labels"]["team"], "platform", "{}", title(object));
    }
    for (owner, template) in pod_templates(&everything) {
        let image = &template["spec"]["containers"][0]["image"];
        assert_eq!(*image, format!("images.example/team/keywright@sha256:{}", "0".repeat(64)), "{owner}");
        assert_eq!(template["metadata"]["labels"]["team"], "platform", "{owner}");
        assert_eq!(template["spec"]["imagePullSecrets"], json!([{"name": "images"}]), "{owner}");
    }
    let find = |title_of: &str| everything.iter().find(|object| title(object) == title_of).unwrap();
    for component in ["controller", "verifier", "webhook"] {
        let workload = find(&format!("Deployment keywright-{component}"));
        let (template, role) = (&workload["spec"]["template"], format!("of-{component}"));
        assert_eq!(workload["spec"]["replicas"], 3, "{component}");
        assert_eq!(workload["metadata"]["annotations"]["example.org/own"], role);
        assert_eq!(template["metadata"]["annotations"]["example.org/pod"], role);
        assert_eq!(template["metadata"]["labels"]["example.org/pod"], role);
        let spec = &template["spec"];
        assert_eq!(spec["nodeSelector"]["example.org/node"], role);
        assert_eq!(spec["tolerations"][0]["key"], role);
        assert_eq!(spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"], 1);
        assert_eq!(spec["topologySpreadConstraints"].as_array().unwrap().len(), 1);
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
        let arguments = spec["containers"][0]["args"].as_array().unwrap();
        for argument in ["--log-format=text", "--log-filter=keywright=debug,warn", "--admin-address=0.0.0.0:9090"] {
            assert!(arguments.contains(&json!(argument)), "{component}: {argument}");
        }
    }
    for job in ["Job keywright-certificates", "Job keywright-certificates-bundle"] {
        assert_eq!(find(job)["spec"]["activeDeadlineSeconds"], 120, "{job}");
        let (template, role) = (&find(job)["spec"]["template"], "of-certificates");
        assert_eq!(template["metadata"]["annotations"]["example.org/pod"], role);
        assert_eq!(template["metadata"]["labels"]["example.org/pod"], role);
        let spec = &template["spec"];
        assert_eq!(spec["nodeSelector"]["example.org/node"], role);
        assert_eq!(spec["tolerations"][0]["key"], role);
        assert_eq!(spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"], 1);
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(
            spec.get("priorityClassName"),
            None,
            "{job} would be refused: there is none before the installation"
        );
    }
    for component in ["controller", "verifier", "webhook"] {
        let service_account = find(&format!("ServiceAccount keywright-{component}"));
        assert_eq!(service_account["metadata"]["annotations"]["example.org/account"], format!("of-{component}"));
    }
    assert_eq!(find("Service keywright-verifier")["metadata"]["annotations"]["example.org/service"], "of-verifier");
    let keep = |objects: &[Value]| {
        let definitions = objects.iter().filter(|object| object["kind"] == "CustomResourceDefinition");
        definitions
            .map(|object| object["metadata"]["annotations"]["helm.sh/resource-policy"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(keep(&everything), [Value::Null, Value::Null], "crds.keep: false");
    assert_eq!(keep(&objects["default"]), ["keep", "keep"]);
    assert!(keep(&objects["bare"]).is_empty());
}

/// Values that `everything.yaml` cannot hold beside the others, at something other than their defaults.
const ALTERNATIVES: &str = "
image: {tag: another}
priorityClassName: system-cluster-critical
crds: {install: false}
verifier: {kind: DaemonSet, tls: {secretName: another}}
webhook: {certManager: {enabled: true}, adminPort: 9091, hostNetwork: true}
networkPolicies: {enabled: false}
flowControl: {enabled: false}
tenantRoles: {enabled: false, aggregateToView: false, aggregateToEdit: true, aggregateToAdmin: false}
policies: {enabled: false}
";

/// A value that a slip in a template leaves without effect is believed to be in force.
#[tokio::test]
async fn every_value_has_an_effect() {
    let control_plane = ControlPlane::shared().await;
    let alternatives: Value = serde_yaml::from_str(ALTERNATIVES).unwrap();
    let everything: Value = serde_yaml::from_str(include_str!("chart/everything.yaml")).unwrap();
    let (by_default, with_everything) =
        (rendered(control_plane, "{}"), rendered(control_plane, &everything.to_string()));
    let mut without_effect = Vec::new();
    for path in readme::paths() {
        let pointer = format!("/{}", path.join("/"));
        let is_without_effect = if let Some(alternative) = alternatives.pointer(&pointer) {
            let values = path.iter().rfold(alternative.clone(), |inner, key| json!({key.as_str(): inner}));
            rendered(control_plane, &values.to_string()) == by_default
        } else {
            let mut values = everything.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let parent = values.pointer_mut(parent).and_then(Value::as_object_mut);
            let taken = parent.and_then(|parent| parent.remove(key));
            assert!(taken.is_some(), "{} is neither in everything.yaml nor in ALTERNATIVES", path.join("."));
            rendered(control_plane, &values.to_string()) == with_everything
        };
        if is_without_effect {
            without_effect.push(path.join("."));
        }
    }
    assert_eq!(without_effect, [""; 0]);
}

/// With the files mounted, the webhook asks the API server for nothing, and no Job is there to alter its configurations.
#[tokio::test]
async fn with_cert_manager_nobody_has_rights_to_certificates() {
    let control_plane = ControlPlane::shared().await;
    let objects = objects(control_plane).remove("cert-manager").unwrap();
    let rights = ["Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "Job"];
    for object in objects.iter().filter(|object| rights.contains(&object["kind"].as_str().unwrap())) {
        let component = &object["metadata"]["labels"]["app.kubernetes.io/component"];
        assert!(component != "webhook" && component != "certificates", "{}", title(object));
    }
    let find = |title_of: &str| objects.iter().find(|object| title(object) == title_of).unwrap();
    let pod = &find("Deployment keywright-webhook")["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let certificate = &find("Certificate keywright-webhook")["spec"];
    assert_eq!(pod["volumes"][0]["secret"]["secretName"], certificate["secretName"], "what is mounted is what is made");
    assert_eq!(certificate["dnsNames"], json!(["keywright-webhook.keywright-system.svc"]));
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let inject = &find(&format!("{kind} keywright"))["metadata"]["annotations"]["cert-manager.io/inject-ca-from"];
        assert_eq!(inject, "keywright-system/keywright-webhook");
    }
}

#[tokio::test]
async fn a_secret_has_the_verifier_speak_tls_at_both_ports() {
    let control_plane = ControlPlane::shared().await;
    let secret = "verifier: {tls: {secretName: verifier-certificate, clientCertificates: false}}";
    let demanding = "verifier: {tls: {secretName: verifier-certificate, clientCertificates: true}}";
    let pair = ["--tls-certificate=/tls/tls.crt", "--tls-key=/tls/tls.key"];
    let authorities = "--tls-client-ca=/tls/ca.crt";
    let either = "verifier: {tls: {secretName: verifier-certificate, required: false}}";
    for (values, expected, protocols) in [
        ("{}", &[][..], ["http", "kubernetes.io/h2c"]),
        (secret, &pair, ["https", "https"]),
        (demanding, &[pair[0], pair[1], authorities], ["https", "https"]),
        // Proxies that go by the protocol are switched by the last step, when nothing else is answered any more.
        (either, &[pair[0], pair[1], "--tls-required=false"], ["http", "kubernetes.io/h2c"]),
        ("verifier: {tls: {required: false}}", &[], ["http", "kubernetes.io/h2c"]),
    ] {
        let objects = parsed(&rendered(control_plane, values));
        let find = |wanted: &str| objects.iter().find(|object| title(object) == wanted).unwrap();
        let spec = &find("Deployment keywright-verifier")["spec"]["template"]["spec"];
        let arguments = spec["containers"][0]["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let arguments: Vec<_> = arguments.filter(|argument| argument.starts_with("--tls")).collect();
        assert_eq!(arguments, expected, "{values}");
        let (volumes, mounts) = (&spec["volumes"], &spec["containers"][0]["volumeMounts"]);
        if expected.is_empty() {
            assert!(volumes.is_null() && mounts.is_null(), "{values}");
        } else {
            assert_eq!(*volumes, json!([{"name": "tls", "secret": {"secretName": "verifier-certificate"}}]));
            assert_eq!(*mounts, json!([{"name": "tls", "mountPath": "/tls", "readOnly": true}]));
        }
        let ports = &find("Service keywright-verifier")["spec"]["ports"];
        assert_eq!([&ports[0]["appProtocol"], &ports[1]["appProtocol"]], protocols, "{values}");
        assert_eq!(ports[2]["appProtocol"], "http", "probes and metrics stay plain");
        // The kubelet mounts it: nobody gets a right to read it.
        let rules = objects.iter().filter_map(|object| object["rules"].as_array()).flatten();
        assert!(!rules.into_iter().any(|rule| rule.to_string().contains("verifier-certificate")), "{values}");
    }
}

/// Alerts and the dashboard name metrics, and a name that nobody measures stays silent for ever.
#[tokio::test]
async fn what_alerts_and_dashboard_ask_for_is_measured() {
    let installation = Installation::new("chart-metrics").await;
    let mut measured = String::new();
    let job = installation.program("certificates").argument("--webhook-configuration=");
    let (code, said) = job.run().await;
    assert_eq!(code, Some(0), "{said}");
    // Some are counted by what there is.
    let api_keys = installation.tenant::<ApiKey>();
    let declared = api_key("ci", json!({"owner": "ada", "expiresIn": "1d"}));
    api_keys.create(&PostParams::default(), &declared).await.unwrap();
    for role in ["controller", "verifier", "webhook"] {
        let program = installation.program(role).start().await;
        program.ready().await;
        if role == "controller" {
            wait::for_object(&api_keys, "ci", |api_key| is(api_key, Reason::Active)).await;
            // It counts once the pass that wrote its status has come to its end.
            let metric = "keywright_soonest_expiry_timestamp_seconds{";
            wait::until(metric, async || program.metrics().await.contains(metric)).await;
        }
        measured += &program.metrics().await;
    }
    let objects = parsed(&rendered(installation.control_plane, include_str!("chart/everything.yaml")));
    for wanted in ["PrometheusRule keywright", "ConfigMap keywright-dashboard"] {
        let text = objects.iter().find(|object| title(object) == wanted).unwrap().to_string();
        let mut names = BTreeSet::new();
        for (start, _) in text.match_indices("keywright_") {
            names.insert(text[start..].split(|c: char| c != '_' && !c.is_alphanumeric()).next().unwrap());
        }
        assert!(names.len() >= 4, "{wanted}: {names:?}");
        for name in names {
            let there = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            assert!(measured.lines().any(there), "{wanted} asks for {name}");
        }
    }
    let dashboard = objects.iter().find(|object| title(object) == "ConfigMap keywright-dashboard").unwrap();
    let text = dashboard["data"]["keywright.json"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).unwrap()["panels"].is_array());
}

#[tokio::test]
async fn a_package_holds_the_definitions() {
    let control_plane = ControlPlane::shared().await;
    let folder = control_plane.folder();
    output(control_plane.helm(["package", "--destination"]).arg(&folder).arg(chart())).unwrap();
    let package = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let rendered_from = |chart: PathBuf| {
        output(control_plane.helm(["template", "keywright", "--show-only=templates/crds.yaml"]).arg(chart)).unwrap()
    };
    let packaged = rendered_from(package);
    assert_eq!(packaged.matches("kind: CustomResourceDefinition").count(), 2);
    assert_eq!(packaged, rendered_from(chart()));
}
