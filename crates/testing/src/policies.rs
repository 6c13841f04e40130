//! The chart's ValidatingAdmissionPolicies. The API server takes them up a moment after they are there, and lets go of them
//! a moment after they are gone: attempts tell.

use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use kube::Api;
use kube::api::DeleteParams;

use super::installation::Installation;
use super::wait::DEADLINE;

impl Installation {
    /// The name of a policy of this installation and of its binding; `rule` is `records`, `finalizer`, `secrets` or
    /// `leases`.
    pub fn policy(&self, rule: &str) -> String {
        format!("{}-{rule}", self.tenant_namespace)
    }

    /// Whether the answer is that policy's refusal, and nobody else's.
    pub fn is_refused_by<T>(&self, rule: &str, answer: &kube::Result<T>) -> bool {
        let told = format!("ValidatingAdmissionPolicy '{}'", self.policy(rule));
        matches!(answer, Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains(&told))
    }

    /// Waits until the policy refuses the attempt: a dry run of something that it forbids.
    pub async fn in_force<T>(&self, rule: &str, attempt: impl AsyncFn() -> kube::Result<T>) {
        self.refused(rule, true, attempt).await;
    }

    /// Takes a policy out of force, as people are told to in docs/security.md. The attempt is as for
    /// [`Self::in_force`].
    pub async fn break_glass<T>(&self, rule: &str, attempt: impl AsyncFn() -> kube::Result<T>) {
        // A policy that is not yet in force could still become so, for a moment, from what the API server had cached.
        self.refused(rule, true, &attempt).await;
        let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(self.client.clone());
        bindings.delete(&self.policy(rule), &DeleteParams::default()).await.expect("an administrator may");
        self.permitted(rule, &attempt).await;
    }

    /// Waits until the policy refuses the attempt no more.
    pub async fn permitted<T>(&self, rule: &str, attempt: impl AsyncFn() -> kube::Result<T>) {
        self.refused(rule, false, attempt).await;
    }

    async fn refused<T>(&self, rule: &str, expected: bool, attempt: impl AsyncFn() -> kube::Result<T>) {
        let started = Instant::now();
        loop {
            let answer = attempt().await;
            if self.is_refused_by(rule, &answer) == expected {
                return;
            }
            let last = answer.err();
            assert!(started.elapsed() < DEADLINE, "refused by {rule}: {}, last error: {last:?}", !expected);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
