//! A small world that carries plans out, is crashed after any write, and is meddled with by people. Whatever happens,
//! it has to come to rest, and the promises have to hold there.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::api::{ConditionStatus, ConditionType, Reason};
use crate::declaration;

const UID: &str = "6a0a1c9e-0000-4000-8000-000000000001";

/// What is stored, and who knows what.
#[derive(Clone, Debug)]
struct World {
    now: Timestamp,
    created: Timestamp,
    spec: Value,
    generation: i64,
    deleting: bool,
    finalizer: bool,
    status: ApiKeyStatus,
    secret: Secret,
    records: BTreeMap<u32, Record>,
    held: Option<Held>,
    version: u64,
    minted: u64,
    /// Digests that were in the Secret at some time: somebody may hold those keys.
    handed_out: BTreeSet<String>,
    writes: usize,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rest {
    Settled,
    Done,
    Crashed,
}

impl World {
    fn new(spec: Value) -> Self {
        let created = "2026-11-01T00:00:00Z".parse().unwrap();
        Self {
            now: created,
            created,
            spec,
            generation: 1,
            deleting: false,
            finalizer: false,
            status: ApiKeyStatus::default(),
            secret: Secret::Absent,
            records: BTreeMap::new(),
            held: None,
            version: 0,
            minted: 0,
            handed_out: BTreeSet::new(),
            writes: 0,
        }
    }

    fn observed(&self) -> Observed {
        Observed {
            reference: ApiKeyReference { namespace: "team-a".into(), name: "ci".into(), uid: UID.into() },
            generation: self.generation,
            created: self.created,
            deleting: self.deleting,
            finalizer: self.finalizer,
            rotate_request: None,
            declared: declaration::read(&self.spec, "ci", self.created),
            status: self.status.clone(),
            secret: self.secret.clone(),
            obstacle: None,
            records: self.records.values().cloned().collect(),
            held: self.held.clone(),
        }
    }

