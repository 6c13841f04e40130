//! A key in somebody else's Secret: what it holds counts, and what it held before retires.

use super::rotation::{Circumstances, Kind, Place};
use super::*;

const OVERLAP: SignedDuration = SignedDuration::from_hours(1);

fn settled() -> World {
    issued(from_source(json!({"overlap": "1h"})))
}

impl World {
    fn fill(&mut self, value: &str) {
        self.source = Ok(Digest::of(value.as_bytes()));
        self.run(None);
    }

    /// The values of the source that a verifier would let in now.
    fn let_in<'v>(&self, values: &[&'v str]) -> Vec<&'v str> {
        let is_let_in = |value: &&&str| {
            let digest = Digest::of(value.as_bytes()).to_string();
            let of_it = |record: &&Record| record.spec.digest == digest;
            let record = self.records.values().find(of_it).filter(|record| record.is_live() && !record.spec.suspended);
            record.is_some_and(|record| record.not_after().is_none_or(|end| self.now < end))
        };
        values.iter().filter(is_let_in).copied().collect()
    }

    fn says(&self) -> &str {
        &self.status.conditions[1].message
    }
}

#[test]
fn a_key_in_a_source_is_claimed_with_one_record() {
    let world = settled();
    assert_eq!((world.writes, world.reason(), world.status.serial), (2, Reason::Active, Some(1)));
    assert_eq!(world.status.secret_name.as_deref(), Some("vault"));
    assert_eq!(world.records[&1].spec.key_prefix, None, "its tombstone must stay as long as one of a submitted digest");
}

#[test]
fn another_value_is_a_rotation_with_overlap() {
    let mut world = settled();
    let before = world.status.clone();
    world.rotate = Some("monday".into());
    world.fill("second");
    assert_eq!((world.reason(), world.status.serial), (Reason::Rotating, Some(2)));
    assert_eq!(world.status.rotate_request.as_deref(), Some("monday"));
    assert_eq!(world.status.retiring[0].retires_at.0, world.now + OVERLAP);
    assert_eq!(world.let_in(&["made elsewhere", "second"]), ["made elsewhere", "second"]);
    let cause = world.records[&2].cause;
    let told: Vec<_> =
        announcements(&before, &world.status, Some(cause)).into_iter().map(|event| event.reason).collect();
    assert_eq!((cause, told), (Cause::SourceChanged, vec!["Rotated"]));
    world.wait(OVERLAP);
    world.run(None);
    assert_eq!((world.reason(), world.let_in(&["made elsewhere", "second"])), (Reason::Active, vec!["second"]));
}

#[test]
fn a_request_alone_changes_nothing_and_counts_as_carried_out() {
    let mut world = settled();
    let writes = world.writes;
    world.rotate = Some("look".into());
    world.run(None);
    assert_eq!((world.writes, world.status.serial), (writes, Some(1)));
    assert_eq!(world.status.rotate_request.as_deref(), Some("look"));
}

#[test]
fn a_source_that_holds_no_key_is_told_of_and_what_it_held_retires() {
    for problem in [
        SourceProblem::Missing,
        SourceProblem::Unlabelled,
        SourceProblem::NoEntry,
        SourceProblem::Unfit(crate::key::UnfitKey::Short),
    ] {
        let mut world = settled();
        let before = world.status.clone();
        world.rotate = Some("look".into());
        world.source = Err(problem);
        world.run(None);
        assert_eq!(world.reason(), Reason::SourceUnusable);
        let answers: Vec<_> = world.status.conditions.iter().map(|condition| condition.status).collect();
        assert_eq!(answers[..3], [ConditionStatus::False, ConditionStatus::False, ConditionStatus::True]);
        assert!(
            world.says().contains("Secret \"vault\"") && world.says().contains(&problem.to_string()),
            "{}",
            world.says()
        );
        assert_eq!(world.status.rotate_request, None, "not carried out");
        assert_eq!(world.status.retiring[0].retires_at.0, world.now + OVERLAP);
        assert_eq!(announcements(&before, &world.status, None)[0].reason, "SourceUnusable");
        let Plan::Rest(finding) = world.plan() else { panic!("not at rest") };
        assert_eq!(finding.wake, Some(world.now + SECRET_RETRY));
        assert_eq!(world.let_in(&["made elsewhere"]), ["made elsewhere"]);
        world.wait(OVERLAP);
        world.run(None);
        assert!(world.let_in(&["made elsewhere"]).is_empty() && world.status.retiring.is_empty());
        let mut mended = world.clone();
        mended.fill("made elsewhere");
        assert_eq!((mended.reason(), mended.status.serial), (Reason::Active, Some(1)), "the same key, hours later");
        assert_eq!(mended.let_in(&["made elsewhere"]), ["made elsewhere"]);
        world.fill("second");
        assert_eq!((world.reason(), world.status.serial), (Reason::Active, Some(2)));
        world.fill("made elsewhere");
        assert_eq!(world.reason(), Reason::DigestRevoked, "another key has taken its place");
    }
}

