//! Who mounts a Secret: what stops working when its key is revoked.

use futures::join;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;

use crate::cluster::{Cluster, Namespaced};
use crate::failure::ApiError;

/// The workloads of one namespace, as far as the user may see them.
#[derive(Debug, Default)]
pub struct Workloads {
    /// `Deployment runner`, and what its Pods are made of.
    seen: Vec<(String, PodSpec)>,
    /// The resources that could not be read, and why.
    unseen: Vec<(&'static str, ApiError)>,
}

impl Workloads {
    /// Reads those of a namespace. What somebody else controls is left out: the controller stands for it.
    pub async fn read(cluster: &Cluster, namespace: &str) -> Self {
        let (deployments, stateful_sets, daemon_sets, cron_jobs, jobs, pods) = join!(
            listed::<Deployment>(cluster, namespace),
            listed::<StatefulSet>(cluster, namespace),
            listed::<DaemonSet>(cluster, namespace),
            listed::<CronJob>(cluster, namespace),
            listed::<Job>(cluster, namespace),
            listed::<Pod>(cluster, namespace),
        );
        let mut workloads = Self::default();
        workloads.add("deployments", deployments, |it| Some((it.metadata, it.spec?.template.spec?)));
        workloads.add("statefulsets", stateful_sets, |it| Some((it.metadata, it.spec?.template.spec?)));
        workloads.add("daemonsets", daemon_sets, |it| Some((it.metadata, it.spec?.template.spec?)));
        workloads.add("cronjobs", cron_jobs, |it| Some((it.metadata, it.spec?.job_template.spec?.template.spec?)));
        workloads.add("jobs", jobs, |it| Some((it.metadata, it.spec?.template.spec?)));
        workloads.add("pods", pods, |it| Some((it.metadata, it.spec?)));
        workloads
    }

    fn add<K: Namespaced>(
        &mut self,
        resource: &'static str,
        listed: Result<Vec<K>, ApiError>,
        parts: impl Fn(K) -> Option<(ObjectMeta, PodSpec)>,
    ) {
        let objects = match listed {
            Ok(objects) => objects,
            Err(error) => return self.unseen.push((resource, error)),
        };
        let alone = objects.into_iter().filter_map(parts).filter(|(metadata, _)| !is_controlled(metadata));
        self.seen.extend(
            alone.map(|(metadata, pod)| (format!("{} {}", K::kind(&()), metadata.name.unwrap_or_default()), pod)),
        );
    }

    /// Why some may be missing, in a sentence.
    pub fn gaps(&self, namespace: &str) -> Option<String> {
        let (forbidden, failed): (Vec<_>, Vec<_>) = self.unseen.iter().partition(|(_, error)| error.is_forbidden());
        let forbidden: Vec<_> = forbidden.iter().map(|(resource, _)| *resource).collect();
        let forbidden = match forbidden.is_empty() {
            true => None,
            false => Some(format!("you may not list {} in {namespace}", forbidden.join(", "))),
        };
        let failed = failed.first().map(|(resource, error)| error.why_hidden(resource, namespace));
        let why: Vec<_> = forbidden.into_iter().chain(failed).collect();
        (!why.is_empty()).then(|| format!("Workloads may be missing here: {}.", why.join("; ")))
    }

