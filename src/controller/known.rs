//! What a controller knows from one pass to the next. Its metrics show it, also while it stands by.

use std::sync::Arc;

use super::memory::Memory;
use super::verifiers::Verifiers;

/// See the module.
pub(super) struct Known {
    /// Of the ApiKeys.
    pub(super) memory: Arc<Memory>,
    /// Of the verifiers.
    pub(super) verifiers: Arc<Verifiers>,
}
