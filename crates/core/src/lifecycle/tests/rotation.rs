//! A key is replaced on request and by schedule: the new one is in the Secret before the old one ends, whatever happens on
//! the way.

use super::*;
use crate::api::REPLACED_AT_ANNOTATION;

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

fn minutes(minutes: i64) -> SignedDuration {
    SignedDuration::from_mins(minutes)
}

/// A world whose key is handed out, under rotations of this kind.
fn issued_with(rotation: Value) -> World {
    issued(json!({"rotation": rotation}))
}

impl World {
    fn planned(&self) -> Plan {
        self.clone().plan()
    }

    /// What is written next, which is then carried out.
    fn step(&mut self) -> &'static str {
        let Plan::Write(write) = self.plan() else { return "nothing" };
        let word = write.as_str();
        self.carry_out(write);
        word
    }

    fn wake(&self) -> Option<Timestamp> {
        match self.planned() {
            Plan::Rest(finding) => finding.wake,
            other => panic!("not at rest: {other:?}"),
        }
    }

    fn message(&self) -> &str {
        &self.status.conditions[0].message
    }

    pub(super) fn live(&self) -> Vec<u32> {
        self.records.values().filter(|record| record.is_live()).map(|record| record.spec.serial).collect()
    }

    fn end_of(&self, serial: u32) -> Option<Timestamp> {
        self.records[&serial].not_after()
    }

    fn next_rotation(&self) -> Timestamp {
        self.status.next_rotation_at.as_ref().unwrap().0
    }

    /// The Events that lead here.
    fn events_since(&self, before: &ApiKeyStatus) -> Vec<&'static str> {
        let cause = self.current().map(|record| record.cause);
        announcements(before, &self.status, cause).into_iter().map(|event| event.reason).collect()
    }
}

#[test]
fn a_rotation_that_is_asked_for_takes_three_writes_and_a_status() {
    let mut world = issued_with(json!({"overlap": "1h"}));
    world.wait(hours(10));
    world.rotate = Some("2026-11-30".into());
    let (writes, before) = (world.writes, world.status.clone());
    for expected in ["CreateRecord", "ReplaceSecret", "UpdateRecord", "nothing"] {
        assert_eq!(world.step(), expected);
    }
    world.run(None);
    assert_eq!(world.writes - writes, 3);
    assert_eq!((world.reason(), world.status.serial), (Reason::Rotating, Some(2)));
    assert_eq!(world.status.rotate_request.as_deref(), Some("2026-11-30"));
    let [old] = &world.status.retiring[..] else { panic!("one older key: {:?}", world.status) };
    assert_eq!((old.serial, old.retires_at.0), (1, world.now + hours(1)));
    assert_eq!(old.key_prefix, before.key_prefix);
    assert_eq!(world.wake(), Some(world.now + hours(1)));
    assert_eq!(world.events_since(&before), ["Rotated"]);
    let used = world.now + minutes(1);
    world.records.get_mut(&1).unwrap().last_used_at = Some(used);
    world.run(None);
    assert_eq!(world.status.retiring[0].last_used_at, Some(Time(used)));

    world.wait(hours(1));
    world.run(None);
    assert_eq!((world.reason(), world.live()), (Reason::Active, vec![2]));
    assert_eq!(world.records[&1].spec.revoked.as_ref().unwrap().reason, "Replaced");
}

#[test]
fn each_value_is_carried_out_once_whatever_is_lost() {
    let mut world = World::new(json!({}));
    world.rotate = Some("at birth".into());
    world.run(None);
    assert_eq!((world.status.serial, world.status.rotate_request.as_deref()), (Some(1), Some("at birth")));
    let mut serial = 1;
    for (value, is_new) in [
        (Some("a"), true),
        (Some("a"), false),
        (None, false),
        (Some("a"), false),
        (Some("b"), true),
        (Some("a"), true),
        (Some(""), true),
    ] {
        world.rotate = value.map(str::to_owned);
        serial += u32::from(is_new);
        for _ in 0..2 {
            world.run(None);
            assert_eq!(world.status.serial, Some(serial), "{value:?}");
            assert_eq!(world.status.rotate_request, value.or(Some("a")).map(str::to_owned), "{value:?}");
            world.meddle(Meddling::LoseStatus);
            if value.is_none() {
                world.status.rotate_request = Some("a".into());
            }
        }
        world.run(None);
        world.wait(hours(25));
    }
}

