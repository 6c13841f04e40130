//! Whether the controller does its work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the controller does its work, for `/readyz`.
#[derive(Clone, Default)]
pub(super) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub(super) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let ready = self.0.load(Ordering::Relaxed);
        if ready { Ok(()) } else { Err("not synced: still listing ApiKeys and records. The log says why".to_owned()) }
    }
}
