//! A controller that cannot list or watch says so, and is not Ready.

use keywright_testing::{ApiRequest, Fault, FaultProxy, Injection, Installation, Occurrence, Outcome, Program};

/// It says what is wrong and what to do, counts it, and is not Ready.
async fn complains(controller: &Program, kind: &str, remedy: &str) {
    controller.says(remedy).await;
    let (is_ready, said) = controller.readiness().await;
    assert!(!is_ready && said.contains("The log says why"), "{kind}: {said}");
    let metrics = controller.metrics().await;
    let counted = metrics.lines().find_map(|line| {
        line.strip_prefix(&format!("keywright_watch_errors_total{{kind=\"{kind}\"}} "))?.parse::<u32>().ok()
    });
    assert!(counted.is_some_and(|counted| counted > 0), "{kind} in {metrics}");
}

fn inject(faults: &FaultProxy, resource: &'static str, code: u16) -> Injection {
    let is_list = move |request: &ApiRequest| request.is("GET", resource) && request.name.is_none();
    faults.inject(Fault::Before(Outcome::Status(code)), Occurrence::Every, is_list)
}

#[tokio::test]
async fn a_token_that_is_not_good_is_told() {
    let installation = Installation::new("unauthorized").await;
    let credentials = installation.void_credentials();
    let controller = installation.program("controller").argument("--leader-elect=false").in_pod(&credentials);
    complains(&controller.start().await, "unauthorized", "cannot follow apikeys: check that the token").await;
}

#[tokio::test]
async fn rights_that_are_missing_are_told() {
    let installation = Installation::new("forbidden").await;
    let credentials = installation.credentials("webhook").await;
    let controller = installation.program("controller").argument("--leader-elect=false").in_pod(&credentials);
    let controller = controller.start().await;
    complains(&controller, "forbidden", "cannot follow apikeyrecords: check that the chart's roles").await;
    assert!(controller.printed().contains("cannot list resource"), "the API server's words: {}", controller.printed());
}

#[tokio::test]
async fn an_api_server_that_is_not_there_is_told() {
    let installation = Installation::new("unreachable").await;
    let faults = FaultProxy::start(installation.control_plane).await;
    let controller = installation.program("controller").argument("--leader-elect=false").through(&faults);
    drop(faults);
    complains(&controller.start().await, "unreachable", "cannot follow apikeyrecords: check that the API server").await;
}

#[tokio::test]
async fn kinds_that_are_not_served_are_told_until_they_are() {
    for resource in ["apikeys", "apikeyrecords"] {
        let installation = Installation::new("unserved").await;
        let faults = FaultProxy::start(installation.control_plane).await;
        let unserved = inject(&faults, resource, 404);
        let controller = installation.program("controller").argument("--leader-elect=false").through(&faults);
        let controller = controller.start().await;
        complains(&controller, "not_found", &format!("cannot follow {resource}: check that the definitions")).await;
        unserved.lift();
        controller.ready().await;
    }
}

#[tokio::test]
async fn a_leader_is_ready_only_with_its_first_lists() {
    let installation = Installation::new("leading").await;
    let faults = FaultProxy::start(installation.control_plane).await;
    let broken = inject(&faults, "apikeyrecords", 500);
    let controller = installation.program("controller").through(&faults).start().await;
    controller.says("\"leading\"").await;
    complains(&controller, "refused", "cannot follow apikeyrecords: check what the API server's log").await;
    let standby = installation.program("controller").through(&faults).start().await;
    standby.ready().await;
    broken.lift();
    controller.ready().await;
}