#[test]
fn the_value_in_an_old_record_counts_as_its_digest() {
    let mut world = World::new(json!({}));
    world.rotate = Some("1".into());
    world.run(None);
    world.records.get_mut(&1).unwrap().spec.rotate_request = Some("1".into());
    world.run(None);
    assert_eq!(world.status.serial, Some(1));
    world.rotate = Some("2".into());
    world.run(None);
    assert_eq!(world.status.serial, Some(2));
}

#[test]
fn a_request_that_waits_is_not_shown_as_carried_out() {
    let mut world = issued(json!({}));
    world.rotate = Some("a".into());
    world.meddle(Meddling::Suspend);
    world.status.rotate_request = Some("a".into());
    world.run(None);
    assert_eq!(world.status.rotate_request, None, "a status alone carries nothing out");
}

#[test]
fn the_overlap_begins_when_the_new_key_is_in_the_secret() {
    for crashes in [false, true] {
        let mut world = issued_with(json!({"overlap": "1h"}));
        world.ask_for_rotation();
        assert_eq!(world.step(), "CreateRecord");
        world.wait(minutes(10));
        assert_eq!(world.end_of(1), None, "before the new key is in the Secret, the old one has no end");
        assert_eq!(world.step(), "ReplaceSecret");
        if crashes {
            world.held = None;
        }
        assert_eq!(world.step(), "UpdateRecord");
        assert_eq!(world.end_of(1), Some(world.now + hours(1)));
        let (end, replaced_at) = (world.end_of(1), world.now);
        world.wait(minutes(5));
        world.run(None);
        assert_eq!(world.end_of(1), end, "a later look moves nothing");

        world.spec["rotation"]["overlap"] = json!("20h");
        world.run(None);
        assert_eq!(world.end_of(1), end, "a longer overlap moves nothing");
        world.spec["rotation"]["overlap"] = json!("30m");
        world.run(None);
        assert_eq!(world.end_of(1), Some(replaced_at + minutes(30)), "a shorter one counts from the same moment");
        world.spec["rotation"]["overlap"] = json!("5m");
        world.run(None);
        assert_eq!(world.live(), [2], "it is over");
    }
}

#[test]
fn without_overlap_the_old_key_ends_after_the_new_one_is_in_the_secret_and_at_once() {
    let mut world = issued_with(json!({"overlap": "0s"}));
    world.ask_for_rotation();
    for expected in ["CreateRecord", "ReplaceSecret", "UpdateRecord", "nothing"] {
        assert_eq!(world.step(), expected);
    }
    world.run(None);
    assert_eq!((world.reason(), world.live()), (Reason::Active, vec![2]));
}

#[test]
fn an_older_key_ends_with_its_apikey() {
    let mut world = issued(json!({"expiresIn": "90m", "rotation": {"overlap": "1h"}}));
    let expires = world.created + minutes(90);
    world.wait(minutes(60));
    world.ask_for_rotation();
    world.run(None);
    assert_eq!((world.end_of(1), world.end_of(2)), (Some(expires), Some(expires)));
    world.edit("expiresIn", Value::Null);
    world.meddle(Meddling::ExpireLate);
    world.run(None);
    assert_eq!(world.end_of(1), Some(expires), "never later than it had");
    assert!(world.end_of(2) > Some(expires));
}

#[test]
fn a_key_whose_successor_never_reached_the_secret_still_follows_the_declared_expiry() {
    let mut world = issued(json!({"expiresIn": "1d"}));
    world.ask_for_rotation();
    world.obstacle = Some(Obstacle::Refused("no".into()));
    world.run(None);
    assert_eq!(world.live(), [1]);
    world.edit("expiresIn", Value::Null);
    world.meddle(Meddling::ExpireLate);
    world.run(None);
    assert_eq!(world.end_of(1), Some("2036-01-01T00:00:00Z".parse().unwrap()));
}

