//! Every state that verifiers, controllers, the API server and the network can reach within bounds, with the machines that
//! are shipped. In none of them has a deletion returned while a verifier accepts its key.
//!
//! Each shortcut breaks one rule of the protocol in the world around the machines, and must be caught.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;

use super::super::verifier::Timings;
use super::*;

const TICK: Duration = Duration::from_secs(300);

/// Two ticks. A controller sees a Lease run out after three.
const DURATION: Duration = Duration::from_secs(600);

/// The clock of all in the model stands still, and what it has shown becomes older.
const NOW: Moment = Moment::since_boot(Duration::from_secs(3000));

/// Nothing in the model waits without need: the search finds every moment at which something can happen.
const TIMINGS: Timings = Timings {
    renewal: TICK,
    acknowledgement: Duration::ZERO,
    first_retry: Duration::ZERO,
    longest_retry: Duration::ZERO,
    longest_behind: Duration::from_secs(1_000_000),
};

/// A rule of the protocol that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shortcut {
    /// A Lease that was seen to have run out is ignored, and not deleted.
    LapseObserved,
    /// A Lease that has run out is deleted without a precondition.
    BlindDelete,
    /// A renewal counts from its answer.
    FromAnswer,
    /// The list is asked for before the Lease is there.
    ListBeforeLease,
    /// The list comes from a cache, which may be old.
    StaleList,
    /// The Lease is checked before the keyring is asked.
    CheckedBefore,
    /// A version is acknowledged while a decision from an older keyring is under way.
    Undrained,
    /// The Leases come from a cache, which may be older than the tombstone.
    StaleLook,
}

/// How far the search goes.
#[derive(Clone, Copy)]
struct Bounds {
    verifiers: usize,
    controllers: usize,
    /// Starts of each verifier.
    starts: u8,
    /// Leases of all verifiers together.
    leases: u8,
    /// Writes of Leases, of all verifiers together.
    lease_writes: u8,
    /// Requests and answers that are lost or late, of all verifiers together.
    losses: u8,
    /// Looks of each controller, and those of them that begin before the tombstone.
    looks: u8,
    early_looks: u8,
    /// Restarts of controllers.
    controller_restarts: u8,
    /// Whether verifiers may be stopped in order.
    leaves: bool,
    /// Writes of another record before the first tombstone.
    other_writes: u8,
    /// Backups that are restored.
    restores: u8,
}

/// The smallest world in which a Lease can run out.
const ONE: Bounds = Bounds {
    verifiers: 1,
    controllers: 1,
    starts: 1,
    leases: 1,
    lease_writes: 3,
    losses: 0,
    looks: 3,
    early_looks: 0,
    controller_restarts: 0,
    leaves: false,
    other_writes: 0,
    restores: 0,
};

/// All that there is.
#[derive(Clone, Hash)]
struct World {
    store: Store,
    backup: Option<Store>,
    verifiers: Vec<Place>,
    controllers: Vec<Controller>,
    left: Left,
    is_restored: bool,
}

/// What may still happen.
#[derive(Clone, Copy, Hash)]
struct Left {
    losses: u8,
    controller_restarts: u8,
    other_writes: u8,
    restores: u8,
}

/// What etcd holds.
#[derive(Clone, Hash)]
struct Store {
    /// The newest version of the records.
    records: u8,
    /// The version of the record of the one key.
    record: u8,
    is_revoked: bool,
    /// The ApiKey is gone, and `kubectl delete` has returned.
    has_returned: bool,
    /// The newest version of the Leases.
    leases: u8,
    uids: u8,
    /// One for each verifier.
    lease: Vec<Option<StoredLease>>,
}

#[derive(Clone, Copy, PartialEq, Hash)]
struct StoredLease {
    uid: u8,
    version: u8,
    start: u8,
    content: Content,
}