    fn next_version(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    /// Runs until nothing is left to write, or until `crash_after` writes were carried out.
    fn run(&mut self, crash_after: Option<usize>) -> Rest {
        for step in 0..40 {
            if crash_after == Some(step) {
                self.held = None;
                return Rest::Crashed;
            }
            match plan(&self.observed(), self.now) {
                Plan::Done => {
                    self.held = None;
                    return Rest::Done;
                }
                Plan::Settled { status, .. } => {
                    self.status = *status;
                    self.held = None;
                    return Rest::Settled;
                }
                Plan::Write(write) => self.carry_out(write),
            }
        }
        panic!("no rest: {self:#?}");
    }

    fn carry_out(&mut self, write: Write) {
        self.writes += 1;
        match write {
            Write::AddFinalizer => self.finalizer = true,
            Write::RemoveFinalizer => {
                assert!(self.records.values().all(|record| !record.live()), "a finalizer goes last: {self:#?}");
                self.finalizer = false;
            }
            Write::CreateRecord { serial, submitted, cause, rules } => {
                self.create_record(serial, submitted, cause, rules)
            }
            Write::UpdateRecord { name, resource_version, spec } => self.update_record(&name, &resource_version, *spec),
            Write::CreateSecret { marks } => {
                assert_eq!(self.secret, Secret::Absent);
                self.hand_out(marks);
            }
            Write::ReplaceSecret { resource_version, marks } => {
                self.assert_secret_version(&resource_version);
                self.hand_out(marks);
            }
            Write::MarkSecret { resource_version, marks } => {
                self.assert_secret_version(&resource_version);
                let version = self.next_version();
                let Secret::Ours { resource_version, marks: said, .. } = &mut self.secret else { panic!("not ours") };
                (*resource_version, *said) = (version, marks);
            }
        }
    }

    fn create_record(&mut self, serial: u32, submitted: Option<Digest>, cause: Cause, rules: Rules) {
        assert!(self.finalizer, "a key without a finalizer could outlive its ApiKey");
        assert!(!self.records.contains_key(&serial), "a name that is taken: {self:#?}");
        self.minted += 1;
        let digest = submitted.unwrap_or_else(|| Digest::of(&self.minted.to_be_bytes()));
        let prefix: Prefix = format!("keyw1_{:08}", self.minted).parse().unwrap();
        if submitted.is_none() {
            self.held = Some(Held { serial, digest, prefix });
        }
        let spec = ApiKeyRecordSpec {
            digest: digest.to_string(),
            key_prefix: submitted.is_none().then(|| prefix.to_string()),
            api_key: self.observed().reference,
            serial,
            owner: None,
            scopes: vec![],
            allowed_ips: None,
            not_after: None,
            suspended: false,
            revoked: None,
            rotate_request: None,
        };
        let record = Record {
            name: record_name(UID, serial),
            resource_version: self.next_version(),
            created: whole_seconds(self.now),
            cause,
            last_used_at: None,
            spec: rules.apply(spec),
        };
        self.records.insert(serial, record);
    }

    fn update_record(&mut self, name: &str, resource_version: &str, spec: ApiKeyRecordSpec) {
        let version = self.next_version();
        let newest = self.records.keys().next_back().copied();
        let record = self.records.values_mut().find(|record| record.name == name).unwrap();
        assert_eq!(record.resource_version, resource_version);
        assert!(record.live(), "a tombstone is never written again");
        if spec.revoked.is_none() && newest > Some(record.spec.serial) {
            let never = || Timestamp::MAX;
            let ends = |spec: &ApiKeyRecordSpec| spec.not_after.as_ref().map_or_else(never, |time| time.0);
            assert!(ends(&spec) <= ends(&record.spec), "an older key never lives longer than it was to");
        }
        (record.resource_version, record.spec) = (version, spec);
    }

    fn assert_secret_version(&self, expected: &str) {
        let Secret::Ours { resource_version, .. } = &self.secret else { panic!("not ours: {:?}", self.secret) };
        assert_eq!(resource_version, expected);
    }

    fn hand_out(&mut self, marks: Marks) {
        let held = self.held.clone().unwrap();
        assert_eq!(marks.serial, Some(held.serial));
        let record = &self.records[&held.serial];
        assert!(record.live() && record.spec.digest == held.digest.to_string(), "announced before it is handed out");
        self.handed_out.insert(held.digest.to_string());
        self.secret =
            Secret::Ours { resource_version: self.next_version(), digest: Some(held.digest), marks, immutable: false };
    }

    fn reason(&self) -> Reason {
        self.status.conditions.iter().find(|condition| condition.type_ == ConditionType::Active).unwrap().reason.clone()
    }

    fn current(&self) -> Option<Record> {
        self.observed().current().cloned()
    }

    /// What holds whenever the world is at rest.
    fn check_rest(&mut self, rest: Rest) {
        let live: Vec<_> = self.records.values().filter(|record| record.live()).cloned().collect();
        if rest == Rest::Done {
            assert!(live.is_empty(), "a deleted ApiKey leaves no key behind: {self:#?}");
            return;
        }
        let reason = self.reason();
        for record in &live {
            let submitted = self.spec.get("keyHash").is_some();
            assert!(
                submitted
                    || self.handed_out.contains(&record.spec.digest)
                    || reason == Reason::Issuing
                    || reason == Reason::Invalid,
                "a live key that nobody holds: {self:#?}"
            );
            let suspended = self.spec.get("suspended") == Some(&json!(true));
            assert_eq!(record.spec.suspended, suspended || reason == Reason::Invalid, "{self:#?}");
        }
        if matches!(reason, Reason::Active | Reason::Rotating | Reason::Suspended | Reason::Expired)
            && self.spec.get("keyHash").is_none()
        {
            let current = self.current().unwrap();
            assert_eq!(self.status.serial, Some(current.spec.serial));
            assert_eq!(self.status.key_prefix, current.spec.key_prefix);
            let older = live.iter().filter(|record| record.spec.serial < current.spec.serial);
            assert!(older.clone().all(|record| record.spec.not_after.is_some()), "an older key always ends: {self:#?}");
        }
        // A second pass over an unchanged world writes nothing, not even the status.
        let (writes, status) = (self.writes, self.status.clone());
        assert_eq!(self.run(None), rest);
        assert_eq!((self.writes, &self.status), (writes, &status), "a pass at rest changes nothing");
    }
}

/// What people and time do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meddling {
    DeleteSecret,
    ChangeSecret,
    PutOldKeyBack,
    TakeSecretName,
    FreeSecretName,
    SpoilMarks,
    RevokeNewestByHand,
    DeleteNewestRecord,
    EditRecordByHand,
    PlantRecord,
    LoseStatus,
    Suspend,
    Resume,
    Narrow,
    ExpireSoon,
    ExpireLate,
    SpoilSpec,
    MendSpec,
    ShortenOverlap,
    WaitSeconds,
    WaitMinutes,
    WaitDays,
    Delete,
}

const MEDDLINGS: [Meddling; 23] = {
    use Meddling::*;
    [
        DeleteSecret,
        ChangeSecret,
        PutOldKeyBack,
        TakeSecretName,
        FreeSecretName,
        SpoilMarks,
        RevokeNewestByHand,
        DeleteNewestRecord,
        EditRecordByHand,
        PlantRecord,
        LoseStatus,
        Suspend,
        Resume,
        Narrow,
        ExpireSoon,
        ExpireLate,
        SpoilSpec,
        MendSpec,
        ShortenOverlap,
        WaitSeconds,
        WaitMinutes,
        WaitDays,
        Delete,
    ]
};

impl World {
    fn meddle(&mut self, meddling: Meddling) {
        match meddling {
            Meddling::DeleteSecret => self.secret = Secret::Absent,
            Meddling::ChangeSecret => {
                let version = self.next_version();
                if let Secret::Ours { resource_version, digest, .. } = &mut self.secret {
                    (*resource_version, *digest) = (version, Some(Digest::of(b"somebody's own idea of a key")));
                }
            }
            Meddling::PutOldKeyBack => {
                let mut digests = self.records.values().map(|record| &record.spec.digest);
                let known = digests.find(|digest| self.handed_out.contains(*digest)).cloned();
                let oldest = known.and_then(|digest| digest.parse().ok());
                let version = self.next_version();
                if let Secret::Ours { resource_version, digest, .. } = &mut self.secret {
                    (*resource_version, *digest) = (version, oldest);
                }
            }
            Meddling::TakeSecretName => self.secret = Secret::Foreign,
            Meddling::FreeSecretName if self.secret == Secret::Foreign => self.secret = Secret::Absent,
            Meddling::SpoilMarks => {
                let version = self.next_version();
                if let Secret::Ours { resource_version, marks, .. } = &mut self.secret {
                    (*resource_version, *marks) = (version, Marks { serial: Some(4_000_000_000), ..Marks::default() });
                }
            }
            Meddling::RevokeNewestByHand => {
                let (version, now) = (self.next_version(), self.now);
                if let Some(record) = self.records.values_mut().rfind(|record| record.live()) {
                    record.spec = revoked(&record.spec, RevocationReason::Tampered, now);
                    record.resource_version = version;
                }
            }
            Meddling::DeleteNewestRecord => drop(self.records.pop_last()),
            Meddling::EditRecordByHand => {
                let version = self.next_version();
                if let Some(record) = self.records.values_mut().rfind(|record| record.live()) {
                    record.spec.allowed_ips = Some(vec!["0.0.0.0/0".into()]);
                    record.resource_version = version;
                }
            }
            Meddling::PlantRecord => self.plant_record(),
            Meddling::LoseStatus => self.status = ApiKeyStatus::default(),
            Meddling::Suspend => self.edit("suspended", json!(true)),
            Meddling::Resume => self.edit("suspended", Value::Null),
            Meddling::Narrow => self.edit("allowedIPs", json!(["192.0.2.0/24"])),
            Meddling::ExpireSoon => self.edit("expiresAt", json!(self.now.to_string())),
            Meddling::ExpireLate => self.edit("expiresAt", json!("2036-01-01T00:00:00Z")),
            Meddling::SpoilSpec => self.edit("allowedIPs", json!(["10.0.0.1/8"])),
            Meddling::MendSpec => self.edit("allowedIPs", Value::Null),
            Meddling::ShortenOverlap if self.spec.get("keyHash").is_none() => {
                self.edit("rotation", json!({"overlap": "0s"}));
            }
            Meddling::WaitSeconds => self.wait(SignedDuration::from_secs(5)),
            Meddling::WaitMinutes => self.wait(SignedDuration::from_mins(6)),
            Meddling::WaitDays => self.wait(SignedDuration::from_hours(72)),
            Meddling::Delete => self.deleting = true,
            Meddling::FreeSecretName | Meddling::ShortenOverlap => {}
        }
    }