#[test]
fn a_key_that_comes_back_before_its_end_is_in_force_again_and_one_that_ended_is_not() {
    let mut world = settled();
    world.fill("second");
    world.wait(OVERLAP / 2);
    world.fill("made elsewhere");
    assert_eq!((world.reason(), world.status.serial), (Reason::Rotating, Some(1)));
    assert_eq!(world.records[&1].not_after(), None);
    assert_eq!(world.status.retiring[0].serial, 2);
    world.wait(OVERLAP);
    world.run(None);
    assert_eq!(world.let_in(&["made elsewhere", "second"]), ["made elsewhere"]);
    world.fill("second");
    assert_eq!(world.reason(), Reason::DigestRevoked);
    assert!(world.says().contains("entry \"token\" of Secret \"vault\""), "{}", world.says());
    assert_eq!(world.status.retiring[0].serial, 1);
    // By a verifier's clock it has ended, and no pass has revoked it yet.
    world.fill("made elsewhere");
    world.fill("third");
    world.wait(OVERLAP);
    world.fill("made elsewhere");
    assert_eq!(world.reason(), Reason::DigestRevoked);
    assert_eq!(world.let_in(&["made elsewhere"]), Vec::<&str>::new());
}

#[test]
fn a_key_that_was_put_back_outlives_a_loss_of_its_source_too() {
    let mut world = settled();
    for value in ["second", "made elsewhere"] {
        world.wait(SignedDuration::from_secs(1));
        world.fill(value);
    }
    world.wait(OVERLAP);
    world.run(None);
    assert_eq!(world.live(), [1], "the second has ended");
    world.source = Err(SourceProblem::Missing);
    for _ in 0..3 {
        world.run(None);
        world.wait(OVERLAP);
    }
    assert_eq!(world.let_in(&["made elsewhere"]), Vec::<&str>::new());
    world.fill("made elsewhere");
    assert_eq!((world.reason(), world.let_in(&["made elsewhere"])), (Reason::Active, vec!["made elsewhere"]));
}

#[test]
fn at_most_two_older_keys_are_let_in() {
    let mut world = settled();
    let values = ["made elsewhere", "second", "third", "fourth"];
    for value in &values[1..] {
        world.fill(value);
        world.wait(SignedDuration::from_secs(1));
    }
    assert_eq!(world.let_in(&values), values[1..]);
    assert_eq!(world.status.retiring.len(), 2);
}

#[test]
fn somebody_elses_key_is_refused_and_what_was_there_retires() {
    let mut world = settled();
    let digest = Digest::of(b"theirs");
    world.source = Ok(digest);
    let created = world.created - SignedDuration::from_hours(1);
    world.rival = Some(Claim { created, uid: "another".into(), serial: 1, is_revoked: false });
    world.run(None);
    assert_eq!(world.reason(), Reason::DigestTaken);
    assert_eq!(world.records.len(), 1, "no record of it is made");
    assert_eq!(world.status.retiring.len(), 1);
    assert!(!world.says().contains(&digest.to_string()[7..]), "{}", world.says());
}

#[test]
fn a_deletion_revokes_every_key_that_the_source_held() {
    let mut world = settled();
    world.fill("second");
    world.meddle(Meddling::Delete);
    assert_eq!(world.run(None), Rest::Done);
    assert!(world.records.values().all(|record| !record.is_live()));
}

/// What a source holds in a state of the enumeration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Holds {
    Nothing,
    Unfit,
    First,
    Second,
    Another,
    Taken,
    Revoked,
}

const HOLDS: [Holds; 7] =
    [Holds::Nothing, Holds::Unfit, Holds::First, Holds::Second, Holds::Another, Holds::Taken, Holds::Revoked];

/// A world in any state that a crash, a person or another ApiKey can have left behind.
pub(super) fn in_state(kinds: &[Kind], holds: Holds, circumstances: Circumstances) -> World {
    let mut world = World::in_state(kinds, Place::Missing, circumstances);
    world.spec["keyFrom"] = from_source(Value::Null)["keyFrom"].clone();
    world.records.values_mut().for_each(|record| record.spec.key_prefix = None);
    let digest_of = |serial| world.records.get(&serial).map(|record| record.spec.digest.parse().unwrap());
    let another = Digest::of(b"another value");
    world.source = match holds {
        Holds::Nothing => Err(SourceProblem::Missing),
        Holds::Unfit => Err(SourceProblem::NoEntry),
        Holds::First => digest_of(1).ok_or(SourceProblem::Missing),
        Holds::Second => digest_of(2).ok_or(SourceProblem::Missing),
        Holds::Another | Holds::Taken | Holds::Revoked => Ok(another),
    };
    world.rival = matches!(holds, Holds::Taken | Holds::Revoked).then(|| Claim {
        created: world.created - SignedDuration::from_hours(1),
        uid: "another".into(),
        serial: 1,
        is_revoked: holds == Holds::Revoked,
    });
    world
}