/// Where one verifier runs, time and again.
#[derive(Clone, Hash)]
struct Place {
    process: Option<Process>,
    starts: u8,
    /// A request that its sender does not wait for any more, and that may still be carried out.
    stray: Option<(u8, Operation)>,
}

#[derive(Clone, Hash)]
struct Process {
    machine: Verifier,
    request: Option<(Request, Option<Answer>)>,
    list: Option<Round>,
    keyring: Keyring,
    round: Round,
    /// For [`Shortcut::ListBeforeLease`].
    early_list: Keyring,
    /// A request at the verifier that has come past the first of its two checks, where the second decides.
    is_half_checked: bool,
    /// Its keyring is newer than the backup that was restored since.
    is_ahead: bool,
}

/// The records that a verifier has.
#[derive(Clone, Copy, PartialEq, Hash, Default)]
struct Keyring {
    version: u8,
    accepts: bool,
}

#[derive(Clone, Hash)]
struct Controller {
    fence: Fence,
    /// With the version of the record.
    awaited: Option<(Awaited, u8)>,
    look: Option<(Look, Store, bool)>,
    eviction: Option<Eviction>,
    /// The newest versions of records and Leases that it has seen.
    seen: (u8, u8),
    /// It has not looked since a backup was restored.
    is_unaware: bool,
    /// What its last look was to show.
    looked_at: Option<Sight>,
    looks: u8,
}

/// What a look shows, and what it is made for. The same look again changes nothing.
#[derive(Clone, PartialEq, Hash)]
struct Sight {
    lease: Vec<Option<StoredLease>>,
    records: u8,
    awaited: Option<Awaited>,
}

#[derive(Clone, Copy, PartialEq)]
enum Move {
    Tick,
    Start(usize),
    Crash(usize),
    Leave(usize),
    Act(usize),
    Land(usize),
    LandStray(usize),
    Hear(usize),
    Lose(usize),
    List(usize),
    Watch(usize),
    SeeNewest(usize),
    HalfCheck(usize),
    Revoke(usize),
    Read(usize),
    Look(usize),
    Looked(usize),
    Evict(usize),
    LandEviction(usize),
    Restart(usize),
    WriteOther,
    Restore,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => write!(f, "time passes"),
            Self::Start(place) => write!(f, "verifier {place} starts"),
            Self::Crash(place) => write!(f, "verifier {place} crashes"),
            Self::Leave(place) => write!(f, "verifier {place} has drained after SIGTERM"),
            Self::Act(place) => write!(f, "verifier {place} acts"),
            Self::Land(place) => write!(f, "the API server carries the request of verifier {place} out"),
            Self::LandStray(place) => write!(f, "the API server carries the late request of verifier {place} out"),
            Self::Hear(place) => write!(f, "verifier {place} hears the answer"),
            Self::Lose(place) => write!(f, "verifier {place} gives the request up"),
            Self::List(place) => write!(f, "verifier {place} has the list"),
            Self::Watch(place) => write!(f, "verifier {place} has what the watch brings"),
            Self::SeeNewest(place) => write!(f, "verifier {place} asks for the newest version"),
            Self::HalfCheck(place) => write!(f, "verifier {place} makes the first of two checks of a request"),
            Self::Revoke(controller) => write!(f, "controller {controller} writes the tombstone"),
            Self::Read(controller) => write!(f, "controller {controller} reads the tombstone"),
            Self::Look(controller) => write!(f, "controller {controller} looks at the Leases"),
            Self::Looked(controller) => write!(f, "controller {controller} hears what the look shows"),
            Self::Evict(controller) => write!(f, "controller {controller} deletes a Lease that has run out"),
            Self::LandEviction(controller) => {
                write!(f, "the API server carries the DELETE of controller {controller} out")
            }
            Self::Restart(controller) => write!(f, "controller {controller} restarts"),
            Self::WriteOther => write!(f, "another record is written"),
            Self::Restore => write!(f, "etcd is restored"),
        }
    }
}