    fn edit(&mut self, field: &str, value: Value) {
        self.spec[field] = value;
        self.generation += 1;
    }

    fn wait(&mut self, time: SignedDuration) {
        self.now = self.now.checked_add(time).unwrap();
    }

    /// Somebody with rights on records tries to let a key of their own in.
    fn plant_record(&mut self) {
        let newest = self.records.keys().next_back().copied().max(self.status.serial);
        let serial = newest.map_or(1, |newest| newest + 1);
        let template = self.records.values().next_back().cloned();
        let Some(mut record) = template else { return };
        record.name = record_name(UID, serial);
        record.spec.serial = serial;
        record.spec.revoked = None;
        record.spec.digest = Digest::of(b"a planted key").to_string();
        record.resource_version = self.next_version();
        self.records.insert(serial, record);
    }
}

fn specs() -> [Value; 3] {
    [
        json!({}),
        json!({"expiresIn": "1d", "allowedIPs": ["2001:DB8::/32"], "scopes": ["read"], "owner": "ada", "rotation": {"overlap": "1h"}}),
        json!({"keyHash": Digest::of(b"made elsewhere").to_string()}),
    ]
}

/// A world with its key handed out.
fn issued(spec: Value) -> World {
    let mut world = World::new(spec);
    assert_eq!(world.run(None), Rest::Settled);
    world
}

#[test]
fn a_key_is_issued_in_three_writes_and_a_status() {
    let world = issued(json!({}));
    assert_eq!(world.writes, 3);
    assert_eq!((world.reason(), world.status.serial), (Reason::Active, Some(1)));
    assert_eq!(world.status.expires.as_deref(), Some("Never"));
    assert_eq!(world.status.secret_name.as_deref(), Some("ci"));
}

/// Every pair of interventions, with a crash after every write of the run that follows each of them.
#[test]
fn the_world_comes_to_rest_whatever_happens_and_wherever_it_crashes() {
    let mut runs = 0;
    for spec in specs() {
        for first in MEDDLINGS {
            for second in MEDDLINGS {
                for crash in 0..8 {
                    let mut world = issued(spec.clone());
                    world.meddle(first);
                    world.run(Some(crash));
                    world.meddle(second);
                    world.run(Some(crash));
                    world.wait(DELIVERY_GRACE);
                    let rest = world.run(None);
                    world.check_rest(rest);
                    runs += 1;
                }
            }
        }
    }
    assert_eq!(runs, 3 * 23 * 23 * 8);
}

/// A crash after each write of the first issue: the key of a lost memory is revoked, and the next serial is handed out.
#[test]
fn a_crash_while_issuing_leaves_no_key_that_nobody_holds() {
    for crash in 0..=3 {
        let mut world = World::new(json!({}));
        world.run(Some(crash));
        world.wait(DELIVERY_GRACE);
        let rest = world.run(None);
        world.check_rest(rest);
        assert_eq!(world.reason(), Reason::Active, "crash after {crash} writes");
        let lost_record = crash == 2;
        assert_eq!(world.status.serial, Some(if lost_record { 2 } else { 1 }), "crash after {crash} writes");
    }
}

#[test]
fn a_crash_while_deleting_ends_in_the_same_place() {
    for crash in 0..4 {
        let mut world = issued(json!({}));
        world.meddle(Meddling::DeleteSecret);
        world.run(None);
        world.meddle(Meddling::Delete);
        world.run(Some(crash));
        assert_eq!(world.run(None), Rest::Done);
        assert!(!world.finalizer && world.records.values().all(|record| !record.live()));
    }
}

#[test]
fn a_missing_secret_gets_a_new_key_and_the_old_one_lives_on_for_the_overlap() {
    let mut world = issued(json!({"rotation": {"overlap": "1h"}}));
    world.meddle(Meddling::DeleteSecret);
    world.run(None);
    assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::Rotating));
    assert_eq!(world.status.retiring[0].retires_at.0, world.created + SignedDuration::from_hours(1));
    world.wait(SignedDuration::from_hours(1));
    world.run(None);
    assert_eq!(world.reason(), Reason::Active);
    assert_eq!(world.records[&1].spec.revoked.as_ref().unwrap().reason, "Replaced");
}

