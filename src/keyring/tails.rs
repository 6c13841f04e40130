//! Texts of a few octets each, without an allocation for each.
//!
//! They lie side by side on pages: the address of a text stays the same until one on its page is taken out.

use std::mem;

/// Octets on a page; for a power of two, the allocator has that size.
const PAGE: usize = 1 << PAGE_BITS;
const PAGE_BITS: u32 = 9;

/// Texts of up to 512 octets, each behind an [`Address`].
#[derive(Clone, Default)]
pub(super) struct Tails {
    pages: Box<[Box<[u8]>]>,
}

/// Where a text starts: on which page, and how far from its start. In little-endian order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address([u8; 3]);

impl Address {
    /// Where there is no text.
    pub(super) const NOWHERE: Self = Self([u8::MAX; 3]);

    fn new(page: usize, offset: usize) -> Option<Self> {
        let [low, middle, high, 0, ..] = (page << PAGE_BITS | offset).to_le_bytes() else { return None };
        Some(Self([low, middle, high])).filter(|address| *address != Self::NOWHERE)
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

    /// The address of the same text, once `length` octets at `removed` are taken out.
    pub(super) fn after_removal(self, removed: Self, length: usize) -> Self {
        let moves = self.page() == removed.page() && self.offset() > removed.offset();
        if moves { Self::new(self.page(), self.offset().saturating_sub(length)).unwrap_or(self) } else { self }
    }
}

impl Tails {
    /// Adds a text. `None` if there is no room: there is for 32,768 pages.
    pub(super) fn add(&mut self, text: &[u8]) -> Option<Address> {
        let number = self.pages.iter().position(|page| page.len() + text.len() <= PAGE).unwrap_or(self.pages.len());
        let offset = self.pages.get(number).map_or(0, |page| page.len());
        let address = Address::new(number, offset).filter(|_| text.len() <= PAGE)?;
        match self.pages.get_mut(number) {
            Some(page) => *page = [&page[..], text].concat().into(),
            None => {
                let mut pages = mem::take(&mut self.pages).into_vec();
                pages.reserve_exact(1);
                pages.push(text.into());
                self.pages = pages.into();
            }
        }
        Some(address)
    }

    /// The text at `address`, and those behind it on its page.
    pub(super) fn from(&self, address: Address) -> Option<&[u8]> {
        self.pages.get(address.page())?.get(address.offset()..)
    }

    /// Takes out the `length` octets at `address`: the others then stand at [`Address::after_removal`].
    pub(super) fn remove(&mut self, address: Address, length: usize) {
        let Some(page) = self.pages.get_mut(address.page()) else { return };
        let mut octets = mem::take(page).into_vec();
        let start = address.offset().min(octets.len());
        octets.drain(start..(start + length).min(octets.len()));
        *page = octets.into();
        if self.pages.last().is_some_and(|page| page.is_empty()) {
            let mut pages = mem::take(&mut self.pages).into_vec();
            while pages.pop_if(|page| page.is_empty()).is_some() {}
            self.pages = pages.into();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_is_found_until_it_is_taken_out(
            changes in proptest::collection::vec((any::<bool>(), any::<proptest::sample::Index>(), 1..270_usize), 0..200),
        ) {
            let (mut tails, mut texts) = (Tails::default(), Vec::<(Address, Vec<u8>)>::new());
            for (number, (is_added, index, length)) in (0..).zip(changes) {
                if is_added || texts.is_empty() {
                    let text = vec![number; length];
                    texts.push((tails.add(&text).unwrap(), text));
                } else {
                    let (removed, text) = texts.swap_remove(index.index(texts.len()));
                    tails.remove(removed, text.len());
                    for (address, _) in &mut texts {
                        *address = address.after_removal(removed, text.len());
                    }
                }
                for (address, text) in &texts {
                    prop_assert!(tails.from(*address).unwrap().starts_with(text));
                }
            }
            let (length, pages) = (texts.iter().map(|(_, text)| text.len()).sum::<usize>(), tails.pages.iter());
            prop_assert_eq!(pages.map(|page| page.len()).sum::<usize>(), length);
        }
    }

    #[test]
    fn there_is_an_end_to_the_room() {
        let mut tails = Tails { pages: vec![vec![0; PAGE].into(); (1 << (24 - PAGE_BITS)) - 1].into() };
        assert_eq!(tails.add(&[1; PAGE + 1]), None);
        let last = tails.add(&[1; PAGE - 1]).unwrap();
        assert_eq!(tails.from(last), Some(&[1; PAGE - 1][..]));
        assert_eq!((tails.add(&[1]), tails.add(&[1])), (None, None), "the last place is nowhere");
        assert_eq!(tails.from(Address::NOWHERE), Some(&[][..]));
    }
}