#[test]
fn the_schedule_counts_from_the_issue_of_the_current_key() {
    let mut world = issued_with(json!({"every": "100h", "overlap": "1h"}));
    let mut issued_at = world.created;
    let mut spreads = BTreeSet::new();
    for serial in 1..=10 {
        let due = world.next_rotation();
        assert_eq!(world.status.serial, Some(serial));
        assert!((issued_at + hours(100)..=issued_at + hours(101)).contains(&due), "{due}");
        spreads.insert(due.duration_since(issued_at));
        // What people do in between moves nothing.
        for meddling in
            [Meddling::LoseStatus, Meddling::Suspend, Meddling::Resume, Meddling::Narrow, Meddling::WaitDays]
        {
            world.meddle(meddling);
            world.run(None);
            assert_eq!((world.next_rotation(), world.status.serial), (due, Some(serial)), "{meddling:?}");
        }
        world.now = due - SignedDuration::from_secs(1);
        world.run(None);
        assert_eq!((world.status.serial, world.wake()), (Some(serial), Some(due)));
        world.now = due;
        world.run(None);
        issued_at = due;
    }
    assert_eq!(spreads.len(), 1, "no drift: {spreads:?}");
}

#[test]
fn a_key_that_is_issued_for_another_reason_starts_the_schedule_anew() {
    for reason in [Meddling::DeleteSecret, Meddling::AskForRotation, Meddling::RevokeNewestByHand] {
        let mut world = issued_with(json!({"every": "100h", "overlap": "1h"}));
        let due = world.next_rotation();
        world.wait(hours(50));
        world.meddle(reason);
        world.run(None);
        assert_eq!((world.status.serial, world.next_rotation()), (Some(2), due + hours(50)), "{reason:?}");
    }
}

#[test]
fn rotations_that_were_missed_are_made_up_for_once() {
    let mut world = issued_with(json!({"every": "1h", "overlap": "1m"}));
    world.wait(hours(1000));
    world.ask_for_rotation();
    world.run(None);
    assert_eq!((world.status.serial, world.minted), (Some(2), 2));
    assert!(world.next_rotation() >= world.now + hours(1));
}

#[test]
fn a_period_that_is_taken_away_or_changed_counts_at_once() {
    let mut world = issued_with(json!({"every": "100h"}));
    world.edit("rotation", Value::Null);
    world.run(None);
    assert_eq!((world.status.next_rotation_at.as_ref(), world.wake()), (None, None));
    world.wait(hours(50));
    world.edit("rotation", json!({"every": "20h"}));
    world.run(None);
    assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::Rotating));
}

/// The API server stamps records by its clock, and the controller plans by its own.
#[test]
fn a_clock_that_jumps_rotates_at_most_once_for_each_half_of_a_period() {
    for jump in [hours(-10_000), hours(-3), minutes(-1), minutes(1), hours(3), hours(10_000)] {
        let mut world = issued_with(json!({"every": "2h", "overlap": "10m"}));
        let mut rotations = 0;
        for quarter in 0..40 {
            let minted = world.minted;
            for _ in 0..3 {
                // The API server's clock is right, and the controller's is not.
                let right = world.now;
                world.now = right + jump;
                while let Plan::Write(write) = world.plan() {
                    world.now = right;
                    world.carry_out(write);
                    world.now = right + jump;
                    assert!(world.minted <= minted + 1, "{jump}: a loop");
                }
                world.now = right;
            }
            rotations += world.minted - minted;
            assert!(rotations <= 1 + quarter / 2, "{jump}: {rotations} in {quarter} half hours");
            world.wait(minutes(30));
        }
        if jump < hours(3) && jump > hours(-3) {
            assert!((6..=10).contains(&rotations), "{jump}: {rotations}");
        }
    }
}

#[test]
fn a_clock_that_is_set_back_moves_no_rotation() {
    let mut world = issued_with(json!({"every": "100h", "overlap": "1h"}));
    let due = world.next_rotation();
    world.wait(hours(60));
    world.run(None);
    world.now = world.created - hours(500);
    world.run(None);
    assert_eq!((world.status.serial, world.next_rotation()), (Some(1), due));
    world.now = due;
    world.run(None);
    assert_eq!(world.status.serial, Some(2));
}

