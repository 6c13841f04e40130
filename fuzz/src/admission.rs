use keywright_core::admission::review::{PatchOperation, Request};
use keywright_core::admission::{Phase, Verdict, judge};
use serde_json::Value;

use crate::now;

/// The input is the body of a request to the webhook.
pub fn admission_review(data: &[u8]) {
    let request = match Request::read(data) {
        Ok(request) => request,
        Err(malformed) => return assert!(malformed.to_string().len() <= 1024 + data.len(), "{malformed}"),
    };
    for phase in [Phase::Mutating, Phase::Validating] {
        let verdict = judge(phase, &request, now());
        assert_answer(&request, &verdict);
        if let Verdict::Allowed { patch, warnings } = &verdict {
            assert!(patch.is_empty() || phase == Phase::Mutating);
            assert!(warnings.iter().all(|warning| warning.len() <= 256), "{warnings:?}");
            if phase == Phase::Mutating {
                assert_complete(data, patch);
            }
        }
    }
}

/// What the API server gets is an answer to its question.
fn assert_answer(request: &Request<'_>, verdict: &Verdict) {
    let answer = request.answer(verdict).unwrap_or_else(|error| panic!("{error}"));
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{error}"));
    let response = &answer["response"];
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(response["uid"], *request.uid);
    assert_eq!(response["allowed"], matches!(verdict, Verdict::Allowed { .. }));
    match verdict {
        Verdict::Allowed { patch, .. } => {
            assert_eq!(response.get("patch").is_some(), !patch.is_empty());
            assert_eq!(response.get("status"), None);
        }
        Verdict::Invalid(problems) => {
            assert!(!problems.is_empty());
            assert_eq!(response["status"]["code"], 422);
            assert_eq!(response["status"]["details"]["causes"].as_array().map(Vec::len), Some(problems.len()));
        }
        Verdict::Misdirected(_) => assert_eq!(response["status"]["code"], 400),
    }
}

/// What `/mutate` lets through passes `/validate` once it is completed, and needs no more completion.
fn assert_complete(data: &[u8], patch: &[PatchOperation]) {
    let Ok(mut review) = serde_json::from_slice::<Value>(data) else { return };
    let Some(object) = review.pointer_mut("/request/object") else { return };
    if !patch.iter().all(|operation| carry_out(object, operation)) {
        return;
    }
    let completed = review.to_string();
    let request = Request::read(completed.as_bytes()).unwrap_or_else(|error| panic!("{error}: {completed}"));
    match judge(Phase::Mutating, &request, now()) {
        Verdict::Allowed { patch, .. } => assert!(patch.is_empty(), "{patch:?} once more for {completed}"),
        verdict => panic!("{verdict:?} once completed: {completed}"),
    }
    match judge(Phase::Validating, &request, now()) {
        Verdict::Allowed { .. } => {}
        verdict => panic!("{verdict:?} once completed: {completed}"),
    }
}

/// Carries an operation of RFC 6902 out, where there is a place for it.
fn carry_out(object: &mut Value, operation: &PatchOperation) -> bool {
    let Some((parent, name)) = operation.path.rsplit_once('/') else { return false };
    match object.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            let name = name.replace("~1", "/").replace("~0", "~");
            match &operation.value {
                Some(value) => drop(fields.insert(name, value.clone())),
                None => drop(fields.remove(&name)),
            }
            true
        }
        Some(Value::Array(items)) if name == "-" => {
            items.extend(operation.value.clone());
            true
        }
        _ => false,
    }
}
