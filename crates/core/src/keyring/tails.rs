//! Tails of a few octets each, without an allocation for each.
//!
//! They lie side by side on pages: the location of a tail stays the same until one on its page is taken out.

use std::mem;

use smallvec::SmallVec;

/// Octets on a page; for a power of two, the allocator has that size.
const PAGE: usize = 1 << PAGE_BITS;
const PAGE_BITS: u32 = 10;

/// Tails of up to 1,024 octets, each at a [`Location`].
#[derive(Clone, Default)]
pub(super) struct Tails {
    /// With room for what a million keys bring into one bucket.
    pages: SmallVec<[Box<[u8]>; 2]>,
}

/// Where a tail starts: on which page, and how far from its start. In little-endian order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location([u8; 3]);

impl Location {
    /// Where there is no tail.
    pub(super) const NOWHERE: Self = Self([u8::MAX; 3]);

    fn new(page: usize, offset: usize) -> Option<Self> {
        let [low, middle, high, 0, ..] = (page << PAGE_BITS | offset).to_le_bytes() else { return None };
        Some(Self([low, middle, high])).filter(|location| *location != Self::NOWHERE)
    }

    fn page(self) -> usize {
        self.number() >> PAGE_BITS
    }

    fn offset(self) -> usize {
        self.number() % PAGE
    }

    fn number(self) -> usize {
        let [low, middle, high] = self.0;
        u32::from_le_bytes([low, middle, high, 0]) as usize
    }

    /// The location of the same tail, once `length` octets at `removed` are taken out.
    pub(super) fn after_removal(self, removed: Self, length: usize) -> Self {
        let is_behind = self.page() == removed.page() && self.offset() > removed.offset();
        if is_behind && self != Self::NOWHERE {
            Self::new(self.page(), self.offset().saturating_sub(length)).unwrap_or(self)
        } else {
            self
        }
    }
}

impl Tails {
    /// Adds a tail. `None` if there is no room: there is for 16,384 pages.
    pub(super) fn add(&mut self, tail: &[u8]) -> Option<Location> {
        let number = self.pages.iter().position(|page| page.len() + tail.len() <= PAGE).unwrap_or(self.pages.len());
        let offset = self.pages.get(number).map_or(0, |page| page.len());
        let location = Location::new(number, offset).filter(|_| tail.len() <= PAGE)?;
        match self.pages.get_mut(number) {
            Some(page) => *page = [&page[..], tail].concat().into(),
            None => self.pages.push(tail.into()),
        }
        Some(location)
    }

    /// Number of pages.
    pub(super) fn count(&self) -> usize {
        self.pages.len()
    }

    /// The tail at `location`, and those behind it on its page.
    pub(super) fn starting_at(&self, location: Location) -> Option<&[u8]> {
        self.pages.get(location.page())?.get(location.offset()..)
    }

    /// Takes out the `length` octets at `location`: the others then stand at [`Location::after_removal`].
    pub(super) fn remove(&mut self, location: Location, length: usize) {
        let Some(page) = self.pages.get_mut(location.page()) else { return };
        let mut octets = mem::take(page).into_vec();
        let start = location.offset().min(octets.len());
        octets.drain(start..(start + length).min(octets.len()));
        *page = octets.into();
        while self.pages.last().is_some_and(|page| page.is_empty()) {
            self.pages.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_tail_is_found_until_it_is_taken_out(
            changes in proptest::collection::vec((any::<bool>(), any::<proptest::sample::Index>(), 1..270_usize), 0..200),
        ) {
            let (mut tails, mut added) = (Tails::default(), Vec::<(Location, Vec<u8>)>::new());
            for (number, (is_added, index, length)) in (0..).zip(changes) {
                if is_added || added.is_empty() {
                    let tail = vec![number; length];
                    added.push((tails.add(&tail).unwrap(), tail));
                } else {
                    let (removed, tail) = added.swap_remove(index.index(added.len()));
                    tails.remove(removed, tail.len());
                    for (location, _) in &mut added {
                        *location = location.after_removal(removed, tail.len());
                    }
                }
                for (location, tail) in &added {
                    prop_assert!(tails.starting_at(*location).unwrap().starts_with(tail));
                }
            }
            let (length, pages) = (added.iter().map(|(_, tail)| tail.len()).sum::<usize>(), tails.pages.iter());
            prop_assert_eq!(pages.map(|page| page.len()).sum::<usize>(), length);
        }
    }

    #[test]
    fn there_is_an_end_to_the_room() {
        let mut tails = Tails { pages: vec![vec![0; PAGE].into(); (1 << (24 - PAGE_BITS)) - 1].into() };
        assert_eq!(tails.add(&[1; PAGE + 1]), None);
        let last = tails.add(&[1; PAGE - 1]).unwrap();
        assert_eq!(tails.starting_at(last), Some(&[1; PAGE - 1][..]));
        assert_eq!((tails.add(&[1]), tails.add(&[1])), (None, None), "the last place is nowhere");
        assert_eq!(tails.starting_at(Location::NOWHERE), Some(&[][..]));
        tails.remove(last, 1);
        assert_eq!(Location::NOWHERE.after_removal(last, 1), Location::NOWHERE);
    }
}