#[test]
fn at_most_two_older_keys_are_valid_after_a_rotation_and_the_oldest_ends_with_an_event() {
    let mut world = issued_with(json!({"overlap": "10h"}));
    for serial in 2..8 {
        let before = world.status.clone();
        world.wait(minutes(1));
        world.ask_for_rotation();
        loop {
            let older = |world: &World| {
                let current = world.current().unwrap().spec.serial;
                world.live().into_iter().filter(|serial| *serial < current).count()
            };
            assert!(older(&world) <= 2, "{world:#?}");
            if world.step() == "nothing" {
                break;
            }
        }
        world.run(None);
        assert_eq!(world.live(), (1..=serial).skip((serial as usize).saturating_sub(3)).collect::<Vec<_>>());
        assert_eq!(world.status.retiring.len(), world.live().len() - 1);
        let expected = if serial > 3 { &["Rotated", "RetiredEarly"][..] } else { &["Rotated"] };
        assert_eq!(world.events_since(&before), expected);
    }
}

#[test]
fn an_overlap_that_is_over_is_not_told_as_cut_short() {
    let mut world = issued_with(json!({"overlap": "1h"}));
    world.ask_for_rotation();
    world.run(None);
    let before = world.status.clone();
    world.wait(hours(2));
    world.ask_for_rotation();
    world.run(None);
    assert_eq!((world.events_since(&before), world.live()), (vec!["Rotated"], vec![2, 3]));
}

#[test]
fn rotations_that_are_asked_for_cost_no_budget_and_lift_none() {
    let mut world = issued_with(json!({"overlap": "10h"}));
    for serial in 2..20 {
        world.ask_for_rotation();
        world.run(None);
        assert_eq!((world.reason(), world.status.serial), (Reason::Rotating, Some(serial)));
    }
    world.meddle(Meddling::DeleteSecret);
    world.run(None);
    assert_eq!((world.reason(), world.status.serial), (Reason::Rotating, Some(20)), "the Secret was lost once");
    world.ask_for_rotation();
    world.run(None);
    assert_eq!((world.reason(), world.status.serial), (Reason::Rotating, Some(21)));
    world.meddle(Meddling::DeleteSecret);
    world.run(None);
    assert_eq!((world.reason(), world.status.serial), (Reason::MintBudget, Some(21)), "and twice in five minutes");
}

/// Whatever keeps a key from being let in: the rotation is told, waits, and is done once.
#[test]
fn a_rotation_waits_for_an_apikey_that_is_good_again_and_is_done_once() {
    for (spoil, mend, reason) in [
        (Meddling::Suspend, Meddling::Resume, Reason::Suspended),
        (Meddling::ExpireSoon, Meddling::ExpireLate, Reason::Expired),
        (Meddling::SpoilSpec, Meddling::MendSpec, Reason::Invalid),
    ] {
        for scheduled in [false, true] {
            let every = if scheduled { json!("1h") } else { Value::Null };
            let mut world = issued_with(json!({"every": every, "overlap": "30m"}));
            world.meddle(spoil);
            world.run(None);
            assert!(!world.message().contains("rotation"), "{reason}: {}", world.message());
            for _ in 0..5 {
                world.wait(hours(10));
                if !scheduled {
                    world.ask_for_rotation();
                }
                world.run(None);
                world.check_rest(Rest::Settled);
                assert_eq!((world.reason(), world.minted), (reason.clone(), 1));
                let told = match (scheduled, &reason) {
                    // What is scheduled stands in the spec that cannot be read.
                    (true, Reason::Invalid) => "",
                    (true, _) => "; the scheduled rotation waits until then",
                    (false, Reason::Invalid) => "; the rotation that was asked for waits until the spec is valid",
                    (false, _) => "; the rotation that was asked for waits until then",
                };
                assert!(world.message().ends_with(told), "{reason}: {}", world.message());
                assert_eq!(world.status.rotate_request, None);
            }
            world.meddle(mend);
            world.run(None);
            assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::Rotating), "{reason}");
            assert_eq!(world.status.rotate_request, world.rotate, "{reason}");
        }
    }
}

#[test]
fn an_apikey_that_is_being_deleted_says_that_it_does_not_rotate() {
    let mut world = issued(json!({"rotation": {"every": "1h"}}));
    world.other_finalizers = vec!["example.org/hold".to_owned()];
    world.wait(hours(10));
    world.ask_for_rotation();
    world.meddle(Meddling::Delete);
    assert_eq!(world.run(None), Rest::Done);
    assert_eq!((world.reason(), world.minted), (Reason::Revoking, 1));
    assert!(world.message().ends_with("; the rotation that was asked for is not carried out"), "{}", world.message());
    assert_eq!(world.status.next_rotation_at, None);
}