impl Store {
    fn stored(&self, place: usize) -> Option<Stored> {
        self.object(place).as_ref().and_then(Stored::read)
    }

    fn object(&self, place: usize) -> Option<Lease> {
        let StoredLease { uid, version, start, content } = self.lease[place]?;
        let precondition = Precondition { uid: uid.to_string().into(), version: version.to_string().parse().unwrap() };
        Some(content.object(&holder(place, start), Some(&precondition), Timestamp::UNIX_EPOCH))
    }

    fn meets(&self, place: usize, precondition: &Precondition) -> bool {
        self.lease[place].is_some_and(|lease| {
            *precondition.uid == *lease.uid.to_string() && precondition.version.to_string() == lease.version.to_string()
        })
    }

    fn carry_out(&mut self, place: usize, start: u8, operation: &Operation) -> Answer {
        match operation {
            Operation::Create(_) if self.lease[place].is_some() => Answer::Conflict,
            Operation::Create(content) => {
                self.uids += 1;
                self.write(place, StoredLease { uid: self.uids, version: 0, start, content: *content })
            }
            Operation::Read => self.stored(place).map_or(Answer::Absent, Answer::Stored),
            Operation::Renew(..) | Operation::Delete(_) if self.lease[place].is_none() => Answer::Absent,
            Operation::Renew(precondition, _) | Operation::Delete(precondition) if !self.meets(place, precondition) => {
                Answer::Conflict
            }
            Operation::Renew(_, content) => {
                let lease = self.lease[place].unwrap();
                self.write(place, StoredLease { content: *content, ..lease })
            }
            Operation::Delete(_) => {
                self.lease[place] = None;
                Answer::Absent
            }
        }
    }

    fn write(&mut self, place: usize, lease: StoredLease) -> Answer {
        self.leases += 1;
        self.lease[place] = Some(StoredLease { version: self.leases, ..lease });
        self.stored(place).map_or(Answer::Unknown, Answer::Stored)
    }

    fn keyring(&self) -> Keyring {
        Keyring { version: self.records, accepts: !self.is_revoked }
    }
}

fn holder(place: usize, start: u8) -> Holder {
    Holder::new(&format!("v{place}"), start.into(), DURATION)
}

fn version(number: u8) -> RecordVersion {
    number.to_string().parse().unwrap()
}

impl World {
    fn new(bounds: Bounds) -> Self {
        Self {
            store: Store {
                records: 1,
                record: 1,
                is_revoked: false,
                has_returned: false,
                leases: 0,
                uids: 0,
                lease: vec![None; bounds.verifiers],
            },
            backup: None,
            verifiers: vec![Place { process: None, starts: 0, stray: None }; bounds.verifiers],
            controllers: vec![Controller::new(None); bounds.controllers],
            left: Left {
                losses: bounds.losses,
                controller_restarts: bounds.controller_restarts,
                other_writes: bounds.other_writes,
                restores: bounds.restores,
            },
            is_restored: false,
        }
    }

    /// Whether a verifier accepts the key after the deletion has returned.
    fn is_broken(&self, shortcut: Option<Shortcut>) -> bool {
        let accepts = |process: &Process| match shortcut {
            Some(Shortcut::CheckedBefore) => process.is_half_checked && process.keyring.accepts,
            Some(Shortcut::Undrained) => process.is_half_checked && process.machine.may_answer(NOW),
            _ => process.keyring.accepts && process.machine.may_answer(NOW),
        };
        self.store.has_returned && self.verifiers.iter().filter_map(|place| place.process.as_ref()).any(accepts)
    }

