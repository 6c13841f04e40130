//! What waits for the verifiers, and what does not.

use super::*;

fn silent() -> Enforcement {
    let latest = "2026-11-01T00:10:31Z".parse().unwrap();
    Enforcement::Pending(Pending::Verifiers { on: vec!["verifier-a".into(), "verifier-b".into()], latest })
}

fn issued(spec: Value) -> World {
    let mut world = World::new(spec);
    assert_eq!(world.run(None), Rest::Settled);
    world
}

impl World {
    fn declare(&mut self, spec: Value) {
        (self.spec, self.generation) = (spec, self.generation + 1);
    }

    fn said(&self) -> &str {
        &self.status.conditions[0].message
    }
}

#[test]
fn a_deletion_goes_on_once_every_verifier_enforces_it_and_says_for_whom_it_waits() {
    let mut world = issued(json!({}));
    (world.deleting, world.verifiers) = (true, silent());
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!((world.reason(), world.finalizer), (Reason::Revoking, true));
    assert!(world.records.values().all(|record| !record.is_live()), "revoked at once");
    let said = world.said();
    assert!(said.contains("until 2026-11-01T00:10:31Z at the latest: verifier-a, verifier-b"), "{said}");
    let Plan::Rest(finding) = world.plan() else { panic!("not at rest") };
    assert_eq!(finding.wake, Some("2026-11-01T00:10:32Z".parse().unwrap()));
    world.check_rest(Rest::Settled);
    world.verifiers = Enforcement::Complete { verifiers: 2 };
    assert_eq!(world.run(None), Rest::Done);
    assert!(!world.finalizer);
}

#[test]
fn a_deletion_goes_on_at_once_where_no_verifier_runs_and_says_so() {
    for (verifiers, says_so) in [(0, true), (3, false)] {
        let mut world = issued(json!({}));
        (world.deleting, world.verifiers) = (true, Enforcement::Complete { verifiers });
        world.other_finalizers = vec!["example.com/backup".into()];
        assert_eq!(world.run(None), Rest::Done);
        assert_eq!(world.said().contains("no verifier runs"), says_so, "{}", world.said());
        // Our finalizer is gone, and the verifiers are not asked again.
        world.check_rest(Rest::Done);
        assert_eq!(world.said().contains("no verifier runs"), says_so, "{}", world.said());
    }
}

#[test]
fn a_generation_is_enforced_when_every_verifier_says_so_and_not_before() {
    let mut world = issued(json!({}));
    assert_eq!(world.status.enforced_generation, Some(1), "in the status that tells of the key");
    world.declare(json!({ "suspended": true }));
    world.verifiers = silent();
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!((world.status.enforced_generation, world.reason()), (Some(1), Reason::Suspended));
    assert!(world.said().contains("not enforced everywhere: waiting for the verifiers' acknowledgement"));
    world.check_rest(Rest::Settled);
    world.verifiers = Enforcement::Complete { verifiers: 2 };
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!(world.status.enforced_generation, Some(2));
    assert!(!world.said().contains("enforced"), "{}", world.said());
    world.declare(json!({ "allowedIPs": ["nonsense"] }));
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!((world.status.enforced_generation, world.reason()), (Some(2), Reason::Invalid), "nothing of that is");
}

#[test]
fn nobody_is_asked_about_a_generation_that_is_reported_already() {
    let world = issued(json!({}));
    assert_eq!(world.observed().enforcement, Enforcement::Complete { verifiers: 1 });
    let observed = Observed { enforcement: Enforcement::Unasked, ..world.observed() };
    assert!(matches!(plan(&observed, world.now), Plan::Rest(_)));
}

#[test]
fn a_key_goes_into_its_secret_although_verifiers_are_silent_and_a_submitted_one_is_active_when_they_know_it() {
    let mut world = World::new(json!({}));
    world.verifiers = silent();
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!((world.reason(), world.handed_out.len(), world.status.enforced_generation), (Reason::Active, 1, None));

    let mut world = World::new(json!({ "keyHash": Digest::of(b"somebody's own").to_string() }));
    world.verifiers = silent();
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!((world.reason(), world.status.serial), (Reason::Issuing, None));
    assert!(world.said().contains("verifier-a"), "{}", world.said());
    world.verifiers = Enforcement::Complete { verifiers: 1 };
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!((world.reason(), world.status.enforced_generation), (Reason::Active, Some(1)));
    world.declare(json!({ "keyHash": Digest::of(b"somebody's own").to_string(), "suspended": true }));
    world.verifiers = silent();
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!(world.reason(), Reason::Suspended, "it was known once");
}

#[test]
fn who_is_missing_is_named_though_not_without_end() {
    let missing: Vec<_> = (0..7).map(|number| format!("verifier-{number}").into()).collect();
    let announcement = handed_out_early(2, &missing, &Pending::Unread);
    assert!(announcement.warning && announcement.note.contains("verifier-4 and 2 more; check them"));
    assert!(handed_out_early(2, &[], &Pending::Unread).note.contains("cannot read the verifiers' Leases"));
    assert!(handed_out_early(2, &[], &Pending::TooManyLeases).note.contains("too many Leases"));
}