    /// Those that mount this Secret, as `Deployment runner`.
    pub fn using(&self, secret: &str) -> Vec<&str> {
        self.seen.iter().filter(|(_, pod)| uses(pod, secret)).map(|(name, _)| &**name).collect()
    }
}

async fn listed<K: Namespaced>(cluster: &Cluster, namespace: &str) -> Result<Vec<K>, ApiError> {
    cluster.list(Some(namespace), &ListParams::default()).await
}

fn is_controlled(metadata: &ObjectMeta) -> bool {
    metadata.owner_references.iter().flatten().any(|owner| owner.controller == Some(true))
}

/// Whether a Pod reads the Secret: by a volume, or into its environment.
fn uses(pod: &PodSpec, secret: &str) -> bool {
    let is_it = |name: Option<&str>| name == Some(secret);
    let by_volume = |volume: &Volume| {
        let own = volume.secret.as_ref().and_then(|source| source.secret_name.as_deref());
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        is_it(own) || projected.filter_map(|source| source.secret.as_ref()).any(|source| source.name == secret)
    };
    let by_variable = |variable: &EnvVar| {
        let source = variable.value_from.as_ref().and_then(|source| source.secret_key_ref.as_ref());
        source.is_some_and(|source| source.name == secret)
    };
    let by_environment =
        |source: &EnvFromSource| source.secret_ref.as_ref().is_some_and(|source| source.name == secret);
    let by_container = |container: &Container| {
        container.env.iter().flatten().any(by_variable) || container.env_from.iter().flatten().any(by_environment)
    };
    pod.volumes.iter().flatten().any(by_volume)
        || pod.containers.iter().chain(pod.init_containers.iter().flatten()).any(by_container)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_way_to_a_secret_counts() {
        let container = |field: &str, value: Value| json!({"name": "c", field: value});
        let variable =
            |name: &str| json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": name, "key": "api-key"}}}]);
        for (pod, uses_it) in [
            (json!({"containers": []}), false),
            (json!({"containers": [], "volumes": [{"name": "v", "secret": {"secretName": "ci"}}]}), true),
            (json!({"containers": [], "volumes": [{"name": "v", "secret": {"secretName": "other"}}]}), false),
            (json!({"containers": [], "volumes": [{"name": "ci", "configMap": {"name": "ci"}}]}), false),
            (
                json!({"containers": [], "volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "ci"}}]}}]}),
                true,
            ),
            (json!({"containers": [container("env", variable("ci"))]}), true),
            (json!({"containers": [container("env", variable("other"))]}), false),
            (json!({"containers": [container("envFrom", json!([{"secretRef": {"name": "ci"}}]))]}), true),
            (json!({"containers": [], "initContainers": [container("env", variable("ci"))]}), true),
        ] {
            let read: PodSpec = serde_json::from_value(pod.clone()).unwrap();
            assert_eq!(uses(&read, "ci"), uses_it, "{pod}");
        }
    }

    #[test]
    fn a_controller_stands_for_what_it_controls() {
        let owned = |controller: bool| -> Pod {
            let owners =
                json!([{"apiVersion": "v1", "kind": "Job", "name": "j", "uid": "u", "controller": controller}]);
            let spec = json!({"containers": [], "volumes": [{"name": "v", "secret": {"secretName": "ci"}}]});
            serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": owners}, "spec": spec})).unwrap()
        };
        for (pod, users) in [(owned(true), vec![]), (owned(false), vec!["Pod p"])] {
            let mut workloads = Workloads::default();
            workloads.add("pods", Ok(vec![pod]), |it: Pod| Some((it.metadata, it.spec?)));
            assert_eq!(workloads.using("ci"), users);
        }
    }

    #[test]
    fn what_may_be_missing_is_told_with_its_reason() {
        let forbidden = || {
            let status = json!({"status": "Failure", "code": 403, "reason": "Forbidden", "message": "pods is forbidden: User \"ann@x\" cannot list resource \"pods\""});
            ApiError::Refused(Box::new(serde_json::from_value(status).unwrap()))
        };
        let mut workloads = Workloads::default();
        assert_eq!(workloads.gaps("team-a"), None);
        for (resource, error) in [
            ("deployments", forbidden()),
            ("jobs", forbidden()),
            ("pods", ApiError::Unreachable("no route".to_owned())),
        ] {
            workloads.add(resource, Err(error), |it: Pod| Some((it.metadata, it.spec?)));
        }
        let said = "Workloads may be missing here: you may not list deployments, jobs in team-a; no answer (no route).";
        assert_eq!(workloads.gaps("team-a").as_deref(), Some(said));
    }
}
