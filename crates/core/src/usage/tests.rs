#![allow(clippy::disallowed_methods, reason = "an Instant has no other beginning")]

//! Several verifiers at work, in simulated time: each with a watch of its own that is as late as it likes.

use std::collections::VecDeque;
use std::sync::LazyLock;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::pace::WINDOW;
use super::*;
use crate::key::Digest;
use crate::testing::stored;

/// The second at which every simulation begins.
const EPOCH: u32 = 1_800_000_000;
const STEP: Duration = Duration::from_millis(20);

/// What is simulated.
#[derive(Clone, Debug)]
struct Setting {
    verifiers: usize,
    keys: usize,
    budget: u32,
    granularity: u64,
    /// Each key is used once in so many seconds, by a verifier taken at random.
    use_every: u64,
    /// How late a watch is, in milliseconds, at most.
    latest_watch: u64,
    seconds: u64,
    seed: u64,
}

struct Simulation {
    setting: Setting,
    random: SmallRng,
    start: Instant,
    keyring: Arc<Keyring>,
    /// What the API server has, by slot.
    stored: Vec<u32>,
    /// When what was stored, in order.
    log: Vec<(Duration, u32, u32)>,
    verifiers: Vec<Verifier>,
    conflicts: usize,
}

struct Verifier {
    last_uses: LastUses,
    schedule: Schedule,
    seen_writes: SeenWrites,
    /// How much of the log has come in, and when the next of it does.
    seen: usize,
    next_event: Duration,
    next_survey: Duration,
    requests: VecDeque<Request>,
    /// The uses of each key, by slot.
    uses: Vec<Vec<u32>>,
}

/// A write on its way: read already, to be stored later, to be answered later still.
struct Request {
    due: Due,
    read: u32,
    store_at: Duration,
    answer_at: Duration,
    outcome: Option<Outcome>,
}

static KEYRING: LazyLock<Arc<Keyring>> = LazyLock::new(|| Arc::new(keyring(2000)));

fn keyring(keys: usize) -> Keyring {
    let mut keyring = Keyring::default();
    for number in 0..keys {
        let spec = json!({
            "digest": Digest::of(&number.to_le_bytes()).to_string(),
            "apiKey": { "namespace": "a", "name": "b", "uid": "c" },
        });
        keyring.upsert(&stored(&format!("0b0e7a4c-93d1-4f5e-8a6b-{number:012x}-1"), &spec)).unwrap();
    }
    keyring
}

impl Simulation {
    fn new(setting: Setting) -> Self {
        let mut random = SmallRng::seed_from_u64(setting.seed);
        let start = Instant::now() + Duration::from_secs(86_400);
        let policy = Policy {
            granularity: Duration::from_secs(setting.granularity),
            budget: Budget { writes_per_second: setting.budget },
        };
        let verifiers = (0..setting.verifiers).map(|index| {
            let last_uses = LastUses::default();
            last_uses.reach(KEYRING.slots());
            Verifier {
                last_uses,
                schedule: Schedule::new(policy, random.random(), start),
                seen_writes: SeenWrites { writes: 0, lists: 1 },
                seen: 0,
                next_event: Duration::ZERO,
                next_survey: STEP * index as u32,
                requests: VecDeque::new(),
                uses: vec![Vec::new(); setting.keys],
            }
        });
        let verifiers = verifiers.collect();
        let stored = vec![0; setting.keys];
        Self { setting, random, start, keyring: Arc::clone(&KEYRING), stored, log: Vec::new(), verifiers, conflicts: 0 }
    }

    fn run(&mut self) {
        let steps = Duration::from_secs(self.setting.seconds).div_duration_f64(STEP) as u32;
        for step in 0..steps {
            let now = STEP * step;
            self.use_keys(now);
            for index in 0..self.verifiers.len() {
                self.advance(index, now);
            }
            if step % 250 == 249 {
                self.check_granularity(now);
            }
        }
        self.check_budget();
    }

    fn second(now: Duration) -> u32 {
        EPOCH + now.as_secs() as u32
    }

    /// Each key has a moment of its own within the interval.
    fn use_keys(&mut self, now: Duration) {
        let interval = Duration::from_secs(self.setting.use_every);
        let moment = |now: Duration| (now.as_millis() % interval.as_millis()) as usize;
        let (from, to) = (moment(now), moment(now) + STEP.as_millis() as usize);
        let at = |moment: usize| moment * self.setting.keys / interval.as_millis() as usize;
        for slot in at(from)..at(to).min(self.setting.keys) {
            let index = self.random.random_range(0..self.verifiers.len());
            let verifier = &mut self.verifiers[index];
            verifier.last_uses.note(slot as u32, Self::second(now));
            verifier.uses[slot].push(Self::second(now));
        }
    }