#[test]
fn a_key_that_was_made_elsewhere_says_that_it_cannot_be_replaced_here() {
    let mut world = issued(specs()[2].clone());
    world.ask_for_rotation();
    world.run(None);
    assert_eq!((world.reason(), world.status.rotate_request.as_ref()), (Reason::Active, None));
    assert!(world.message().contains("keywright.dev/rotate cannot replace"), "{}", world.message());
    world.check_rest(Rest::Settled);
}

#[test]
fn a_secret_that_refuses_the_next_key_keeps_the_last_one_in_force() {
    let refused = Obstacle::Refused("exceeded quota".into());
    for (obstacle, immutable) in [(Some(refused), false), (None, true)] {
        let mut world = issued(json!({}));
        let (minted, before) = (world.minted, world.status.clone());
        world.obstacle = obstacle;
        if let SecretState::Ours { is_immutable, .. } = &mut world.secret {
            *is_immutable = immutable;
        }
        world.ask_for_rotation();
        for _ in 0..100 {
            world.wait(SECRET_RETRY);
            world.run(None);
            world.check_rest(Rest::Settled);
            assert_eq!((world.reason(), world.live()), (Reason::Active, vec![1]), "{}", world.message());
            assert!(world.message().starts_with("Secret \"ci\" cannot be written: "), "{}", world.message());
            assert_eq!(world.wake(), Some(world.now + SECRET_RETRY));
        }
        assert_eq!(world.minted - minted, u64::from(!immutable), "at most one key is made in vain");
        assert_eq!(world.events_since(&before), ["SecretRefused"]);
        world.obstacle = None;
        if let SecretState::Ours { is_immutable, .. } = &mut world.secret {
            *is_immutable = false;
        }
        world.run(None);
        assert_eq!((world.reason(), world.status.rotate_request.clone()), (Reason::Rotating, world.rotate.clone()));
    }
}

#[test]
fn a_key_works_while_another_controller_replaces_it() {
    let mut world = issued(json!({}));
    world.ask_for_rotation();
    world.run(Some(1));
    world.run(None);
    assert_eq!((world.reason(), world.live()), (Reason::Active, vec![1, 2]));
    assert_eq!(world.wake(), Some(world.now + DELIVERY_GRACE));
}

/// A crash after each write of a rotation of each cause, and the time that a restart takes.
#[test]
fn a_crash_anywhere_in_a_rotation_ends_in_one_new_key_and_refuses_nobody() {
    let mut runs = 0;
    for scheduled in [false, true] {
        for overlap in ["0s", "1h"] {
            for older in 0..3 {
                for crash in 0..8 {
                    let mut world = issued_with(json!({"every": "100h", "overlap": overlap}));
                    for _ in 0..older {
                        world.wait(minutes(1));
                        world.ask_for_rotation();
                        world.run(None);
                    }
                    world.wait(if scheduled { hours(200) } else { minutes(1) });
                    if !scheduled {
                        world.ask_for_rotation();
                    }
                    let serial = world.status.serial.unwrap();
                    let minted = world.minted;
                    world.run(Some(crash));
                    let lost = world.current().unwrap().spec.serial == serial && world.minted > minted;
                    for _ in 0..3 {
                        assert!(world.current().is_some(), "the key in the Secret is in force: {world:#?}");
                        world.wait(DELIVERY_GRACE);
                        world.run(None);
                    }
                    world.check_rest(Rest::Settled);
                    let expected = serial + 1 + u32::from(lost);
                    assert_eq!(world.status.serial, Some(expected), "{scheduled} {overlap} {older} {crash}");
                    assert!(world.live().len() <= 3, "{:?}", world.live());
                    assert_eq!(world.status.rotate_request, world.rotate);
                    if overlap == "1h" {
                        let replaced_at = world.records[&serial].replaced_at.unwrap();
                        assert_eq!(world.end_of(serial), Some(replaced_at + hours(1)));
                    }
                    runs += 1;
                }
            }
        }
    }
    assert_eq!(runs, 2 * 2 * 3 * 8);
}

/// A record in a state of the enumeration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Undelivered,
    Delivered,
    Retiring,
    Over,
    Revoked,
    NeverDelivered,
}

