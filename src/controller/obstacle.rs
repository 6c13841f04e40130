//! Whether the API server would take a Secret with a key in it.

use keywright_core::key::Key;
use keywright_core::lifecycle::{Obstacle, secret_to_probe};
use kube::ResourceExt;
use kube::api::PostParams;
use kube::core::Status;
use rand::rngs::SysRng;

use super::cluster::Cluster;
use super::error::Error;
use super::observe::Observation;
use crate::clock;

/// Asks the API server whether it would take a Secret, where the next plan depends on it and it was not asked.
pub(super) async fn ask_obstacle(cluster: &Cluster, observation: &mut Observation) -> Result<(), Error> {
    if observation.observed.obstacle.is_none() && observation.observed.needs_to_know_obstacle(clock::now()) {
        observation.observed.obstacle = obstacle(cluster, observation).await?;
    }
    Ok(())
}

/// Whether the API server would take a Secret with a key in it: a quota, somebody's policy, somebody's webhook, or a
/// namespace that is going may refuse. A dry run of the very write, with a key that nobody will ever hold.
pub(super) async fn obstacle(cluster: &Cluster, observation: &Observation) -> Result<Option<Obstacle>, Error> {
    let key = Key::mint(&mut SysRng).map_err(Error::random)?;
    let Some(probe) = secret_to_probe(&observation.observed, key.prefix()) else { return Ok(None) };
    let secrets = cluster.secrets(&observation.observed.reference.namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let secret = probe.object(key.reveal());
    let answer = match probe.replaces() {
        false => secrets.create(&dry_run, &secret).await,
        true => secrets.replace(&secret.name_any(), &dry_run, &secret).await,
    };
    match answer.map_err(Error::from) {
        Err(Error::Refused(status)) if is_about_dry_runs(&status) => {
            Ok(Some(Obstacle::Unknown(status.message.clone())))
        }
        Err(Error::Refused(status)) if is_refusal(&status) => Ok(Some(Obstacle::Refused(status.message.clone()))),
        // Somebody else was faster: the next look shows it.
        Err(Error::Refused(status)) if status.code == 409 => Ok(None),
        answer => answer.map(|_| None),
    }
}

/// PURE. Whether an answer refuses the object, so that the same write would be refused again: in contrast to one that
/// says that the API server is busy, that somebody else was faster, or that this program's credentials are no good.
pub(super) fn is_refusal(status: &Status) -> bool {
    let is_of_admission = ["admission", "webhook", "denied request"].iter().any(|word| status.message.contains(word));
    match status.code {
        409 => false,
        401 | 408 | 429 | 500.. => is_of_admission,
        code => code >= 400,
    }
}

/// PURE. Whether an answer says that an admission webhook has side effects, so that a dry run tells nothing.
fn is_about_dry_runs(status: &Status) -> bool {
    status.code == 400 && status.message.contains("does not support dry run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_an_api_server_that_cannot_answer() {
        for (code, message, expected) in [
            (403, "exceeded quota: no-secrets", true),
            (422, "ValidatingAdmissionPolicy 'frozen' with binding 'frozen' denied request: no", true),
            (400, "admission webhook \"x\" denied the request: no", true),
            (404, "namespaces \"team-a\" not found", true),
            (413, "ValidatingAdmissionPolicy 'frozen' with binding 'frozen' denied request: too large", true),
            (401, "ValidatingAdmissionPolicy 'frozen' with binding 'frozen' denied request: no", true),
            (401, "Unauthorized", false),
            (429, "Too many requests, please try again later.", false),
            (429, "admission webhook \"x\" denied the request: slow down", true),
            (500, "Internal error occurred: failed calling webhook \"x\": connection refused", true),
            (500, "etcdserver: request timed out", false),
            (503, "admission webhook \"x\" denied the request: closed", true),
            (503, "the server is currently unable to handle the request", false),
            (504, "Timeout: request did not complete within the allotted timeout", false),
            (409, "secrets \"ci\" already exists", false),
            (409, "Operation cannot be fulfilled on secrets \"ci\"", false),
        ] {
            let status = Status { code, message: message.to_owned(), ..Status::default() };
            assert_eq!(is_refusal(&status), expected, "{code} {message}");
        }
    }
}
