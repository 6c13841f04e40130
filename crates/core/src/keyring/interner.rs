//! Values that many keys have in common, each stored once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Values in use. Only whoever changes a keyring asks here, so that a lookup waits for nobody.
pub(super) struct Interner<T>(Mutex<Pool<T>>);

struct Pool<T> {
    values: HashSet<Arc<T>>,
    /// With this many values, those that nobody uses any more are dropped.
    limit: usize,
}

const LEAST_LIMIT: usize = 1024;

impl<T: Eq + Hash> Interner<T> {
    /// The one copy of `value`.
    pub(super) fn share(&self, value: T) -> Arc<T> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pool.values.get(&value) {
            return Arc::clone(known);
        }
        if pool.values.len() >= pool.limit {
            pool.sweep();
        }
        let shared = Arc::new(value);
        pool.values.insert(Arc::clone(&shared));
        shared
    }
}

impl<T: Eq + Hash> Pool<T> {
    /// Sweeping at twice what was left by the last sweep costs each new value a constant share of it.
    fn sweep(&mut self) {
        self.values.retain(|value| Arc::strong_count(value) > 1);
        self.limit = (self.values.len() * 2).max(LEAST_LIMIT);
    }
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self(Mutex::new(Pool { values: HashSet::new(), limit: LEAST_LIMIT }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_go() {
        let interner = Interner::default();
        let kept: Vec<Arc<u32>> = (0..3000).map(|value| interner.share(value)).collect();
        assert!(kept.iter().all(|value| Arc::ptr_eq(value, &interner.share(**value))));
        for value in 3000..100_000 {
            drop(interner.share(value));
        }
        let pool = interner.0.lock().unwrap();
        assert!(kept.iter().all(|value| pool.values.contains(value)));
        assert!(pool.values.len() < 10_000, "{}", pool.values.len());
    }
}