const KINDS: [Kind; 6] =
    [Kind::Undelivered, Kind::Delivered, Kind::Retiring, Kind::Over, Kind::Revoked, Kind::NeverDelivered];

/// A Secret in a state of the enumeration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    Missing,
    HoldsTheNewest,
    HoldsAnOlder,
    Changed,
    Immutable,
    Foreign,
    Leftover,
}

const PLACES: [Place; 7] = [
    Place::Missing,
    Place::HoldsTheNewest,
    Place::HoldsAnOlder,
    Place::Changed,
    Place::Immutable,
    Place::Foreign,
    Place::Leftover,
];

/// What a state of the enumeration is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    pub(super) finalizer: bool,
    pub(super) deleting: bool,
    pub(super) suspended: bool,
    pub(super) expired: bool,
    pub(super) asked: bool,
    pub(super) scheduled: bool,
}

impl World {
    /// A world in any state that a crash, a person or an older version can have left behind.
    pub(super) fn in_state(kinds: &[Kind], place: Place, circumstances: Circumstances) -> Self {
        let Circumstances { finalizer, deleting, suspended, expired, asked, scheduled } = circumstances;
        let every = if scheduled { json!("5h") } else { Value::Null };
        let expires_in = if expired { "9h" } else { "3650d" };
        let spec =
            json!({"suspended": suspended, "expiresIn": expires_in, "rotation": {"every": every, "overlap": "2h"}});
        let mut world = Self { finalizer: true, ..Self::new(spec) };
        let declaration = declaration::read(&world.spec, "ci", world.created).unwrap();
        for &kind in kinds {
            let serial = world.records.keys().next_back().map_or(1, |newest| newest + 1);
            let reference = world.observed().reference;
            let new = NewRecord::new(&reference, serial, NewKey::Minted, Cause::First, None, &declaration, world.now);
            world.create_record(&new);
            world.held = None;
            let record = world.records.get_mut(&serial).unwrap();
            if !matches!(kind, Kind::Undelivered | Kind::NeverDelivered) {
                world.handed_out.insert(record.spec.digest.clone());
                world.status.serial = Some(serial);
            }
            let (replaced_at, now) = (world.created + hours(9), world.now);
            let end = |hours| Some(Time(world.created + SignedDuration::from_hours(hours)));
            let update = match kind {
                Kind::Undelivered | Kind::Delivered => continue,
                Kind::Retiring => {
                    record.replaced(ApiKeyRecordSpec { not_after: end(11), ..record.spec.clone() }, replaced_at)
                }
                Kind::Over => {
                    record.replaced(ApiKeyRecordSpec { not_after: end(9), ..record.spec.clone() }, replaced_at)
                }
                Kind::Revoked => record.revoked(RevocationReason::Replaced, now),
                Kind::NeverDelivered => record.revoked(RevocationReason::NotDelivered, now),
            };
            *record = Record::from(update.object());
        }
        world.wait(hours(10));
        (world.finalizer, world.deleting) = (finalizer, deleting);
        if asked {
            world.ask_for_rotation();
        }
        world.secret = match place {
            Place::Missing => SecretState::Absent,
            Place::Foreign => SecretState::Foreign,
            Place::Leftover => SecretState::Leftover,
            Place::HoldsTheNewest | Place::HoldsAnOlder | Place::Changed | Place::Immutable => world.secret_with(place),
        };
        // What is in it follows from its digest.
        world.edit_secret(|_, _| {});
        world
    }

    /// A Secret of ours that says what it holds, unless somebody has changed it.
    fn secret_with(&self, place: Place) -> SecretState {
        let mut delivered = self.records.values().filter(|record| self.handed_out.contains(&record.spec.digest));
        let held = if place == Place::HoldsAnOlder { delivered.next() } else { delivered.next_back() };
        let mut metadata = ObjectMeta { resource_version: Some("0".into()), ..ObjectMeta::default() };
        if let Some(record) = held {
            SecretAnnotations::of(record).write(&mut metadata);
        }
        let digest = match held.filter(|_| place != Place::Changed) {
            Some(record) => record.spec.digest.parse().ok(),
            None => Some(Digest::of(b"somebody's own idea of a key")),
        };
        let is_immutable = place == Place::Immutable;
        SecretState::Ours { metadata: Box::new(metadata), digest, has_declared_entries: true, is_immutable }
    }
}

