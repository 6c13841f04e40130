//! A list in pieces of one size.
//!
//! A list in one piece asks for another size of memory each time it grows, and what it leaves behind fits none of its
//! like: of a million records, a quarter of the memory would lie idle. Here only the last piece changes its size.

use std::mem;
use std::ops::Range;

use smallvec::SmallVec;

/// Items in one piece: with rows of 64 octets, a size that the allocator has.
const PIECE: usize = 24;

/// A list in pieces of one size. What most lookups need is in front.
#[derive(Clone)]
#[repr(C)]
pub(super) struct Pieces<T> {
    /// With room for what a million keys bring into one bucket.
    full: SmallVec<[Box<[T; PIECE]>; 3]>,
    /// Fewer than a piece.
    last: Vec<T>,
}

impl<T> Pieces<T> {
    pub(super) fn len(&self) -> usize {
        self.full.len() * PIECE + self.last.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&T> {
        match self.full.get(index / PIECE) {
            Some(piece) => piece.get(index % PIECE),
            None => self.last.get(index - self.full.len() * PIECE),
        }
    }

    /// Those of the items with these indices that there are, with their indices.
    pub(super) fn range(&self, indices: Range<usize>) -> impl Iterator<Item = (usize, &T)> {
        indices.map_while(|index| Some((index, self.get(index)?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.full.iter_mut().flat_map(|piece| piece.iter_mut()).chain(&mut self.last)
    }

    /// Puts an item in front of the one at `index`, or at the end.
    pub(super) fn insert(&mut self, index: usize, item: T) {
        let (mut item, mut offset) = (item, index % PIECE);
        for piece in self.full.iter_mut().skip(index / PIECE) {
            if let Some(moved) = piece.get_mut(offset..) {
                moved.rotate_right(1);
                if let [first, ..] = moved {
                    mem::swap(first, &mut item);
                }
            }
            offset = 0;
        }
        let index = index.saturating_sub(self.full.len() * PIECE).min(self.last.len());
        self.last.reserve_exact(1);
        self.last.insert(index, item);
        match mem::take(&mut self.last).try_into() {
            Ok(piece) => self.full.push(piece),
            Err(last) => self.last = last,
        }
    }

    /// Takes out the item at `index`, if there is one.
    pub(super) fn remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len() {
            return None;
        }
        if self.last.is_empty() {
            let piece: Box<[T]> = self.full.pop()?;
            self.last = piece.into();
        }
        let from_last = index.saturating_sub(self.full.len() * PIECE);
        let mut item = self.last.remove(from_last);
        self.last.shrink_to_fit();
        for (number, piece) in self.full.iter_mut().enumerate().skip(index / PIECE).rev() {
            let offset = if number == index / PIECE { index % PIECE } else { 0 };
            if let Some(moved) = piece.get_mut(offset..) {
                moved.rotate_left(1);
                if let [.., last] = moved {
                    mem::swap(last, &mut item);
                }
            }
        }
        Some(item)
    }
}

impl<T> Default for Pieces<T> {
    fn default() -> Self {
        Self { full: SmallVec::new(), last: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_list(changes in proptest::collection::vec((any::<bool>(), 0..200_usize), 0..400), grow in 0..200_usize) {
            let (mut list, mut pieces) = (Vec::new(), Pieces::default());
            let growth = (0..grow).map(|index| (true, index));
            for (number, (is_inserted, index)) in growth.chain(changes).enumerate() {
                let index = index.min(list.len());
                if is_inserted {
                    list.insert(index, number);
                    pieces.insert(index, number);
                } else {
                    let removed = (index < list.len()).then(|| list.remove(index));
                    prop_assert_eq!(pieces.remove(index), removed);
                }
                prop_assert_eq!(pieces.len(), list.len());
                prop_assert!(pieces.last.len() < PIECE);
            }
            let indexed: Vec<(usize, &usize)> = list.iter().enumerate().collect();
            prop_assert_eq!(pieces.range(0..usize::MAX).collect::<Vec<_>>(), indexed);
            for start in 0..=list.len() {
                let end = (start + 30).min(list.len());
                prop_assert!(pieces.range(start..start + 30).map(|(_, item)| item).eq(&list[start..end]));
                prop_assert_eq!(pieces.get(start), list.get(start));
            }
            prop_assert!(pieces.clone().iter_mut().eq(list.iter_mut()));
        }
    }
}