    fn moves(&self, bounds: Bounds, shortcut: Option<Shortcut>) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut add = |is_possible: bool, next: Move| moves.extend(is_possible.then_some(next));
        add(true, Move::Tick);
        for (number, place) in self.verifiers.iter().enumerate() {
            add(place.process.is_none() && place.starts < bounds.starts, Move::Start(number));
            add(
                place.stray.as_ref().is_some_and(|(_, stray)| self.may_carry_out(stray, bounds)),
                Move::LandStray(number),
            );
            let Some(process) = &place.process else { continue };
            // A crash that nothing follows is as good as a process that stands still.
            add(place.starts < bounds.starts, Move::Crash(number));
            add(bounds.leaves && process.machine.state(NOW) != State::Leaving, Move::Leave(number));
            match &process.request {
                None => add(true, Move::Act(number)),
                Some((request, None)) => add(self.may_carry_out(&request.operation, bounds), Move::Land(number)),
                Some((_, Some(_))) => add(true, Move::Hear(number)),
            }
            add(process.request.is_some() && self.left.losses > 0, Move::Lose(number));
            add(process.list.is_some(), Move::List(number));
            let is_listed = process.list.is_none() && process.keyring.version > 0;
            add(is_listed && process.keyring.version < self.store.records, Move::Watch(number));
            add(is_listed && process.keyring.version > self.store.records, Move::SeeNewest(number));
            let is_half_checked = match shortcut {
                Some(Shortcut::CheckedBefore) => process.machine.may_answer(NOW),
                Some(Shortcut::Undrained) => process.keyring.accepts,
                _ => false,
            };
            add(is_half_checked && !process.is_half_checked, Move::HalfCheck(number));
        }
        let may_write_record = self.can_notice(self.store.records + 1, self.store.leases);
        for (number, controller) in self.controllers.iter().enumerate() {
            add(controller.eviction.is_some(), Move::LandEviction(number));
            if self.store.has_returned {
                continue;
            }
            add(!self.store.is_revoked && may_write_record, Move::Revoke(number));
            let is_awaited = controller.awaited.as_ref().is_some_and(|(_, version)| *version == self.store.record);
            add(self.store.is_revoked && (!is_awaited || controller.is_void()), Move::Read(number));
            let is_overdue = controller.fence.overdue(NOW).next().is_some();
            let is_new = is_overdue || controller.looked_at.as_ref() != Some(&controller.sight(&self.store));
            let looks = if controller.awaited.is_some() { bounds.looks } else { bounds.early_looks };
            add(is_new && controller.look.is_none() && controller.looks < looks, Move::Look(number));
            add(controller.look.is_some(), Move::Looked(number));
            add(is_overdue && controller.eviction.is_none(), Move::Evict(number));
            add(self.left.controller_restarts > 0, Move::Restart(number));
        }
        add(self.left.other_writes > 0 && !self.store.is_revoked && !self.is_restored, Move::WriteOther);
        let may_restore = self.left.restores > 0;
        add(may_restore && self.backup.as_ref().is_some_and(|backup| self.notices(backup)), Move::Restore);
        moves
    }

    fn may_carry_out(&self, operation: &Operation, bounds: Bounds) -> bool {
        let may_write =
            self.store.leases < bounds.lease_writes && self.can_notice(self.store.records, self.store.leases + 1);
        match operation {
            Operation::Create(_) => may_write && self.store.uids < bounds.leases,
            Operation::Renew(..) => may_write,
            Operation::Read | Operation::Delete(_) => true,
        }
    }

    /// Whether all that do not know of the restore can notice it while these are the newest versions. Otherwise nobody can
    /// know, and nothing is promised.
    fn can_notice(&self, records: u8, leases: u8) -> bool {
        let controllers = self.controllers.iter().filter(|controller| controller.is_unaware);
        let verifiers = self.verifiers.iter().filter_map(|place| place.process.as_ref());
        controllers.into_iter().all(|controller| controller.seen.0 > records || controller.seen.1 > leases)
            && verifiers.filter(|process| process.is_ahead).all(|process| process.keyring.version > records)
    }

    /// Whether every controller knows a version that the backup does not have.
    fn notices(&self, backup: &Store) -> bool {
        self.controllers
            .iter()
            .all(|controller| controller.seen.0 > backup.records || controller.seen.1 > backup.leases)
    }

    /// The world after a move.
    fn after(&self, next: Move, shortcut: Option<Shortcut>) -> Self {
        let mut world = self.clone();
        let now = NOW;
        let passed = if next == Move::Tick { TICK } else { Duration::ZERO };
        match next {
            Move::Tick => {}
            Move::Start(place) => {
                let starts = self.verifiers[place].starts + 1;
                let machine = Verifier::with_timings(holder(place, starts), TIMINGS);
                let started = &mut world.verifiers[place];
                (started.starts, started.process) = (starts, Some(Process::new(machine)));
            }
            Move::Crash(place) => {
                let place = &mut world.verifiers[place];
                let request = place.process.take().and_then(|process| process.request);
                if let Some((request, None)) = request {
                    place.stray = Some((place.starts, request.operation));
                }
            }
            Move::Land(place) => {
                let (request, _) = world.process(place).request.take().unwrap();
                let answer = world.store.carry_out(place, self.verifiers[place].starts, &request.operation);
                world.process(place).request = Some((request, Some(answer)));
            }
            Move::LandStray(place) => {
                let (start, operation) = world.verifiers[place].stray.take().unwrap();
                world.store.carry_out(place, start, &operation);
            }
            Move::Lose(place) => {
                world.left.losses -= 1;
                let (request, answer) = world.process(place).request.take().unwrap();
                world.process(place).machine.answered(request.clone(), Answer::Unknown, now);
                if answer.is_none() {
                    world.verifiers[place].stray = Some((self.verifiers[place].starts, request.operation));
                }
            }
            Move::Hear(place) => {
                let (mut request, answer) = world.process(place).request.take().unwrap();
                if shortcut == Some(Shortcut::FromAnswer) {
                    request.sent = now;
                }
                world.process(place).machine.answered(request, answer.unwrap(), now);
            }
            Move::Leave(place) => world.process(place).machine.leave(),
            Move::Act(place) => {
                let keyring = self.store.keyring();
                let process = world.process(place);
                match process.machine.next(now) {
                    Act::Send(request) => {
                        if matches!(request.operation, Operation::Create(_)) {
                            process.early_list = keyring;
                        }
                        // It makes no difference how long these take to get there.
                        let is_at_once = matches!(request.operation, Operation::Read | Operation::Delete(_));
                        let start = self.verifiers[place].starts;
                        let answer = is_at_once.then(|| world.store.carry_out(place, start, &request.operation));
                        world.process(place).request = Some((request, answer));
                    }
                    Act::List(round) => process.list = Some(round),
                    Act::Wait(_) => {}
                    Act::Exit => world.verifiers[place].process = None,
                }
            }
            Move::List(place) => {
                let keyring = match shortcut {
                    Some(Shortcut::ListBeforeLease) => self.process_at(place).early_list,
                    Some(Shortcut::StaleList) => Keyring { version: 1, accepts: true },
                    _ => self.store.keyring(),
                };
                let process = world.process(place);
                process.round = process.list.take().unwrap();
                process.reach(keyring, now);
            }
            Move::Watch(place) => world.process(place).reach(self.store.keyring(), now),
            Move::SeeNewest(place) => {
                let process = world.process(place);
                process.machine.saw_newest(process.round, version(self.store.records), now);
            }
            Move::HalfCheck(place) => world.process(place).is_half_checked = true,
            Move::Revoke(controller) => {
                world.store.records += 1;
                world.store.record = world.store.records;
                world.store.is_revoked = true;
                world.controllers[controller].read(self.store.records + 1);
            }
            Move::Read(controller) => world.controllers[controller].read(self.store.record),
            Move::Look(controller) => {
                let controller = &mut world.controllers[controller];
                controller.looks += 1;
                controller.looked_at = Some(controller.sight(&self.store));
                controller.look = Some((controller.fence.look(), self.store.clone(), self.is_restored));
            }
            Move::Looked(controller) => world.controllers[controller].looked(now, shortcut, self.store.records),
            Move::Evict(controller) => {
                let controller = &mut world.controllers[controller];
                controller.eviction = controller.fence.overdue(now).next();
            }
            Move::LandEviction(controller) => {
                let Eviction { name, precondition } = world.controllers[controller].eviction.take().unwrap();
                let place = name.trim_start_matches('v').parse::<usize>().unwrap();
                if shortcut == Some(Shortcut::BlindDelete) || self.store.meets(place, &precondition) {
                    world.store.lease[place] = None;
                }
            }
            Move::Restart(controller) => {
                world.left.controller_restarts -= 1;
                let controller = &mut world.controllers[controller];
                *controller = Controller { looks: controller.looks, ..Controller::new(controller.eviction.take()) };
            }
            Move::WriteOther => {
                world.left.other_writes -= 1;
                world.store.records += 1;
            }
            Move::Restore => {
                world.left.restores -= 1;
                world.is_restored = true;
                // A uid is random, and never comes again.
                world.store = Store { uids: self.store.uids, ..world.backup.take().unwrap() };
                let records = world.store.records;
                for process in world.verifiers.iter_mut().filter_map(|place| place.process.as_mut()) {
                    process.is_ahead = process.keyring.version > records;
                }
                world.controllers.iter_mut().for_each(|controller| controller.is_unaware = true);
            }
        }
        world.age(passed);
        world.conclude();
        world
    }

    /// Time passes by making everything older, so that the search meets the same world again and needs no end of time.
    fn age(&mut self, by: Duration) {
        for process in self.verifiers.iter_mut().filter_map(|place| place.process.as_mut()) {
            process.machine = process.machine.clone().aged(by, NOW);
            process.request = process.request.take().map(|(request, answer)| (request.aged(by, DURATION, NOW), answer));
        }
        for controller in &mut self.controllers {
            controller.fence = controller.fence.clone().aged(by, NOW);
        }
    }

    /// A controller that may take the finalizer off does so at once. Before that it has read the record again.
    fn conclude(&mut self) {
        let record = self.store.record;
        self.store.has_returned |= self.store.is_revoked
            && self.controllers.iter().any(|controller| {
                controller.awaited.as_ref().is_some_and(|(awaited, version)| {
                    *version == record && matches!(controller.fence.judge(awaited, NOW), Verdict::Passed { .. })
                })
            });
        if self.store.has_returned {
            for controller in &mut self.controllers {
                *controller = Controller { eviction: controller.eviction.take(), ..Controller::new(None) };
            }
        }
    }

    fn process(&mut self, place: usize) -> &mut Process {
        self.verifiers[place].process.as_mut().unwrap()
    }

    fn process_at(&self, place: usize) -> &Process {
        self.verifiers[place].process.as_ref().unwrap()
    }
}

