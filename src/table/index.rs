// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hash index from a key to a slot. The key itself stays in the slot's entry: with a second copy the keys of 100,000
//! connections would not fit into a processor's cache.
//!
//! Traffic chooses the keys. Each index has a seed of its own, from addresses and times that only this process knows, so an
//! attacker cannot choose keys whose hashes collide.

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::hash::{BuildHasher, Hash};

/// At most one slot for each key. In all functions `key_of` tells the key of a slot, or `is_it` whether it has this one; that
/// must not change while the slot is in here.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    slots: HashTable<u32>,
    hashes: RandomState,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.slots.capacity()
    }

    pub(super) fn get<K: Hash>(&self, key: &K, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.slots.find(self.hashes.hash_one(key), |&slot| is_it(slot)).copied()
    }

    /// Returns the slot that had this key until now.
    pub(super) fn insert<K: Hash + Eq>(
        &mut self,
        key: &K,
        slot: u32,
        key_of: impl Fn(u32) -> Option<K>,
    ) -> Option<u32> {
        let Self { slots, hashes } = self;
        let is_it = |&slot: &u32| key_of(slot).as_ref() == Some(key);
        let hash_of = |&slot: &u32| hashes.hash_one(key_of(slot).as_ref().unwrap_or(key));
        match slots.entry(hashes.hash_one(key), is_it, hash_of) {
            Entry::Occupied(mut known) => Some(std::mem::replace(known.get_mut(), slot)),
            Entry::Vacant(place) => {
                place.insert(slot);
                None
            }
        }
    }

    pub(super) fn remove<K: Hash + Eq>(&mut self, key: &K, key_of: impl Fn(u32) -> Option<K>) {
        let is_it = |&slot: &u32| key_of(slot).as_ref() == Some(key);
        if let Ok(known) = self.slots.find_entry(self.hashes.hash_one(key), is_it) {
            known.remove();
        }
    }
}