#[test]
fn an_old_key_put_back_into_the_secret_is_replaced() {
    let mut world = issued(json!({"rotation": {"overlap": "1h"}}));
    world.meddle(Meddling::DeleteSecret);
    world.run(None);
    world.wait(MINT_PERIOD);
    world.meddle(Meddling::PutOldKeyBack);
    world.run(None);
    assert_eq!((world.status.serial, world.reason()), (Some(3), Reason::Rotating));
}

#[test]
fn an_unrequested_key_is_made_once_in_five_minutes() {
    let mut world = issued(json!({}));
    for _ in 0..100 {
        world.meddle(Meddling::ChangeSecret);
        world.run(None);
    }
    assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::MintBudget));
    world.wait(MINT_PERIOD);
    world.run(None);
    assert_eq!(world.status.serial, Some(3));
}

#[test]
fn removing_the_records_does_not_widen_the_mint_budget() {
    let mut world = issued(json!({}));
    for _ in 0..100 {
        world.meddle(Meddling::DeleteNewestRecord);
        world.run(None);
    }
    assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::MintBudget));
}

#[test]
fn a_key_that_never_reached_its_secret_costs_no_budget() {
    let mut world = issued(json!({}));
    world.meddle(Meddling::DeleteSecret);
    world.run(Some(1));
    world.wait(DELIVERY_GRACE);
    world.run(None);
    assert_eq!((world.status.serial, world.reason()), (Some(3), Reason::Rotating));
}

