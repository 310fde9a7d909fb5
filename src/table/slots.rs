// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbered slots whose values never move. A vector that grows would copy all values, and hold both copies meanwhile.

/// A page of entries takes less than 100 kB.
const PAGE: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct Slots<T> {
    /// All but the last are full.
    pages: Vec<Vec<Option<T>>>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { pages: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// How many there are, empty ones included.
    pub(super) fn len(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * PAGE + last.len())
    }

    /// An empty one, after all others. There are never 2^32: they would not fit into memory.
    pub(super) fn add(&mut self) -> u32 {
        let number = self.len();
        match self.pages.last_mut() {
            Some(last) if last.len() < PAGE => last.push(None),
            _ => {
                let mut page = Vec::with_capacity(PAGE);
                page.push(None);
                self.pages.push(page);
            }
        }
        number as u32
    }

    pub(super) fn put(&mut self, slot: u32, value: T) {
        if let Some(place) = self.place(slot) {
            *place = Some(value);
        }
    }

    pub(super) fn take(&mut self, slot: u32) -> Option<T> {
        self.place(slot)?.take()
    }

    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        self.pages.get(slot as usize / PAGE)?.get(slot as usize % PAGE)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.place(slot)?.as_mut()
    }

    /// What they hold. Each page is given back as soon as it is empty.
    pub(super) fn into_values(self) -> impl Iterator<Item = T> {
        self.pages.into_iter().flatten().flatten()
    }

    /// Those that are not empty.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let all = self.pages.iter().flatten();
        (0..).zip(all).filter_map(|(slot, value)| Some((slot, value.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        let all = self.pages.iter_mut().flatten();
        (0..).zip(all).filter_map(|(slot, value)| Some((slot, value.as_mut()?)))
    }

    fn place(&mut self, slot: u32) -> Option<&mut Option<T>> {
        self.pages.get_mut(slot as usize / PAGE)?.get_mut(slot as usize % PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_over_pages_and_empty_places_are_passed_over() {
        let mut slots = Slots::default();
        for n in 0..3 * PAGE as u32 {
            assert_eq!((slots.len(), slots.add()), (n as usize, n));
            slots.put(n, n);
        }
        let middle = PAGE as u32 + 1;
        assert_eq!((slots.take(middle), slots.take(middle), slots.get(middle)), (Some(middle), None, None));
        assert_eq!((slots.get(0), slots.get(3 * PAGE as u32), slots.len()), (Some(&0), None, 3 * PAGE));
        let expected = (0..3 * PAGE as u32).filter(|&n| n != middle);
        assert!(slots.iter().map(|(slot, &value)| (slot, value)).eq(expected.map(|n| (n, n))));
    }
}
