//! Who gets a place among the passes that are under way. A pass that waits for somebody's slow admission webhook keeps its
//! place meanwhile, so one namespace never gets all of them: revocations elsewhere do not queue behind it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A pass is slow from then on.
const SLOW: Duration = Duration::from_secs(2);

/// Slow passes of one namespace, beyond which no other of it begins.
const SLOW_PASSES: usize = 4;

/// The passes that are under way, by namespace.
pub(super) struct Fairness {
    running: Mutex<HashMap<String, Vec<Instant>>>,
    /// How many a namespace may have.
    most: usize,
}

/// A place among the passes; given back when it is dropped.
pub(super) struct Place {
    fairness: Arc<Fairness>,
    namespace: String,
    began: Instant,
}

impl Fairness {
    /// `concurrency` is how many passes there are at a time.
    pub(super) fn new(concurrency: u16) -> Self {
        Self { running: Mutex::default(), most: usize::from(concurrency / 2).max(1) }
    }

    /// A place for a pass over an ApiKey of this namespace that begins at `now`, unless it has too many. One that is
    /// `urgent` always gets a place: it ends keys, and waits for no Secret.
    pub(super) fn enter(self: &Arc<Self>, namespace: &str, is_urgent: bool, now: Instant) -> Option<Place> {
        let mut running = self.lock();
        let own = running.entry(namespace.to_owned()).or_default();
        if !is_urgent && !may_begin(own, self.most, now) {
            return None;
        }
        own.push(now);
        Some(Place { fairness: Arc::clone(self), namespace: namespace.to_owned(), began: now })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Instant>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// PURE. `own` is when the namespace's passes began that are under way.
fn may_begin(own: &[Instant], most: usize, now: Instant) -> bool {
    let slow = own.iter().filter(|began| now.saturating_duration_since(**began) >= SLOW).count();
    own.len() < most && slow < SLOW_PASSES
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.fairness.lock();
        let Some(own) = running.get_mut(&self.namespace) else { return };
        if let Some(at) = own.iter().position(|began| *began == self.began) {
            own.swap_remove(at);
        }
        if own.is_empty() {
            running.remove(&self.namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_half_of_the_places_and_few_where_it_is_slow() {
        let (fairness, now) = (Arc::new(Fairness::new(32)), Instant::now());
        let enter = |namespace: &str, at| fairness.enter(namespace, false, at);
        let mut places: Vec<_> = (0..16).map(|_| enter("a", now).unwrap()).collect();
        assert!(enter("a", now).is_none() && enter("b", now).is_some());
        assert!(fairness.enter("a", true, now).is_some(), "a deletion does not wait");
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
        let (fairness, now) = (Arc::new(Fairness::new(1)), Instant::now());
        let place = fairness.enter("a", false, now).unwrap();
        assert!(fairness.enter("a", false, now).is_none());
        drop(place);
        assert!(fairness.enter("a", false, now).is_some());
    }
}