#[test]
fn another_controllers_fresh_record_is_left_alone_for_a_moment() {
    let mut world = World::new(json!({}));
    world.run(Some(2));
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!(world.reason(), Reason::Issuing);
    assert!(world.records[&1].live());
}

#[test]
fn a_record_revoked_by_hand_is_never_restored() {
    let mut world = issued(json!({}));
    world.meddle(Meddling::RevokeNewestByHand);
    world.run(None);
    assert!(!world.records[&1].live());
    assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::Active));
}

#[test]
fn a_submitted_key_that_was_revoked_is_never_accepted_again() {
    for meddling in [Meddling::RevokeNewestByHand, Meddling::DeleteNewestRecord] {
        let mut world = issued(specs()[2].clone());
        assert_eq!((world.reason(), world.status.key_prefix.as_ref()), (Reason::Active, None));
        world.meddle(meddling);
        world.run(None);
        assert_eq!(world.reason(), Reason::Invalid);
        assert!(world.records.values().all(|record| !record.live()));
    }
}

#[test]
fn a_foreign_secret_is_never_touched_and_nothing_is_minted() {
    let mut world = World::new(json!({}));
    world.meddle(Meddling::TakeSecretName);
    world.run(None);
    assert_eq!((world.reason(), world.minted, &world.secret), (Reason::SecretNameTaken, 0, &Secret::Foreign));
    let Plan::Settled { wake, .. } = plan(&world.observed(), world.now) else { panic!("not settled") };
    assert_eq!(wake, Some(world.now + NAME_RETRY));
    world.meddle(Meddling::FreeSecretName);
    world.run(None);
    assert_eq!((world.reason(), world.minted), (Reason::Active, 1));
}