    fn advance(&mut self, index: usize, now: Duration) {
        let instant = self.start + now;
        let verifier = &mut self.verifiers[index];
        // Events come in order; a late one holds up all that follow.
        while verifier.seen < self.log.len() && verifier.next_event <= now {
            let (_, slot, second) = self.log[verifier.seen];
            verifier.seen_writes.writes += 1;
            verifier.last_uses.note_written(slot, second);
            verifier.seen += 1;
            let late = if self.random.random_bool(0.05) { self.setting.latest_watch } else { 0 };
            verifier.next_event = now + Duration::from_millis(self.random.random_range(0..=late));
        }
        for request in &mut verifier.requests {
            if request.outcome.is_none() && request.store_at <= now {
                let slot = request.due.slot;
                let used = verifier.last_uses.usage(slot).used;
                let stored = &mut self.stored[slot as usize];
                request.outcome = Some(if *stored != request.read {
                    self.conflicts += 1;
                    Outcome::Conflict
                } else {
                    assert!(used > *stored, "never backwards");
                    *stored = used;
                    self.log.push((now, slot, used));
                    Outcome::Written(used)
                });
            }
        }
        while verifier.requests.front().is_some_and(|request| request.answer_at <= now) {
            let request = verifier.requests.pop_front().unwrap();
            verifier.schedule.finish(request.due, request.outcome.unwrap(), instant);
        }
        if now >= verifier.next_survey {
            verifier.schedule.survey(&verifier.last_uses, || Arc::clone(&self.keyring), Self::second(now), instant);
            verifier.next_survey = now + verifier.schedule.survey_interval();
        }
        let seen = verifier.seen_writes;
        while let Next::Write(due) = verifier.schedule.next(&verifier.last_uses, || seen, Self::second(now), instant) {
            let usage = verifier.last_uses.usage(due.slot);
            let read = self.stored[due.slot as usize];
            if read > usage.written {
                self.conflicts += 1;
                verifier.schedule.finish(due, Outcome::Unneeded, instant);
                continue;
            }
            let took = Duration::from_millis(self.random.random_range(5..30));
            let request = Request { due, read, store_at: now + took, answer_at: now + took * 2, outcome: None };
            verifier.requests.push_back(request);
        }
    }

    /// Every use that is older than the granularity is in the API, give or take a second or two: uses are noted by the
    /// second, and surveys made once in one.
    fn check_granularity(&self, now: Duration) {
        for verifier in &self.verifiers {
            let granularity = verifier.schedule.granularity();
            let Some(due) = now.checked_sub(granularity + Duration::from_secs(2)) else { continue };
            for (slot, uses) in verifier.uses.iter().enumerate() {
                let last = uses[..uses.partition_point(|used| *used <= Self::second(due))].last();
                assert!(
                    last.is_none_or(|last| *last <= self.stored[slot]),
                    "{now:?}: slot {slot}, used {last:?}, stored {}, granularity {granularity:?}",
                    self.stored[slot]
                );
            }
        }
    }

    fn check_budget(&self) {
        let budget = Budget { writes_per_second: self.setting.budget };
        let ignorance = budget.at_once() as usize * (self.setting.verifiers + 1);
        // Below, the reserve would be more than half of the budget.
        let most = match self.setting.budget {
            4.. => self.setting.budget as usize * 10,
            _ => (budget.rate() * 10.0) as usize + ignorance,
        };
        assert!(self.busiest_window() <= most, "{} > {most}", self.busiest_window());
    }

    fn busiest_window(&self) -> usize {
        let begins = self.log.iter().enumerate();
        let counts =
            begins.map(|(begin, (at, ..))| self.log.partition_point(|(other, ..)| *other < *at + WINDOW) - begin);
        counts.max().unwrap_or_default()
    }
}

fn simulate(setting: Setting) -> Simulation {
    let mut simulation = Simulation::new(setting);
    simulation.run();
    simulation
}

const ORDINARY: Setting = Setting {
    verifiers: 3,
    keys: 1000,
    budget: 20,
    granularity: 60,
    use_every: 7,
    latest_watch: 200,
    seconds: 400,
    seed: 1,
};

#[test]
fn a_few_keys_are_written_at_the_granularity_asked_for() {
    for verifiers in [1, 8] {
        let simulation = simulate(Setting { verifiers, keys: 500, ..ORDINARY });
        assert!(simulation.verifiers.iter().all(|verifier| verifier.schedule.granularity().as_secs() == 60));
        let writes = simulation.log.len();
        assert!((500 * 6..=500 * 14).contains(&writes), "{writes} by {verifiers}");
        assert!(simulation.conflicts * 10 < writes, "{} conflicts, {writes} writes", simulation.conflicts);
    }
}