/// Every state of finalizer, Secret, up to two records, deletion, suspension, expiry and rotation: each comes to rest,
/// wherever it crashes on the way, and the promises hold there.
#[test]
fn every_state_comes_to_rest() {
    let mut lists = vec![Vec::new()];
    for first in KINDS {
        lists.push(vec![first]);
        // Nothing is issued before a key that did not reach its Secret is revoked.
        let followers = KINDS.into_iter().filter(|_| first != Kind::Undelivered);
        lists.extend(followers.map(|second| vec![first, second]));
    }
    let mut states = 0;
    for kinds in &lists {
        for place in PLACES {
            for bits in 0..64_u8 {
                let is_set = |bit: u8| bits & (1 << bit) != 0;
                let circumstances = Circumstances {
                    finalizer: is_set(0),
                    deleting: is_set(1),
                    suspended: is_set(2),
                    expired: is_set(3),
                    asked: is_set(4),
                    scheduled: is_set(5),
                };
                let world = World::in_state(kinds, place, circumstances);
                states += 1;
                for crash in 0..4 {
                    comes_to_rest(world.clone(), crash);
                }
            }
        }
    }
    println!("{states} states, each with four crashes");
    assert_eq!(states, (1 + 6 + 30) * 7 * 64);
}

fn comes_to_rest(mut world: World, crash: usize) {
    let start = world.clone();
    let works = start.current().filter(|_| !start.deleting);
    let revoked: Vec<u32> =
        start.records.values().filter(|record| !record.is_live()).map(|record| record.spec.serial).collect();
    world.run(Some(crash));
    world.wait(DELIVERY_GRACE);
    let rest = world.run(None);
    world.check_rest(rest);
    assert!(revoked.iter().all(|serial| !world.records[serial].is_live()), "a revoked key stays revoked: {start:#?}");
    if rest == Rest::Done {
        return;
    }
    let minted = world.minted - start.minted;
    let declaration = world.observed().declared.unwrap();
    let Some(before) = works else { return };
    let after = world.current().expect("a key that works is replaced by one that works");
    let is_wanted = start.observed().cause_of_rotation(&declaration, &before, start.now).is_some();
    let is_immutable = matches!(start.secret, SecretState::Ours { is_immutable: true, .. });
    if is_wanted && declaration.lets_in_at(start.now) && !is_immutable {
        assert!(after.spec.serial > before.spec.serial, "asked for and not done: {start:#?}");
        let old = &world.records[&before.spec.serial];
        let end = old.not_after().unwrap();
        assert!(old.is_live() && end >= start.now + hours(2), "the overlap was cut short: {start:#?} {world:#?}");
        assert!(old.metadata.annotations.as_ref().unwrap().contains_key(REPLACED_AT_ANNOTATION));
    } else {
        assert_eq!((after.spec.serial, minted), (before.spec.serial, 0), "nobody asked for it: {start:#?}");
    }
}

impl World {
    fn use_key(&mut self, serial: u32) {
        let now = self.now;
        self.records.get_mut(&serial).unwrap().last_used_at = Some(now);
    }

    /// The condition `OldKeyStillInUse`, if there is one.
    fn old_key_in_use(&self) -> Option<(ConditionStatus, &str)> {
        let mut conditions = self.status.conditions.iter();
        let condition = conditions.find(|condition| condition.type_ == ConditionType::OldKeyStillInUse)?;
        Some((condition.status, &condition.message))
    }
}