#[test]
fn nothing_is_minted_that_has_no_place_to_go() {
    let mut world = issued(json!({}));
    world.secret = Secret::Absent;
    let observed = Observed { obstacle: Some("exceeded quota".into()), ..world.observed() };
    let Plan::Settled { status, wake } = plan(&observed, world.now) else { panic!("not settled") };
    assert_eq!(status.conditions[0].reason, Reason::Issuing);
    assert_eq!(status.conditions[0].message, "Secret \"ci\" cannot be written: exceeded quota");
    assert_eq!(wake, Some(world.now + NAME_RETRY));

    let mut world = issued(json!({}));
    let Secret::Ours { immutable, .. } = &mut world.secret else { panic!("not ours") };
    *immutable = true;
    world.run(None);
    assert_eq!(world.reason(), Reason::Active);
    world.meddle(Meddling::ChangeSecret);
    world.run(None);
    assert_eq!((world.reason(), world.minted), (Reason::Issuing, 1));
}

#[test]
fn an_invalid_spec_refuses_the_key_until_it_is_mended() {
    let mut world = issued(json!({}));
    world.meddle(Meddling::SpoilSpec);
    world.run(None);
    assert_eq!(world.reason(), Reason::Invalid);
    assert!(world.records[&1].spec.suspended);
    let message = &world.status.conditions[0].message;
    assert!(message.starts_with("spec.allowedIPs[0]: "), "{message}");
    world.meddle(Meddling::MendSpec);
    world.run(None);
    assert_eq!(world.reason(), Reason::Active);
    assert!(!world.records[&1].spec.suspended);
    let mut never_valid = World::new(json!({"allowedIPs": ["10.0.0.1/8"]}));
    never_valid.run(None);
    assert_eq!((never_valid.reason(), never_valid.minted), (Reason::Invalid, 0));
}

#[test]
fn an_expired_key_is_shown_so_at_the_very_second_and_can_come_back() {
    let mut world = issued(json!({"expiresIn": "10m"}));
    let wake = |world: &World| match plan(&world.observed(), world.now) {
        Plan::Settled { wake, .. } => wake,
        other => panic!("not settled: {other:?}"),
    };
    assert_eq!(wake(&world), Some(world.created + SignedDuration::from_mins(9)), "the last tenth");
    world.wait(SignedDuration::from_mins(9));
    world.run(None);
    assert_eq!(world.status.conditions[3].status, ConditionStatus::True);
    assert_eq!(wake(&world), Some(world.created + SignedDuration::from_mins(10)));
    world.wait(SignedDuration::from_secs(59));
    world.run(None);
    assert_eq!(world.reason(), Reason::Active);
    world.wait(SignedDuration::from_secs(1));
    world.run(None);
    assert_eq!((world.reason(), wake(&world)), (Reason::Expired, None));
    assert_eq!(world.status.conditions[1].status, ConditionStatus::True, "declared to expire, so Ready");
    world.spec = json!({"expiresIn": "20m"});
    world.run(None);
    assert_eq!((world.reason(), world.status.serial), (Reason::Active, Some(1)));
}

