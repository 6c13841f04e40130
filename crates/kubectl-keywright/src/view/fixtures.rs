//! ApiKeys for tests, as the API server gives them.

use jiff::Zoned;
use keywright_core::api::ApiKey;
use serde_json::{Value, json};

/// What the clock says in these tests: 13:05 UTC.
pub(crate) fn now() -> Zoned {
    "2026-11-29T14:05:00+01:00[Europe/Berlin]".parse().unwrap()
}

/// The active ApiKey `team-a/nightly-ci`, with a change. `reason`, `message`, `created`, `generation`, `deleted` and `name`
/// are short for what they mean; what is in `spec`, `status`, `metadata` and `conditions` is laid over.
pub(crate) fn apikey(change: &Value) -> ApiKey {
    let short = |name: &str, default: Value| change.get(name).cloned().unwrap_or(default);
    let reason = short("reason", json!("Active"));
    let mut key = json!({
        "apiVersion": "keywright.dev/v1alpha1",
        "kind": "ApiKey",
        "metadata": {
            "namespace": "team-a",
            "name": short("name", json!("nightly-ci")),
            "uid": "0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b",
            "resourceVersion": "812",
            "generation": short("generation", json!(1)),
            "creationTimestamp": short("created", json!("2026-11-26T13:00:00Z")),
        },
        "spec": {"displayName": "Nightly CI", "owner": "ann@x"},
        "status": {
            "observedGeneration": short("generation", json!(1)),
            "keyPrefix": "keyw1_7Tq2mZx9",
            "serial": 1,
            "secretName": "nightly-ci",
            "lastUsedAt": "2026-11-29T13:01:00Z",
            "expires": "Never",
            "enforcedGeneration": short("generation", json!(1)),
        },
    });
    if short("deleted", json!(false)) == json!(true) {
        key["metadata"]["deletionTimestamp"] = json!("2026-11-29T13:04:00Z");
    }
    if reason.is_string() {
        key["status"]["conditions"] =
            conditions(&reason, &short("message", json!("the key is let in")), &key["metadata"]["generation"]);
    }
    for part in ["metadata", "spec", "status"] {
        lay_over(&mut key[part], change.get(part).unwrap_or(&Value::Null));
    }
    if let Some(Value::Array(more)) = change.get("conditions") {
        key["status"]["conditions"].as_array_mut().unwrap().extend(more.iter().cloned());
    }
    serde_json::from_value(key).unwrap()
}

fn conditions(reason: &Value, message: &Value, generation: &Value) -> Value {
    let word = reason.as_str().unwrap();
    let (active, ready, stalled) = match word {
        "Active" | "Rotating" => ("True", "True", "False"),
        "Suspended" | "Expired" => ("False", "True", "False"),
        "Issuing" | "Revoking" | "MintBudget" => ("False", "False", "False"),
        _ => ("False", "False", "True"),
    };
    let condition = |type_: &str, status: &str, reason: &str| {
        json!({
            "type": type_, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-11-29T13:00:00Z", "observedGeneration": generation,
        })
    };
    let stalling = if stalled == "True" { word } else { "NotStalled" };
    json!([condition("Active", active, word), condition("Ready", ready, word), condition("Stalled", stalled, stalling)])
}

/// A condition that is true, to be given as one of `conditions`.
pub(crate) fn true_condition(type_: &str) -> Value {
    json!({"type": type_, "status": "True", "reason": type_, "message": "", "lastTransitionTime": "2026-11-29T13:00:00Z"})
}

fn lay_over(to: &mut Value, from: &Value) {
    for (name, value) in from.as_object().into_iter().flatten() {
        to[name] = value.clone();
    }
}