fn circumstances(bits: u8) -> Circumstances {
    let is_set = |bit: u8| bits & (1 << bit) != 0;
    Circumstances {
        finalizer: is_set(0),
        deleting: is_set(1),
        suspended: is_set(2),
        expired: is_set(3),
        asked: is_set(4),
        scheduled: false,
    }
}

#[test]
fn every_state_of_a_source_comes_to_rest() {
    const KINDS: [Kind; 4] = [Kind::Delivered, Kind::Retiring, Kind::Over, Kind::Revoked];
    let mut lists = vec![Vec::new()];
    for first in KINDS {
        lists.push(vec![first]);
        lists.extend(KINDS.map(|second| vec![first, second]));
    }
    let mut states = 0;
    for kinds in &lists {
        for holds in HOLDS {
            for bits in 0..32_u8 {
                let start = in_state(kinds, holds, circumstances(bits));
                states += 1;
                for crash in 0..4 {
                    comes_to_rest(&start, crash);
                }
            }
        }
    }
    println!("{states} states, each with four crashes");
    assert_eq!(states, (1 + 4 + 16) * 7 * 32);
}

fn comes_to_rest(start: &World, crash: usize) {
    let mut world = start.clone();
    world.run(Some(crash));
    let rest = world.run(None);
    world.check_rest(rest);
    for (serial, before) in &start.records {
        let after = &world.records[serial];
        assert!(before.is_live() || !after.is_live(), "a revoked key stays revoked: {start:#?}");
        let has_ended = before.replaced_at.is_some() && before.not_after().is_some_and(|end| start.now >= end);
        let has_ended = has_ended && !was_last_in_force(start, *serial);
        assert!(!has_ended || !after.is_live(), "a key that has ended stays so: {start:#?}");
    }
    if rest == Rest::Done {
        return;
    }
    let held = start.source.ok().filter(|_| start.rival.is_none()).map(|digest| digest.to_string());
    let before = start.records.values().find(|record| Some(&record.spec.digest) == held.as_ref());
    let is_good = before.is_none_or(|record| {
        let was_last = was_last_in_force(start, record.spec.serial);
        record.is_live() && (was_last || record.not_after().is_none_or(|end| start.now < end))
    });
    let in_force = world.current().filter(|_| world.rival.is_none()).map(|record| record.spec.digest);
    let is_expired = start.spec["expiresIn"] == json!("9h");
    if !is_expired {
        assert_eq!(in_force, held.filter(|_| is_good), "what the source holds counts: {start:#?} {world:#?}");
    }
    for record in
        world.records.values().filter(|record| record.is_live() && Some(&record.spec.digest) != in_force_of(&world))
    {
        assert!(record.not_after().is_some() && record.replaced_at.is_some(), "what it held ends: {world:#?}");
    }
}

/// Of these states: the newest one, unless a key is in force that was never replaced.
fn was_last_in_force(world: &World, serial: u32) -> bool {
    let mut others = world.records.values().filter(|record| record.spec.serial != serial);
    world.records.keys().next_back() == Some(&serial)
        && !others.any(|other| other.is_live() && other.replaced_at.is_none())
}

fn in_force_of(world: &World) -> Option<&String> {
    let digest = world.source.ok().filter(|_| world.rival.is_none())?.to_string();
    world.records.values().map(|record| &record.spec.digest).find(|stored| **stored == digest)
}

/// Of a submitted digest: every state of its owner, its record and the ApiKey.
#[test]
fn every_state_of_a_submitted_digest_comes_to_rest() {
    let mut states = 0;
    for kinds in [&[][..], &[Kind::Delivered], &[Kind::Revoked]] {
        for holds in [Holds::First, Holds::Taken, Holds::Revoked] {
            for bits in 0..32_u8 {
                let mut start = in_state(kinds, holds, circumstances(bits));
                let digest = start
                    .records
                    .values()
                    .next()
                    .map_or_else(|| Digest::of(b"made elsewhere").to_string(), |record| record.spec.digest.clone());
                let life = start.spec["expiresIn"].clone();
                start.spec = json!({"keyHash": digest, "suspended": start.spec["suspended"], "expiresIn": life});
                states += 1;
                for crash in 0..4 {
                    let mut world = start.clone();
                    world.run(Some(crash));
                    let rest = world.run(None);
                    world.check_rest(rest);
                    let owns = start.rival.is_none() && !kinds.contains(&Kind::Revoked);
                    let live = world.records.values().filter(|record| record.is_live()).count();
                    assert_eq!(live, usize::from(owns && rest == Rest::Settled), "{start:#?} {world:#?}");
                }
            }
        }
    }
    println!("{states} states, each with four crashes");
    assert_eq!(states, 3 * 3 * 32);
}
