//! Who gets a place among the passes that are under way. A pass that waits for somebody's slow admission webhook keeps its
//! place meanwhile, and somebody may delete a thousand ApiKeys at once, so one namespace never gets all of them: revocations
//! elsewhere do not queue behind it. Who gets none waits in line, and is woken when a place of its namespace is free.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::channel::mpsc::UnboundedSender;
use kube::runtime::reflector::ObjectRef;

use super::heads::Watched;

/// A pass is slow from then on.
const SLOW: Duration = Duration::from_secs(2);

/// Slow passes of one namespace, beyond which no other of it begins.
const SLOW_PASSES: usize = 4;

/// The passes that are under way and those that wait, by namespace.
pub(super) struct Fairness {
    namespaces: Mutex<HashMap<String, Passes>>,
    /// How many a namespace may have.
    most: usize,
    /// How many it may have with those that change keys which are out.
    most_with_changes: usize,
    /// How many it may have with those that end keys, too.
    most_with_deletions: usize,
    /// Where those are woken that waited.
    waking: UnboundedSender<ObjectRef<Watched>>,
}

/// One namespace's passes.
#[derive(Default)]
struct Passes {
    /// When each of them began.
    running: Vec<Instant>,
    /// They go first.
    deletions: Line,
    changes: Line,
    issues: Line,
}

/// What a pass is about. Each has some places more than the next: a first key may wait long for its Secret, or for a verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// The ApiKey is going. It ends keys, and waits for no Secret.
    Deletion,
    /// The ApiKey has keys that are let in. It may narrow them.
    Change,
    /// It has none.
    Issue,
}

/// Names of ApiKeys, first come, first served; each once, so that edits do not make it longer.
#[derive(Default)]
struct Line {
    order: VecDeque<Arc<str>>,
    names: HashSet<Arc<str>>,
}

/// A place among the passes; given back when it is dropped.
pub(super) struct Place {
    fairness: Arc<Fairness>,
    namespace: String,
    began: Instant,
}

impl Fairness {
    /// `concurrency` is how many passes there are at a time.
    pub(super) fn new(concurrency: u16, waking: UnboundedSender<ObjectRef<Watched>>) -> Self {
        let most = usize::from(concurrency / 2).max(1);
        let (most_with_changes, most_with_deletions) = (most + most / 4, most + (most / 2).max(1));
        Self { namespaces: Mutex::default(), most, most_with_changes, most_with_deletions, waking }
    }

