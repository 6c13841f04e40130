//! Three times for each slot of the keyring: when the key was last used, the last use that the API server has, and when the
//! key was last denied.
//!
//! The table grows by chunks, each twice as long as the one before. Chunks never move, so decisions never wait while the
//! table grows.

use std::iter::zip;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;

/// When keys were last used. Every thread that decides writes it, without waiting or allocating.
pub struct LastUses {
    chunks: [OnceLock<Box<[Times]>>; CHUNKS],
}

#[derive(Default)]
struct Times {
    used: AtomicU32,
    written: AtomicU32,
    denied: AtomicU32,
}

/// When one key was last used, in seconds since 1970, which suffice until 2106. 0: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The last use at this verifier.
    pub used: u32,
    /// The last use that the API server has, as far as the watch has shown.
    pub written: u32,
}

/// Binary logarithm of the first chunk's length.
const FIRST_CHUNK_BITS: u32 = 10;
/// Enough for every 32-bit slot.
const CHUNKS: usize = 33 - FIRST_CHUNK_BITS as usize;

/// `time` as in a [`Usage`]: whole seconds since 1970.
pub fn second(time: Timestamp) -> u32 {
    u32::try_from(time.as_second().max(0)).unwrap_or(u32::MAX)
}

impl Usage {
    /// Whether the API server does not have the last use.
    pub fn is_unwritten(self) -> bool {
        self.used > self.written
    }

    /// The last use, here or in the API.
    pub fn last(self) -> u32 {
        self.used.max(self.written)
    }
}

impl LastUses {
    /// Makes room for all slots below `slots`. Call it before a keyring with such a slot is published.
    pub fn reach(&self, slots: u32) {
        let Some(last) = slots.checked_sub(1) else { return };
        for (chunk, bits) in zip(&self.chunks, FIRST_CHUNK_BITS..).take(place(last).0 + 1) {
            chunk.get_or_init(|| (0..1_u64 << bits).map(|_| Times::default()).collect());
        }
    }

    /// Notes a use. Does nothing for a slot without room.
    pub fn note(&self, slot: u32, second: u32) {
        // A load is almost free, and each key needs a write only once a second.
        if let Some(times) = self.times(slot)
            && times.used.load(Ordering::Relaxed) < second
        {
            times.used.fetch_max(second, Ordering::Release);
        }
    }

    /// Notes a denial. True if it is the first one of this key in this second, false for a slot without room.
    pub fn note_denial(&self, slot: u32, second: u32) -> bool {
        let is_new = |times: &Times| {
            let denied = &times.denied;
            denied.load(Ordering::Relaxed) != second && denied.swap(second, Ordering::Relaxed) != second
        };
        self.times(slot).is_some_and(is_new)
    }

    /// Notes the last use that the API server has.
    pub fn note_written(&self, slot: u32, second: u32) {
        if let Some(times) = self.times(slot) {
            times.written.fetch_max(second, Ordering::AcqRel);
        }
    }

    /// The last use of a slot.
    pub fn usage(&self, slot: u32) -> Usage {
        self.times(slot).map(Times::read).unwrap_or_default()
    }

    /// The last uses of all slots with room, in order.
    pub fn all(&self) -> impl Iterator<Item = (u32, Usage)> {
        let last_uses = self.chunks.iter().map_while(OnceLock::get).flatten();
        zip(0.., last_uses).map(|(slot, times)| (slot, times.read()))
    }

    fn times(&self, slot: u32) -> Option<&Times> {
        let (chunk, offset) = place(slot);
        self.chunks.get(chunk)?.get()?.get(offset)
    }
}

impl Times {
    fn read(&self) -> Usage {
        // Acquire: a thread that sees a write here also sees what came before it, and with a use, its keyring.
        Usage { written: self.written.load(Ordering::Acquire), used: self.used.load(Ordering::Acquire) }
    }
}

impl Default for LastUses {
    fn default() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS] }
    }
}

/// The chunk that a slot is in, and where in it.
fn place(slot: u32) -> (usize, usize) {
    let number = u64::from(slot) + (1 << FIRST_CHUNK_BITS);
    let bits = number.ilog2();
    ((bits - FIRST_CHUNK_BITS) as usize, (number - (1 << bits)) as usize)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn every_slot_has_a_place_of_its_own() {
        let mut expected = (0, 0);
        for slot in 0..300_000 {
            assert_eq!(place(slot), expected, "{slot}");
            expected.1 += 1;
            if expected.1 == 1 << (expected.0 + FIRST_CHUNK_BITS as usize) {
                expected = (expected.0 + 1, 0);
            }
        }
        assert!(place(u32::MAX).0 < CHUNKS);
    }

    #[test]
    fn room_is_made_and_what_is_noted_stays() {
        let last_uses = LastUses::default();
        last_uses.note(0, 7);
        assert_eq!(last_uses.usage(0), Usage::default(), "no room yet");
        last_uses.reach(0);
        assert_eq!(last_uses.all().count(), 0);
        last_uses.reach(1);
        last_uses.note(0, 7);
        last_uses.reach(5000);
        last_uses.reach(3);
        last_uses.note(4999, 9);
        last_uses.note_written(4999, 8);
        assert_eq!(last_uses.usage(0), Usage { used: 7, written: 0 });
        let all: Vec<_> = last_uses.all().filter(|(_, usage)| usage.last() > 0).collect();
        assert_eq!(all, [(0, Usage { used: 7, written: 0 }), (4999, Usage { used: 9, written: 8 })]);
        assert!((5000..10_000).contains(&last_uses.all().count()));
    }

    #[test]
    fn nothing_goes_backwards_whoever_comes_last() {
        let last_uses = LastUses::default();
        last_uses.reach(1);
        thread::scope(|scope| {
            for thread in 0..4 {
                let last_uses = &last_uses;
                scope.spawn(move || {
                    for step in 0..10_000 {
                        last_uses.note(0, step * 4 + thread);
                        assert!(last_uses.usage(0).used >= step * 4 + thread);
                    }
                });
            }
        });
        assert_eq!(last_uses.usage(0).used, 39_999);
        last_uses.note_written(0, 50_000);
        last_uses.note_written(0, 40_000);
        assert_eq!(last_uses.usage(0), Usage { used: 39_999, written: 50_000 });
        assert!(!last_uses.usage(0).is_unwritten());
    }

    #[test]
    fn a_second_is_never_before_1970_nor_beyond_its_range() {
        let read = |text: &str| second(text.parse().unwrap());
        assert_eq!(read("1970-01-01T00:00:01.999Z"), 1);
        assert_eq!(read("1960-01-01T00:00:00Z"), 0);
        assert_eq!(read("2200-01-01T00:00:00Z"), u32::MAX);
    }
}