impl Process {
    fn new(machine: Verifier) -> Self {
        Self {
            machine,
            request: None,
            list: None,
            keyring: Keyring::default(),
            round: Round::default(),
            early_list: Keyring::default(),
            is_half_checked: false,
            is_ahead: false,
        }
    }

    /// Swaps the keyring, waits for the decisions from the older one, and says so.
    fn reach(&mut self, keyring: Keyring, now: Moment) {
        (self.keyring, self.is_ahead) = (keyring, false);
        let progress = Progress { version: version(keyring.version), asked: now, is_awaited: true };
        self.machine.reached(self.round, progress, now);
    }
}

impl Controller {
    fn new(eviction: Option<Eviction>) -> Self {
        Self {
            fence: Fence::default(),
            awaited: None,
            look: None,
            eviction,
            seen: (0, 0),
            is_unaware: false,
            looked_at: None,
            looks: 0,
        }
    }

    /// Whether it must read the record again.
    fn is_void(&self) -> bool {
        let verdict = self.awaited.as_ref().map(|(awaited, _)| self.fence.judge(awaited, NOW));
        matches!(verdict, Some(Verdict::Restored { .. }))
    }

    fn sight(&self, store: &Store) -> Sight {
        Sight { lease: store.lease.clone(), records: store.records, awaited: self.awaited.map(|(awaited, _)| awaited) }
    }