    /// A place for a pass over this ApiKey that begins at `now`, unless its namespace has too many: then it waits in line.
    pub(super) fn enter(
        self: &Arc<Self>,
        (namespace, name): (&str, &str),
        errand: Errand,
        now: Instant,
    ) -> Option<Place> {
        let mut namespaces = self.lock();
        let passes = namespaces.entry(namespace.to_owned()).or_default();
        let (may_begin, line) = match errand {
            Errand::Deletion => (passes.running.len() < self.most_with_deletions, &mut passes.deletions),
            Errand::Change => (passes.running.len() < self.most_with_changes, &mut passes.changes),
            Errand::Issue => (may_begin(&passes.running, self.most, now), &mut passes.issues),
        };
        if !may_begin {
            line.join(name);
            return None;
        }
        passes.running.push(now);
        Some(Place { fairness: Arc::clone(self), namespace: namespace.to_owned(), began: now })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Passes>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// PURE. `running` is when the namespace's passes began that are under way.
fn may_begin(running: &[Instant], most: usize, now: Instant) -> bool {
    let slow = running.iter().filter(|began| now.saturating_duration_since(**began) >= SLOW).count();
    running.len() < most && slow < SLOW_PASSES
}

impl Line {
    fn join(&mut self, name: &str) {
        let name = Arc::from(name);
        if self.names.insert(Arc::clone(&name)) {
            self.order.push_back(name);
        }
    }

    fn next(&mut self) -> Option<Arc<str>> {
        let name = self.order.pop_front()?;
        self.names.remove(&name);
        Some(name)
    }
}

impl Drop for Place {
    /// Wakes as many as there are places free, not one: whoever was woken may be gone, and would be waited for in vain.
    fn drop(&mut self) {
        let mut namespaces = self.fairness.lock();
        let Some(passes) = namespaces.get_mut(&self.namespace) else { return };
        if let Some(at) = passes.running.iter().position(|began| *began == self.began) {
            passes.running.swap_remove(at);
        }
        for running in passes.running.len()..self.fairness.most_with_deletions {
            let (may_change, may_issue) = (running < self.fairness.most_with_changes, running < self.fairness.most);
            let next = passes.deletions.next();
            let next = next.or_else(|| may_change.then(|| passes.changes.next())?);
            let next = next.or_else(|| may_issue.then(|| passes.issues.next())?);
            let Some(name) = next else { break };
            // The receiver is gone only while the controller stops.
            let _ = self.fairness.waking.unbounded_send(ObjectRef::new(&name).within(&self.namespace));
        }
        let lines = [&passes.deletions, &passes.changes, &passes.issues];
        if passes.running.is_empty() && lines.iter().all(|line| line.order.is_empty()) {
            namespaces.remove(&self.namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc::{UnboundedReceiver, unbounded};

    use super::*;

    fn fairness(concurrency: u16) -> (Arc<Fairness>, UnboundedReceiver<ObjectRef<Watched>>) {
        let (waking, woken) = unbounded();
        (Arc::new(Fairness::new(concurrency, waking)), woken)
    }

    fn names(woken: &mut UnboundedReceiver<ObjectRef<Watched>>) -> Vec<String> {
        std::iter::from_fn(|| woken.try_recv().ok()).map(|woken| woken.to_string()).collect()
    }

    #[test]
    fn a_namespace_has_half_of_the_places_and_few_where_it_is_slow() {
        let ((fairness, _woken), now) = (fairness(32), Instant::now());
        let enter = |namespace: &str, at| fairness.enter((namespace, "key"), Errand::Issue, at);
        let mut places: Vec<_> = (0..16).map(|_| enter("a", now).unwrap()).collect();
        assert!(enter("a", now).is_none() && enter("b", now).is_some());
        assert!(fairness.enter(("a", "key"), Errand::Deletion, now).is_some(), "a deletion does not wait for them");
        places.truncate(3);
        assert!(enter("a", now + SLOW).is_some(), "three are slow");
        places.push(enter("a", now).unwrap());
        assert!(enter("a", now + SLOW / 2).is_some() && enter("a", now + SLOW).is_none());
        drop(places);
        assert!(enter("a", now + SLOW).is_some());
        assert!(fairness.lock().is_empty(), "nothing is left behind");
    }

    #[test]
    fn there_is_a_place_at_the_lowest_concurrency() {
        let ((fairness, _woken), now) = (fairness(1), Instant::now());
        let place = fairness.enter(("a", "key"), Errand::Issue, now).unwrap();
        assert!(fairness.enter(("a", "key"), Errand::Issue, now).is_none());
        drop(place);
        assert!(fairness.enter(("a", "key"), Errand::Issue, now).is_some());
    }

    #[test]
    fn who_waits_is_woken_in_turn_and_once_however_often_it_came() {
        let ((fairness, mut woken), now) = (fairness(4), Instant::now());
        let enter = |namespace: &str, name: &str| fairness.enter((namespace, name), Errand::Issue, now);
        let (first, second) = (enter("a", "first").unwrap(), enter("a", "second").unwrap());
        for name in ["x", "y", "x", "z"] {
            assert!(enter("a", name).is_none());
        }
        drop(enter("b", "other"));
        assert!(names(&mut woken).is_empty(), "another namespace's place is none of theirs");
        drop(first);
        assert_eq!(names(&mut woken).len(), 1);
        let x = enter("a", "x").unwrap();
        drop(second);
        drop(x);
        let woken = names(&mut woken);
        assert_eq!(woken.len(), 2, "{woken:?}");
        assert!(woken.iter().zip(["y", "z"]).all(|(woken, name)| woken.contains(name)), "{woken:?}");
        assert!(fairness.lock().is_empty(), "nothing is left behind");
    }

    #[test]
    fn deletions_go_first_and_leave_a_quarter_of_the_places_to_others() {
        let ((fairness, mut woken), now) = (fairness(32), Instant::now());
        let enter = |name: &str, errand| fairness.enter(("a", name), errand, now);
        let mut places: Vec<_> =
            (0..24).map(|number| enter(&format!("going-{number}"), Errand::Deletion).unwrap()).collect();
        assert!(enter("new", Errand::Issue).is_none() && enter("going", Errand::Deletion).is_none());
        assert!(fairness.enter(("b", "key"), Errand::Deletion, now).is_some());
        places.truncate(23);
        assert!(matches!(&names(&mut woken)[..], [only] if only.contains("going")), "the other one came first");
        places.truncate(16);
        assert!(names(&mut woken).is_empty(), "there is no place yet for what issues keys");
        places.truncate(15);
        assert!(matches!(&names(&mut woken)[..], [only] if only.contains("new")));
    }

    #[test]
    fn first_keys_that_wait_keep_no_change_waiting_and_changes_keep_no_deletion() {
        let ((fairness, mut woken), now) = (fairness(32), Instant::now());
        let enter = |name: &str, errand, at| fairness.enter(("a", name), errand, at);
        let mut places: Vec<_> = (0..16).map(|_| enter("new", Errand::Issue, now).unwrap()).collect();
        let later = now + 5 * SLOW;
        places.extend((0..4).map(|_| enter("narrowed", Errand::Change, later).unwrap()));
        assert!(enter("narrowed", Errand::Change, later).is_none() && enter("new", Errand::Issue, later).is_none());
        places.extend((0..4).map(|_| enter("going", Errand::Deletion, later).unwrap()));
        places.truncate(20);
        assert!(names(&mut woken).is_empty());
        places.truncate(19);
        assert!(matches!(&names(&mut woken)[..], [only] if only.contains("narrowed")));
    }

    #[test]
    fn a_woken_one_that_is_gone_keeps_nobody_waiting() {
        let ((fairness, mut woken), now) = (fairness(2), Instant::now());
        let place = fairness.enter(("a", "first"), Errand::Issue, now).unwrap();
        assert!(fairness.enter(("a", "gone"), Errand::Issue, now).is_none());
        drop(place);
        assert_eq!(names(&mut woken).len(), 1);
        let place = fairness.enter(("a", "other"), Errand::Issue, now).unwrap();
        assert!(fairness.enter(("a", "waits"), Errand::Issue, now).is_none());
        drop(place);
        assert_eq!(names(&mut woken).len(), 1);
    }
}