#[test]
fn the_last_use_that_is_shown_never_goes_backwards() {
    let shown = |world: &World| world.status.last_used_at.as_ref().map(|time| time.0);
    let mut world = issued(json!({}));
    assert_eq!(shown(&world), None);
    let [early, late, later] = [1, 2, 3].map(|hours| Some(world.created + SignedDuration::from_hours(hours)));
    // A verifier may be late, and a record's status be lost.
    for (told, expected) in [(early, early), (late, late), (early, late), (None, late)] {
        world.records.get_mut(&1).unwrap().last_used_at = told;
        world.run(None);
        assert_eq!(shown(&world), expected, "{told:?}");
    }
    for meddling in MEDDLINGS.into_iter().filter(|meddling| *meddling != Meddling::LoseStatus) {
        let mut world = world.clone();
        world.meddle(meddling);
        world.run(None);
        assert_eq!(shown(&world), late, "{meddling:?}");
    }
    // A record takes its time with it; and an older key that is still in use counts as well as its successor.
    world.records.clear();
    world.run(None);
    assert_eq!(shown(&world), late);
    let mut world = issued(json!({"rotation": {"overlap": "1h"}}));
    world.meddle(Meddling::DeleteSecret);
    world.run(None);
    for (first, second, expected) in [(later, early, later), (None, late, later)] {
        world.records.get_mut(&1).unwrap().last_used_at = first;
        world.records.get_mut(&2).unwrap().last_used_at = second;
        world.run(None);
        assert_eq!(shown(&world), expected);
    }
}

#[test]
fn events_tell_what_changed_and_nothing_twice() {
    let said = |before: &World, after: &World| {
        let cause = after.current().map(|record| record.cause);
        announcements(&before.status, &after.status, cause).into_iter().map(|event| event.reason).collect::<Vec<_>>()
    };
    let new = World::new(json!({}));
    let world = issued(json!({}));
    assert_eq!(said(&new, &world), ["Issued"]);
    assert!(said(&world, &world).is_empty());
    for (meddling, reason) in [
        (Meddling::DeleteSecret, "SecretRecreated"),
        (Meddling::RevokeNewestByHand, "SecretRecreated"),
        (Meddling::Suspend, "Suspended"),
        (Meddling::ExpireSoon, "Expired"),
        (Meddling::TakeSecretName, "SecretNameTaken"),
    ] {
        let mut after = world.clone();
        after.meddle(meddling);
        after.run(None);
        assert_eq!(said(&world, &after), [reason], "{meddling:?}");
    }
}

#[test]
fn names_of_records_are_read_back_exactly() {
    assert_eq!(serial_in(&record_name(UID, 7), UID), Some(7));
    for name in [format!("{UID}-07"), format!("{UID}-+7"), format!("{UID}-"), format!("{UID}7"), "other-7".into()] {
        assert_eq!(serial_in(&name, UID), None, "{name}");
    }
}

#[test]
fn tombstones_stand_for_their_retention() {
    let world = issued(json!({}));
    let day = SignedDuration::from_hours(24);
    let live = &world.records[&1].spec;
    assert!(!tombstone_is_over(live, SignedDuration::ZERO, Timestamp::MAX), "a live record is no tombstone");
    let tombstone = revoked(live, RevocationReason::Deleted, world.now);
    assert!(!tombstone_is_over(&tombstone, day, world.now + day - SignedDuration::from_secs(1)));
    assert!(tombstone_is_over(&tombstone, day, world.now + day));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Long stories, where the pairs above are short ones.
    #[test]
    fn long_stories_end_well(
        spec in 0usize..3,
        story in proptest::collection::vec((0usize..MEDDLINGS.len(), proptest::option::of(0usize..6)), 1..14),
    ) {
        let mut world = issued(specs()[spec].clone());
        for (meddling, crash) in story {
            let mut revoked: Vec<_> = world.records.values().filter(|record| !record.live()).cloned().collect();
            world.meddle(MEDDLINGS[meddling]);
            revoked.retain(|record| world.records.contains_key(&record.spec.serial));
            let rest = world.run(crash);
            if rest != Rest::Crashed {
                world.check_rest(rest);
            }
            for record in revoked {
                prop_assert!(!world.records[&record.spec.serial].live(), "a revoked key stays revoked");
            }
        }
        world.wait(DELIVERY_GRACE);
        let rest = world.run(None);
        world.check_rest(rest);
        world.meddle(Meddling::Delete);
        prop_assert_eq!(world.run(None), Rest::Done);
        world.check_rest(Rest::Done);
    }
}
