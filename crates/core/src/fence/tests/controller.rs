//! One controller by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;

fn at(seconds: u64) -> Moment {
    Moment::since_boot(Duration::from_secs(1000 + seconds))
}

fn version(number: u64) -> RecordVersion {
    number.to_string().parse().unwrap()
}

/// A Lease of ten minutes.
fn lease(name: &str, lease_version: u64, applied: Option<u64>) -> Lease {
    let holder = Holder::new(name, 1, Duration::from_secs(600));
    let precondition =
        Precondition { uid: format!("uid-{name}").into(), version: lease_version.to_string().parse().unwrap() };
    let content = Content { state: State::Serving, applied: applied.map(version) };
    content.object(&holder, Some(&precondition), Timestamp::UNIX_EPOCH)
}

fn look(fence: &mut Fence, leases: &[Lease], records: u64, now: Moment) {
    let look = fence.look();
    fence.looked(&look, &view(leases, records), now);
}

fn view(leases: &[Lease], records: u64) -> View<'_> {
    View { leases, version: "100".parse().unwrap(), records: version(records) }
}

fn waiting(fence: &Fence, awaited: &Awaited, now: Moment) -> (Vec<String>, Moment) {
    match fence.judge(awaited, now) {
        Verdict::Waiting { on, latest } => (on.iter().map(ToString::to_string).collect(), latest),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_version_passes_when_every_lease_has_applied_it() {
    let mut fence = Fence::default();
    let awaited = fence.awaited(version(10), at(0));
    assert_eq!(fence.judge(&awaited, at(0)), Verdict::Unlooked);
    look(&mut fence, &[lease("a", 1, Some(10)), lease("b", 2, Some(9)), lease("c", 3, None)], 12, at(1));
    let until = at(1 + 600 + 30 + 1);
    assert_eq!(waiting(&fence, &awaited, at(1)), (vec!["b".to_owned(), "c".to_owned()], until));
    look(&mut fence, &[lease("a", 1, Some(10)), lease("b", 4, Some(12)), lease("c", 5, Some(11))], 12, at(2));
    assert_eq!(fence.judge(&awaited, at(2)), Verdict::Passed { verifiers: 3 });
}

#[test]
fn without_verifiers_it_passes_at_once_and_says_so() {
    let mut fence = Fence::default();
    let awaited = fence.awaited(version(10), at(0));
    let [mut election, mut other] = [ELECTION_LEASE, "somebody-else"].map(|name| lease(name, 1, None));
    (election.metadata.annotations, other.metadata.annotations) = (None, Some(BTreeMap::new()));
    look(&mut fence, &[election, other], 10, at(1000));
    assert_eq!(fence.judge(&awaited, at(1000)), Verdict::Passed { verifiers: 0 });
    assert_eq!(fence.overdue(at(9000)).next(), None, "and they are left alone");
}

#[test]
fn a_look_that_began_before_the_version_was_known_does_not_count() {
    let mut fence = Fence::default();
    let early = fence.look();
    let awaited = fence.awaited(version(10), at(0));
    fence.looked(&early, &view(&[], 9), at(1));
    assert_eq!(fence.judge(&awaited, at(1)), Verdict::Unlooked);
    look(&mut fence, &[], 10, at(2));
    assert_eq!(fence.judge(&awaited, at(2)), Verdict::Passed { verifiers: 0 });
}

#[test]
fn a_verifier_that_joined_after_the_look_is_not_waited_for() {
    let mut fence = Fence::default();
    let awaited = fence.awaited(version(10), at(0));
    look(&mut fence, &[lease("a", 1, None)], 10, at(1));
    look(&mut fence, &[lease("a", 1, None), lease("b", 2, None)], 10, at(2));
    assert_eq!(waiting(&fence, &awaited, at(2)).0, ["a"]);
    let later = fence.awaited(version(11), at(3));
    look(&mut fence, &[lease("a", 1, None), lease("b", 2, None)], 11, at(3));
    assert_eq!(waiting(&fence, &later, at(3)).0, ["a", "b"]);
}

#[test]
fn a_silent_lease_is_overdue_after_its_duration_by_this_clock_and_waited_for_until_it_is_gone() {
    let mut fence = Fence::default();
    let awaited = fence.awaited(version(10), at(0));
    look(&mut fence, &[lease("a", 1, None)], 10, at(0));
    look(&mut fence, &[lease("a", 1, None)], 10, at(300));
    assert_eq!(fence.next_overdue(), Some(at(631)));
    assert_eq!(fence.overdue(at(630)).count(), 0);
    let evictions: Vec<_> = fence.overdue(at(631)).collect();
    assert_eq!((&*evictions[0].name, evictions[0].precondition.version.to_string()), ("a", "1".to_owned()));
    assert_eq!(waiting(&fence, &awaited, at(9999)).0, ["a"]);
    look(&mut fence, &[lease("a", 2, None)], 10, at(631));
    assert_eq!(fence.overdue(at(631)).count(), 0, "it was renewed");
    look(&mut fence, &[], 10, at(632));
    assert_eq!(fence.judge(&awaited, at(632)), Verdict::Passed { verifiers: 0 });
}

#[test]
fn what_cannot_be_is_no_acknowledgement() {
    let mut fence = Fence::default();
    let awaited = fence.awaited(version(10), at(0));
    look(&mut fence, &[lease("a", 1, Some(99))], 12, at(1));
    assert_eq!(waiting(&fence, &awaited, at(1)).0, ["a"], "above every version that there is");
    for text in ["", "x", "+11", "011", "99999999999999999999999999999999999999999"] {
        let mut unreadable = lease("a", 2, None);
        unreadable.metadata.annotations.get_or_insert_default().insert(APPLIED_ANNOTATION.to_owned(), text.to_owned());
        look(&mut fence, &[unreadable], 12, at(2));
        assert_eq!(waiting(&fence, &awaited, at(2)).0, ["a"], "{text:?}");
    }
}

#[test]
fn a_lease_that_does_not_say_how_long_is_waited_for_for_a_day() {
    for seconds in [None, Some(0), Some(-1), Some(i32::MAX)] {
        let mut long = lease("a", 1, None);
        long.spec.as_mut().unwrap().lease_duration_seconds = seconds;
        assert_eq!(Stored::read(&long).unwrap().duration, Duration::from_secs(86_400), "{seconds:?}");
    }
}

#[test]
fn nothing_passes_with_more_leases_than_are_held() {
    let mut fence = Fence::default();
    let awaited = fence.awaited(version(10), at(0));
    let mut leases: Vec<_> = (0..=MOST_LEASES).map(|number| lease(&format!("v{number}"), 1, Some(10))).collect();
    look(&mut fence, &leases, 10, at(1));
    assert_eq!(fence.judge(&awaited, at(1)), Verdict::Incomplete);
    leases.truncate(3);
    look(&mut fence, &leases, 10, at(2));
    assert_eq!(fence.judge(&awaited, at(2)), Verdict::Passed { verifiers: 3 });
    leases[0].metadata.uid = None;
    look(&mut fence, &leases, 10, at(3));
    assert_eq!(fence.judge(&awaited, at(3)), Verdict::Incomplete);
}

/// The Lease that did not fit was no newcomer.
#[test]
fn a_lease_that_was_not_held_is_not_taken_for_a_new_one() {
    let mut fence = Fence::default();
    let awaited = fence.awaited(version(10), at(0));
    let mut leases: Vec<_> = (0..=MOST_LEASES).map(|number| lease(&format!("v{number}"), 1, Some(10))).collect();
    leases.last_mut().unwrap().metadata.annotations.get_or_insert_default().remove(APPLIED_ANNOTATION);
    look(&mut fence, &leases, 10, at(1));
    look(&mut fence, &leases[1..], 10, at(2));
    assert_eq!(waiting(&fence, &awaited, at(2)).0, [format!("v{MOST_LEASES}")]);
}

#[test]
fn after_a_restore_nothing_passes_until_no_lost_lease_is_relied_on() {
    let mut fence = Fence::default();
    look(&mut fence, &[lease("a", 1, Some(20))], 20, at(0));
    let before = fence.awaited(version(20), at(1));
    look(&mut fence, &[], 15, at(10));
    let after = fence.awaited(version(16), at(11));
    look(&mut fence, &[], 16, at(12));
    let until = at(10 + 631);
    for awaited in [&before, &after] {
        assert_eq!(fence.judge(awaited, at(640)), Verdict::Restored { until });
    }
    assert_eq!(fence.judge(&after, until), Verdict::Passed { verifiers: 0 });
    assert_eq!(fence.judge(&before, until), Verdict::Restored { until }, "its version was lost");
}

/// A version may become known while a look is under way that began before.
#[test]
fn a_look_that_is_older_than_a_version_is_no_restore() {
    let mut fence = Fence::default();
    let early = fence.look();
    let awaited = fence.awaited(version(20), at(1));
    fence.looked(&early, &view(&[], 19), at(2));
    look(&mut fence, &[], 20, at(3));
    assert_eq!(fence.judge(&awaited, at(3)), Verdict::Passed { verifiers: 0 });
}

#[test]
fn a_key_waits_for_ten_seconds_and_who_missed_one_is_not_waited_for_until_it_speaks() {
    let mut fence = Fence::default();
    let deliver = |fence: &mut Fence, records: u64, b: (u64, Option<u64>), began: u64| {
        let awaited = fence.awaited(version(records), at(began));
        look(fence, &[lease("a", 100 + records, Some(records)), lease("b", b.0, b.1)], records, at(began));
        (fence.wait(&awaited, DELIVERY_PATIENCE, at(began)), fence.wait(&awaited, DELIVERY_PATIENCE, at(began + 10)))
    };
    let missed: Vec<Arc<str>> = vec!["b".into()];
    let waits = |began: u64| (Wait::Until(at(began + 10)), Wait::Missed(missed.clone()));
    assert_eq!(deliver(&mut fence, 10, (1, None), 0), waits(0));
    assert_eq!(deliver(&mut fence, 11, (1, None), 20), (Wait::Over, Wait::Over));
    assert_eq!(deliver(&mut fence, 12, (2, None), 40), (Wait::Over, Wait::Over), "renewed is not acknowledged");
    assert_eq!(deliver(&mut fence, 13, (3, Some(12)), 60), waits(60));
    assert_eq!(deliver(&mut fence, 14, (4, Some(14)), 80), (Wait::Over, Wait::Over));
}

#[test]
fn who_was_waited_for_for_a_second_in_vain_is_still_waited_for_with_a_key() {
    let mut fence = Fence::default();
    let awaited = fence.awaited(version(10), at(0));
    look(&mut fence, &[lease("a", 1, None)], 10, at(0));
    assert_eq!(fence.wait(&awaited, ENFORCEMENT_PATIENCE, at(0)), Wait::Until(at(1)));
    assert_eq!(fence.wait(&awaited, ENFORCEMENT_PATIENCE, at(1)), Wait::Missed(vec!["a".into()]));
    let next = fence.awaited(version(11), at(2));
    look(&mut fence, &[lease("a", 1, None)], 11, at(2));
    assert_eq!(fence.wait(&next, ENFORCEMENT_PATIENCE, at(2)), Wait::Over, "a pass does not wait a second time");
    assert!(matches!(fence.judge(&next, at(2)), Verdict::Waiting { .. }), "and yet nothing is fenced");
    assert_eq!(fence.wait(&next, DELIVERY_PATIENCE, at(2)), Wait::Until(at(12)));
}

#[test]
fn a_lease_that_a_finalizer_keeps_holds_things_up_and_is_not_deleted_again_and_again() {
    let mut fence = Fence::default();
    let awaited = fence.awaited(version(10), at(0));
    let mut going = lease("a", 1, None);
    going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    look(&mut fence, &[going], 10, at(0));
    let long_after = at(9000);
    assert_eq!((fence.overdue(long_after).next(), fence.next_overdue()), (None, None));
    assert_eq!(waiting(&fence, &awaited, long_after).0, ["a (remove the finalizer of its Lease)"]);
}