#[test]
fn with_many_keys_the_budget_is_used_up_and_the_granularity_grows() {
    for verifiers in [1, 3] {
        let simulation = simulate(Setting { verifiers, keys: 2000, ..ORDINARY });
        let granularity = simulation.verifiers[0].schedule.granularity().as_secs();
        assert!((120..150).contains(&granularity), "{granularity} s for {verifiers}");
        let writes = simulation.log.len();
        assert!(writes > 390 * 16, "{writes} of {} by {verifiers}", 390 * 20);
        assert!(simulation.stored.iter().all(|stored| *stored > 0));
        assert!(simulation.conflicts * 10 < writes, "{} conflicts, {writes} writes", simulation.conflicts);
    }
}

/// Keys that are used so seldom that each use is written, and the last use of a key that goes to rest.
#[test]
fn every_use_gets_there_in_the_end() {
    let mut simulation = simulate(Setting { keys: 500, use_every: 150, seconds: 300, ..ORDINARY });
    simulation.setting.use_every = 1_000_000;
    simulation.setting.seconds = 400;
    let last = |simulation: &Simulation, slot: usize| {
        simulation.verifiers.iter().filter_map(|verifier| verifier.uses[slot].last().copied()).max().unwrap()
    };
    for step in 15_000..18_250 {
        (0..3).for_each(|index| simulation.advance(index, STEP * step));
    }
    assert!((0..500).all(|slot| simulation.stored[slot] == last(&simulation, slot)));
}

/// Watches that fall further behind all the time: what a verifier believes to be under way has long been written, and its key
/// used again.
#[test]
fn a_verifier_whose_watch_is_far_behind_tells_how_far_uses_are() {
    let setting =
        Setting { verifiers: 6, keys: 400, budget: 200, granularity: 20, use_every: 1, latest_watch: 4000, ..ORDINARY };
    let simulation = simulate(Setting { seconds: 70, seed: 6_623_592_191_435_233_204, ..setting });
    assert!(simulation.verifiers.iter().any(|verifier| verifier.schedule.granularity().as_secs() > 30));
}

#[test]
fn a_use_counts_from_when_the_write_before_it_began_until_the_watch_has_told_of_that() {
    let start = Instant::now();
    let after = |seconds: u32| (EPOCH + seconds, start + Duration::from_secs(seconds.into()));
    let policy = Policy { granularity: Duration::from_secs(20), budget: Budget { writes_per_second: 200 } };
    let (mut schedule, last_uses) = (Schedule::new(policy, 1, start), LastUses::default());
    last_uses.reach(2000);
    last_uses.note(5, EPOCH);
    let survey = |schedule: &mut Schedule, (second, now)| {
        schedule.survey(&last_uses, || Arc::clone(&KEYRING), second, now);
        schedule.granularity().as_secs()
    };
    assert_eq!(survey(&mut schedule, after(0)), 20);
    let (second, now) = after(10);
    let Next::Write(due) = schedule.next(&last_uses, SeenWrites::default, second, now) else { panic!("it is due") };
    schedule.finish(due, Outcome::Written(EPOCH), now);
    assert_eq!(survey(&mut schedule, after(35)), 20, "nothing waits");
    last_uses.note(5, EPOCH + 11);
    assert_eq!(survey(&mut schedule, after(38)), 28);
}

#[test]
fn a_use_of_a_record_that_is_gone_is_forgotten() {
    let now = Instant::now();
    let policy = Policy { granularity: Duration::from_secs(60), budget: Budget { writes_per_second: 20 } };
    let mut schedule = Schedule::new(policy, 1, now);
    let last_uses = LastUses::default();
    last_uses.reach(3000);
    last_uses.note(1999, EPOCH);
    last_uses.note(2000, EPOCH);
    schedule.survey(&last_uses, || Arc::clone(&KEYRING), EPOCH, now);
    assert_eq!(schedule.waiting(), 1);
    assert!(last_uses.usage(1999).is_unwritten() && !last_uses.usage(2000).is_unwritten());
    assert_eq!(unwritten(&last_uses, &KEYRING).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever happens to the watches, and however many begin at once.
    #[test]
    fn the_budget_is_kept_over_every_window_and_nobody_is_forgotten(
        verifiers in 1..=8_usize,
        keys in prop_oneof![Just(20_usize), Just(400), Just(2000)],
        budget in prop_oneof![Just(1_u32), Just(4), Just(20), Just(100), Just(200)],
        granularity in prop_oneof![Just(20_u64), Just(60)],
        use_every in prop_oneof![Just(1_u64), Just(10), Just(45)],
        latest_watch in prop_oneof![Just(0_u64), Just(300), Just(4000)],
        seed in any::<u64>(),
    ) {
        simulate(Setting { verifiers, keys, budget, granularity, use_every, latest_watch, seconds: 70, seed });
    }
}