#[test]
fn an_older_key_that_is_used_for_too_long_is_told_of() {
    for (overlap, notice) in [("1h", minutes(30)), ("24h", hours(1))] {
        let mut world = issued_with(json!({"overlap": overlap}));
        assert_eq!(world.old_key_in_use(), None, "there is no older key");
        world.ask_for_rotation();
        world.use_key(1);
        world.run(None);
        let not_in_use = Some((ConditionStatus::False, "no older key is in use"));
        assert_eq!(world.old_key_in_use(), not_in_use, "it was used before it was replaced");
        world.wait(notice - SignedDuration::from_secs(1));
        world.use_key(1);
        world.use_key(2);
        world.run(None);
        assert_eq!(world.old_key_in_use(), not_in_use, "workloads have had no time to read the new one");

        let before = world.status.clone();
        world.wait(SignedDuration::from_secs(1));
        world.use_key(1);
        world.run(None);
        let old = &world.status.retiring[0];
        let (prefix, used, ends) = (old.key_prefix.clone().unwrap(), world.now, old.retires_at.0);
        let message = format!("{prefix} was used at {used} and ends at {ends}; have its users read the Secret again");
        assert_eq!(world.old_key_in_use(), Some((ConditionStatus::True, &*message)));
        assert_eq!(world.events_since(&before), ["OldKeyStillInUse"]);
        let before = world.status.clone();
        world.use_key(2);
        world.run(None);
        assert!(world.events_since(&before).is_empty(), "one Event");
        assert_eq!(world.wake(), Some((used + notice).min(ends)));
        world.now = used + notice;
        world.run(None);
        if notice == hours(1) {
            assert_eq!(world.old_key_in_use(), not_in_use, "unused for as long");
            world.wait(hours(24));
            world.run(None);
        }
        assert_eq!(world.old_key_in_use(), None, "it has ended");
    }
}

#[test]
fn an_older_key_in_use_is_held_for_a_quarter_each_time_and_four_overlaps_at_most() {
    let mut world = issued_with(json!({"overlap": "1h", "holdWhileInUse": true}));
    world.ask_for_rotation();
    world.run(None);
    let replaced_at = world.now;
    let mut ends = Vec::new();
    for _ in 0..1000 {
        if world.live() == [2] {
            break;
        }
        let before = world.status.clone();
        ends.push(world.end_of(1).unwrap());
        world.use_key(1);
        world.run(None);
        let is_moved = world.end_of(1) != ends.last().copied();
        assert_eq!(world.events_since(&before).contains(&"OverlapExtended"), is_moved, "each time said");
        world.check_rest(Rest::Settled);
        world.wait(minutes(1));
        world.run(None);
    }
    ends.dedup();
    let expected: Vec<_> = (4..=16).map(|quarters| replaced_at + minutes(15 * quarters)).collect();
    assert_eq!(ends, expected);
    assert_eq!(world.now, replaced_at + hours(4));
}

#[test]
fn nothing_is_held_that_nobody_uses_or_asked_to_be_held() {
    // Used before the last quarter; after the end; without the field; with the field and suspended.
    for (hold, used_after, seen_after, suspended, is_held) in [
        (true, 46, 46, false, true),
        (true, 44, 59, false, false),
        (true, 59, 60, false, false),
        (false, 50, 50, false, false),
        (true, 50, 50, true, false),
    ] {
        let mut world = issued_with(json!({"overlap": "1h", "holdWhileInUse": hold}));
        world.ask_for_rotation();
        world.run(None);
        let replaced_at = world.now;
        world.now = replaced_at + minutes(used_after);
        world.use_key(1);
        world.now = replaced_at + minutes(seen_after);
        if suspended {
            world.meddle(Meddling::Suspend);
        }
        world.run(None);
        let case = format!("{hold} {used_after} {seen_after} {suspended}");
        if seen_after < 60 {
            let end = replaced_at + minutes(if is_held { 75 } else { 60 });
            assert_eq!(world.end_of(1), Some(end), "{case}");
        }
        world.now = replaced_at + minutes(60);
        world.run(None);
        assert_eq!(world.live().contains(&1), is_held, "{case}");
    }
}

#[test]
fn a_hold_ends_with_its_field_its_apikey_and_a_shorter_overlap() {
    let held = |spec: Value| {
        let mut world = issued(spec);
        world.ask_for_rotation();
        world.run(None);
        world.wait(minutes(50));
        world.use_key(1);
        world.run(None);
        world.wait(minutes(15));
        world.run(None);
        world
    };
    let rotation = json!({"overlap": "1h", "holdWhileInUse": true});
    let world = held(json!({"rotation": rotation}));
    assert_eq!(world.end_of(1), Some(world.created + minutes(75)));
    for changed in [json!({"overlap": "1h"}), json!({"overlap": "10m", "holdWhileInUse": true})] {
        let mut world = world.clone();
        world.edit("rotation", changed);
        world.run(None);
        assert_eq!(world.live(), [2]);
    }
    let world = held(json!({"rotation": rotation, "expiresIn": "70m"}));
    assert_eq!(world.end_of(1), Some(world.created + minutes(70)), "never beyond the ApiKey");
}
