//! What the API server's audit log says about one installation: who sent which requests. Metadata only.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use super::installation::Installation;
use super::wait::DEADLINE;

/// One request to ApiKeys, records, Secrets, Leases or Events, that the API server has answered.
#[derive(Debug, Clone)]
pub struct AuditedRequest {
    /// `system:serviceaccount:NAMESPACE:NAME`, or a person's name.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// `apikeys`, or `apikeys/status`.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    /// Of the URL: `limit=1`.
    pub parameters: Vec<String>,
    /// The HTTP status of the answer.
    pub code: u64,
    /// When it was answered.
    pub at: Timestamp,
}

impl Installation {
    /// Every request in this installation's namespaces, and every one of its ServiceAccounts, that was answered before
    /// this call.
    pub async fn audited_requests(&self) -> Vec<AuditedRequest> {
        // The log is written after the answer, so the last requests may be missing until a later one is there.
        let marker = format!("marker-{:08x}", rand::random::<u32>());
        let _ = self.system::<Secret>().get_opt(&marker).await.expect("an administrator may read");
        let log = tokio::time::timeout(DEADLINE, async {
            loop {
                let log = std::fs::read_to_string(self.control_plane.audit_log()).unwrap_or_default();
                if log.contains(&marker) {
                    return log;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let log = log.await.expect("the audit log follows the requests");
        let own = |request: &AuditedRequest| self.concerns(request) && request.name != marker;
        log.lines().filter_map(parse).filter(own).collect()
    }

    fn concerns(&self, request: &AuditedRequest) -> bool {
        [&self.system_namespace, &self.tenant_namespace].contains(&&request.namespace)
            || request.user.starts_with(&format!("system:serviceaccount:{}:", self.system_namespace))
    }
}

fn parse(line: &str) -> Option<AuditedRequest> {
    let event: Value = serde_json::from_str(line).ok()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (verb, object) = (text(&event["verb"]), &event["objectRef"]);
    // A watch is answered for as long as it lasts: it counts when it starts, everything else when it is done.
    let counted = if verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
    if event["stage"] != counted {
        return None;
    }
    let resource = match object["subresource"].as_str() {
        Some(subresource) => format!("{}/{subresource}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    let query = event["requestURI"].as_str()?.split_once('?').map_or("", |(_, query)| query);
    let parameters = query.split('&').map(str::to_owned).collect();
    Some(AuditedRequest {
        user: text(&event["user"]["username"]),
        verb,
        resource,
        namespace: text(&object["namespace"]),
        name: text(&object["name"]),
        parameters,
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
        at: event["stageTimestamp"].as_str()?.parse().ok()?,
    })
}