    fn read(&mut self, record: u8) {
        self.awaited = Some((self.fence.awaited(version(record), NOW), record));
        self.seen.0 = self.seen.0.max(record);
    }

    fn looked(&mut self, now: Moment, shortcut: Option<Shortcut>, newest_record: u8) {
        let (look, store, is_restored) = self.look.take().unwrap();
        let (look, records) = match shortcut {
            Some(Shortcut::StaleLook) => (self.fence.look(), newest_record),
            _ => (look, store.records),
        };
        let mut leases: Vec<_> = (0..store.lease.len()).filter_map(|place| store.object(place)).collect();
        if shortcut == Some(Shortcut::LapseObserved) {
            let overdue: Vec<_> = self.fence.overdue(now).map(|eviction| eviction.precondition).collect();
            leases.retain(|lease| Stored::read(lease).is_some_and(|stored| !overdue.contains(&stored.at)));
        }
        let newest = store.leases.to_string().parse().unwrap();
        self.fence.looked(&look, &View { leases: &leases, version: newest, records: version(records) }, now);
        self.seen = (self.seen.0.max(store.records), self.seen.1.max(store.leases));
        self.is_unaware &= !is_restored;
    }
}

/// What a search has found.
struct Found {
    states: usize,
    /// The moves that lead to a deletion that returned while a verifier accepts.
    trace: Option<Vec<Move>>,
    returned: usize,
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Goes through every world that can be reached, the nearest first.
fn search(first: World, bounds: Bounds, shortcut: Option<Shortcut>) -> Found {
    let mut seen = HashSet::from([fingerprint(&first)]);
    let mut steps: Vec<(usize, Move)> = vec![(0, Move::Tick)];
    let mut layer = vec![(0, first)];
    let mut returned = 0;
    while !layer.is_empty() {
        let mut next_layer = Vec::new();
        for (step, world) in &layer {
            returned += usize::from(world.store.has_returned);
            if world.is_broken(shortcut) {
                let mut trace: Vec<_> = std::iter::successors(Some(*step), |step| Some(steps[*step].0))
                    .take_while(|step| *step > 0)
                    .map(|step| steps[step].1)
                    .collect();
                trace.reverse();
                return Found { states: seen.len(), trace: Some(trace), returned };
            }
            for next in world.moves(bounds, shortcut) {
                let after = world.after(next, shortcut);
                if seen.insert(fingerprint(&after)) {
                    steps.push((*step, next));
                    next_layer.push((steps.len() - 1, after));
                }
            }
        }
        layer = next_layer;
    }
    Found { states: seen.len(), trace: None, returned }
}

fn tell(trace: &[Move]) -> String {
    trace.iter().map(|step| format!("    {step}\n")).collect()
}

fn assert_holds(name: &str, bounds: Bounds) {
    assert_holds_from(World::new(bounds), name, bounds);
}

fn assert_holds_from(first: World, name: &str, bounds: Bounds) {
    let Found { states, trace, returned } = search(first, bounds, None);
    println!("{name}: {states} states, {returned} of them after the deletion");
    assert!(returned > 0, "no deletion ever returns");
    if let Some(trace) = trace {
        panic!("a verifier accepts a key after its deletion returned:\n{}", tell(&trace));
    }
}

/// A verifier that crashes and starts again.
const STARTS: Bounds = Bounds { starts: 3, leases: 3, looks: 2, ..ONE };

/// A request or an answer that is late or lost.
const LOSS: Bounds = Bounds { losses: 1, lease_writes: 2, looks: 2, ..ONE };

const CONTROLLERS: Bounds = Bounds { controllers: 2, lease_writes: 2, looks: 1, ..ONE };

/// A look that may begin before the tombstone, and end after it.
const EARLY_LOOK: Bounds = Bounds { lease_writes: 2, early_looks: 1, ..ONE };

/// A controller that restarts.
const RESTART: Bounds = Bounds { controller_restarts: 1, lease_writes: 2, ..ONE };

const VERIFIERS: Bounds = Bounds { verifiers: 2, leases: 2, lease_writes: 2, looks: 1, ..ONE };

/// etcd is restored from a backup.
const RESTORE: Bounds = Bounds { leases: 2, lease_writes: 2, early_looks: 1, restores: 1, ..ONE };

/// A verifier serves and a controller has looked, and there is a backup from before this move.
fn with_backup(bounds: Bounds, before: usize) -> World {
    let moves = [
        Move::Start(0),
        Move::Act(0),
        Move::Land(0),
        Move::Hear(0),
        Move::Act(0),
        Move::List(0),
        Move::Act(0),
        Move::Land(0),
        Move::Hear(0),
        Move::Look(0),
        Move::Looked(0),
    ];
    let mut world = World::new(bounds);
    for (number, next) in moves.into_iter().enumerate() {
        if number == before {
            world.backup = Some(world.store.clone());
        }
        world = world.after(next, None);
    }
    world
}

#[test]
fn a_verifier_that_starts_again_lets_nobody_in_after_a_deletion_returned() {
    assert_holds("three starts of a verifier", STARTS);
}

#[test]
fn late_and_lost_requests_let_nobody_in_after_a_deletion_returned() {
    assert_holds("a loss", LOSS);
}

#[test]
fn two_controllers_let_nobody_in_after_a_deletion_returned() {
    assert_holds("two controllers", CONTROLLERS);
    assert_holds("a restart of the controller", RESTART);
    assert_holds("a look that may be stale", EARLY_LOOK);
}

#[test]
fn two_verifiers_let_nobody_in_after_a_deletion_returned() {
    assert_holds("two verifiers", VERIFIERS);
}

#[test]
fn a_restored_backup_lets_nobody_in_after_a_deletion_returned() {
    assert_holds_from(with_backup(RESTORE, 2), "a backup from before the Lease", RESTORE);
    assert_holds_from(with_backup(RESTORE, 7), "a backup from before the last renewal", RESTORE);
}

/// The same with more of everything.
#[test]
#[ignore = "takes minutes"]
fn nobody_is_let_in_after_a_deletion_returned_in_larger_worlds() {
    assert_holds("an orderly end, and a loss", Bounds { leaves: true, losses: 1, ..ONE });
    assert_holds("three starts, a third look", Bounds { looks: 3, lease_writes: 4, ..STARTS });
    assert_holds("two controllers, two looks", Bounds { looks: 2, early_looks: 1, ..CONTROLLERS });
    assert_holds("two verifiers, two looks", Bounds { looks: 2, ..VERIFIERS });
    let other_writes = Bounds { other_writes: 2, lease_writes: 3, ..RESTORE };
    assert_holds_from(with_backup(other_writes, 7), "a backup that lacks other records", other_writes);
}

#[test]
fn every_shortcut_is_caught() {
    for (shortcut, bounds) in [
        (Shortcut::LapseObserved, ONE),
        (Shortcut::BlindDelete, ONE),
        (Shortcut::FromAnswer, ONE),
        (Shortcut::ListBeforeLease, ONE),
        (Shortcut::StaleList, ONE),
        (Shortcut::CheckedBefore, ONE),
        (Shortcut::Undrained, ONE),
        (Shortcut::StaleLook, Bounds { early_looks: 1, ..ONE }),
    ] {
        let Found { states, trace, .. } = search(World::new(bounds), bounds, Some(shortcut));
        let trace = trace.unwrap_or_else(|| panic!("{shortcut:?} is not caught in {states} states"));
        println!("{shortcut:?}, caught after {states} states:\n{}    the verifier accepts the key", tell(&trace));
    }
}
