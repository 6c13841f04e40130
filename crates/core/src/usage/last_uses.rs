//! When each key was last used, and what the API server has of that; and when it was last denied: three numbers for each slot
//! of the keyring.
//!
//! The table grows by chunks, each twice as long as the one before, that stay where they are: whoever decides never
//! waits for whoever makes room.

use std::iter::zip;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;

/// When keys were last used: written by everyone who decides, without waiting or allocating.
pub struct Marks {
    chunks: [OnceLock<Box<[Mark]>>; CHUNKS],
}

#[derive(Default)]
struct Mark {
    used: AtomicU32,
    written: AtomicU32,
    denied: AtomicU32,
}

/// When one key was last used. Seconds since 1970, which last until 2106; 0 is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The last use that this verifier knows of by itself.
    pub used: u32,
    /// The last use that the API server is known to have.
    pub written: u32,
}

const FIRST_CHUNK_BITS: u32 = 10;
/// As many as any 32-bit slot needs.
const CHUNKS: usize = 33 - FIRST_CHUNK_BITS as usize;

/// The second that `time` is in, as it stands in a [`Usage`].
pub fn second(time: Timestamp) -> u32 {
    u32::try_from(time.as_second().max(0)).unwrap_or(u32::MAX)
}

impl Usage {
    /// Whether there is a use that the API server does not have.
    pub fn is_unwritten(self) -> bool {
        self.used > self.written
    }

    /// The last use of which anything is known.
    pub fn last(self) -> u32 {
        self.used.max(self.written)
    }
}

impl Marks {
    /// Makes room for all slots below `slots`. To be called before anyone learns of such a slot.
    pub fn reach(&self, slots: u32) {
        let Some(last) = slots.checked_sub(1) else { return };
        for (chunk, bits) in zip(&self.chunks, FIRST_CHUNK_BITS..).take(place(last).0 + 1) {
            chunk.get_or_init(|| (0..1_u64 << bits).map(|_| Mark::default()).collect());
        }
    }

    /// Takes note of a use. A slot for which there is no room is passed over.
    pub fn note(&self, slot: u32, second: u32) {
        // A load is almost free, and each key needs more than that only once a second.
        if let Some(mark) = self.mark(slot)
            && mark.used.load(Ordering::Relaxed) < second
        {
            mark.used.fetch_max(second, Ordering::Release);
        }
    }

    /// Takes note of a denial, and answers whether it is the first one in this second. One in a slot for which there is no
    /// room is not.
    pub fn note_denial(&self, slot: u32, second: u32) -> bool {
        let is_new = |mark: &Mark| {
            let denied = &mark.denied;
            denied.load(Ordering::Relaxed) != second && denied.swap(second, Ordering::Relaxed) != second
        };
        self.mark(slot).is_some_and(is_new)
    }

    /// Takes note of what the API server has.
    pub fn note_written(&self, slot: u32, second: u32) {
        if let Some(mark) = self.mark(slot) {
            mark.written.fetch_max(second, Ordering::AcqRel);
        }
    }

    /// What is known of a slot.
    pub fn usage(&self, slot: u32) -> Usage {
        self.mark(slot).map(Mark::read).unwrap_or_default()
    }

    /// What is known of all slots that there is room for, in their order.
    pub fn all(&self) -> impl Iterator<Item = (u32, Usage)> {
        let marks = self.chunks.iter().map_while(OnceLock::get).flatten();
        zip(0.., marks).map(|(slot, mark)| (slot, mark.read()))
    }

    fn mark(&self, slot: u32) -> Option<&Mark> {
        let (chunk, offset) = place(slot);
        self.chunks.get(chunk)?.get()?.get(offset)
    }
}

impl Mark {
    fn read(&self) -> Usage {
        // Whoever sees a write here is to see all that was told before it; and a use, the keyring that it was made under.
        Usage { written: self.written.load(Ordering::Acquire), used: self.used.load(Ordering::Acquire) }
    }
}

impl Default for Marks {
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
        let marks = Marks::default();
        marks.note(0, 7);
        assert_eq!(marks.usage(0), Usage::default(), "no room yet");
        marks.reach(0);
        assert_eq!(marks.all().count(), 0);
        marks.reach(1);
        marks.note(0, 7);
        marks.reach(5000);
        marks.reach(3);
        marks.note(4999, 9);
        marks.note_written(4999, 8);
        assert_eq!(marks.usage(0), Usage { used: 7, written: 0 });
        let all: Vec<_> = marks.all().filter(|(_, usage)| usage.last() > 0).collect();
        assert_eq!(all, [(0, Usage { used: 7, written: 0 }), (4999, Usage { used: 9, written: 8 })]);
        assert!((5000..10_000).contains(&marks.all().count()));
    }

    #[test]
    fn nothing_goes_backwards_whoever_comes_last() {
        let marks = Marks::default();
        marks.reach(1);
        thread::scope(|scope| {
            for thread in 0..4 {
                let marks = &marks;
                scope.spawn(move || {
                    for step in 0..10_000 {
                        marks.note(0, step * 4 + thread);
                        assert!(marks.usage(0).used >= step * 4 + thread);
                    }
                });
            }
        });
        assert_eq!(marks.usage(0).used, 39_999);
        marks.note_written(0, 50_000);
        marks.note_written(0, 40_000);
        assert_eq!(marks.usage(0), Usage { used: 39_999, written: 50_000 });
        assert!(!marks.usage(0).is_unwritten());
    }

    #[test]
    fn a_second_is_never_before_1970_nor_beyond_its_range() {
        let read = |text: &str| second(text.parse().unwrap());
        assert_eq!(read("1970-01-01T00:00:01.999Z"), 1);
        assert_eq!(read("1960-01-01T00:00:00Z"), 0);
        assert_eq!(read("2200-01-01T00:00:00Z"), u32::MAX);
    }
}
