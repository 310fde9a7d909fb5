// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the entries are kept, and the ways to find them: by flow (one look-up for each event), by socket and by key.

use super::entry::Entry;
use super::index::Index;
use super::order::{Order, Ticket};
use super::place::{Flow, Place};
use crate::model::ConnectionKey;
use std::hash::Hash;
use std::num::NonZeroU32;

/// Entries with their indices. Slots are numbered and used again; several entries of one socket or key form a chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    slots: Slots,
    free: Vec<u32>,
    flows: Index,
    sockets: Index,
    keys: Index,
    /// Rows of a walk that no event has confirmed yet: apart, because each new connection looks for its own here.
    unconfirmed: Index,
    order: Order,
    serial: u64,
}

type Slots = super::slots::Slots<Kept>;

#[derive(Clone, Debug)]
struct Kept {
    entry: Entry,
    serial: u64,
    links: [Link; 2],
}

/// The slot of an entry's neighbour, if it has one, in four bytes: there is no slot `u32::MAX`.
#[derive(Clone, Copy, Debug, Default)]
struct Neighbour(Option<NonZeroU32>);

impl Neighbour {
    fn new(slot: Option<u32>) -> Self {
        Self(slot.and_then(|slot| NonZeroU32::MIN.checked_add(slot)))
    }

    fn slot(self) -> Option<u32> {
        self.0.map(|number| number.get() - 1)
    }
}

/// Neighbours in a chain.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    prev: Neighbour,
    next: Neighbour,
}

impl Link {
    /// What had these neighbours was taken out of its chain: if it was the first, the index names the next.
    fn leave<K: Hash + Eq>(self, heads: &mut Index, key: &K, key_of: impl Fn(u32) -> Option<K>) {
        match (self.prev.slot(), self.next.slot()) {
            (Some(_), _) => {}
            (None, Some(next)) => drop(heads.insert(key, next, key_of)),
            (None, None) => heads.remove(key, key_of),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Chain {
    Key,
    Socket,
}

impl Store {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn find(&self, flow: &Flow) -> Option<u32> {
        self.flows.get(flow, |slot| self.get(slot).is_some_and(|entry| entry.is_of(flow)))
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        self.kept(slot).map(|kept| &kept.entry)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.slots.get_mut(slot).map(|kept| &mut kept.entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.slots.iter().map(|(slot, kept)| (slot, &kept.entry))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.slots_mut().map(|(_, entry)| entry)
    }

    pub(super) fn slots_mut(&mut self) -> impl Iterator<Item = (u32, &mut Entry)> {
        self.slots.iter_mut().map(|(slot, kept)| (slot, &mut kept.entry))
    }

    /// All connections of a socket, in no order.
    pub(super) fn of_socket(&self, socket: u64) -> impl Iterator<Item = (u32, &Entry)> {
        self.chain(
            Chain::Socket,
            self.sockets.get(&socket, |slot| socket_of(&self.slots, slot) == Some(socket)),
        )
    }

    /// All connections with this key that events have shown.
    pub(super) fn confirmed(&self, key: &ConnectionKey) -> impl Iterator<Item = (u32, &Entry)> {
        self.chain(Chain::Key, self.keys.get(key, |slot| self.has_key(slot, key)))
    }

    /// All rows of a walk with this key.
    pub(super) fn unconfirmed(&self, key: &ConnectionKey) -> impl Iterator<Item = (u32, &Entry)> {
        self.chain(Chain::Key, self.unconfirmed.get(key, |slot| self.has_key(slot, key)))
    }

    fn has_key(&self, slot: u32, key: &ConnectionKey) -> bool {
        self.get(slot).is_some_and(|entry| entry.record.key == *key)
    }

    /// The open row of a walk that is this connection. Where several could be, it takes the same owner.
    pub(super) fn row_of(&self, place: &Place<'_>) -> Option<u32> {
        if self.unconfirmed.len() == 0 {
            return None;
        }
        let rows = || {
            self.unconfirmed(place.key)
                .filter(|(_, row)| row.is_open() && place.may_be(&Place::of_record(&row.record)))
        };
        let same_owner = rows().find(|(_, row)| place.pid.is_some() && row.record.pid() == place.pid);
        let only_one = || rows().next().filter(|_| rows().nth(1).is_none());
        same_owner.or_else(only_one).map(|(slot, _)| slot)
    }

    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        self.serial += 1;
        let slot = self.free.pop().unwrap_or_else(|| self.slots.add());
        let (flow, socket) = (entry.flow(), entry.record.socket);
        self.order.push(Ticket::new(&entry, self.serial, slot));
        self.slots.put(slot, Kept { entry, serial: self.serial, links: [Link::default(); 2] });
        self.attach_key(slot);
        if let (Some(flow), Some(socket)) = (flow, socket) {
            let Self { flows, sockets, slots, .. } = self;
            flows.insert(&flow, slot, |slot| flow_of(slots, slot));
            let head = sockets.insert(&socket, slot, |slot| socket_of(slots, slot));
            self.put_before(Chain::Socket, slot, head);
        }
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Entry> {
        self.detach_key(slot);
        let entry = self.get(slot)?;
        if let (Some(flow), Some(socket)) = (entry.flow(), entry.record.socket) {
            let link = self.take_out(Chain::Socket, slot);
            let Self { flows, sockets, slots, .. } = self;
            flows.remove(&flow, |slot| flow_of(slots, slot));
            link.leave(sockets, &socket, |slot| socket_of(slots, slot));
        }
        let kept = self.slots.take(slot)?;
        self.free.push(slot);
        self.sweep();
        Some(kept.entry)
    }

    fn sweep(&mut self) {
        let Self { order, slots, free, .. } = self;
        order.sweep(slots.len() - free.len(), |ticket| current(slots, ticket));
    }

    /// Gives an entry another key.
    pub(super) fn rekey(&mut self, slot: u32, key: ConnectionKey) {
        self.detach_key(slot);
        if let Some(entry) = self.get_mut(slot) {
            entry.record.key = key;
        }
        self.attach_key(slot);
    }

    /// To be called when an entry has closed, or opened again. Its former ticket is worth nothing any more.
    pub(super) fn requeue(&mut self, slot: u32) {
        self.serial += 1;
        if let Some(kept) = self.slots.get_mut(slot) {
            kept.serial = self.serial;
            self.order.push(Ticket::new(&kept.entry, kept.serial, slot));
            self.sweep();
        }
    }

    /// Removes the entry that has to go first: closed longest ago, else least recently seen.
    pub(super) fn evict(&mut self) -> Option<Entry> {
        let Self { order, slots, .. } = self;
        let slot = order.pop(|ticket| current(slots, ticket))?;
        self.remove(slot)
    }

    fn kept(&self, slot: u32) -> Option<&Kept> {
        self.slots.get(slot)
    }

    fn attach_key(&mut self, slot: u32) {
        let Some(entry) = self.get(slot) else { return };
        let (key, is_confirmed) = (entry.record.key, entry.is_confirmed);
        let Self { keys, unconfirmed, slots, .. } = self;
        let heads = if is_confirmed { keys } else { unconfirmed };
        let head = heads.insert(&key, slot, |slot| key_of(slots, slot));
        self.put_before(Chain::Key, slot, head);
    }

    fn detach_key(&mut self, slot: u32) {
        let Some(entry) = self.get(slot) else { return };
        let (key, is_confirmed) = (entry.record.key, entry.is_confirmed);
        let link = self.take_out(Chain::Key, slot);
        let Self { keys, unconfirmed, slots, .. } = self;
        let heads = if is_confirmed { keys } else { unconfirmed };
        link.leave(heads, &key, |slot| key_of(slots, slot));
    }

    fn chain(&self, chain: Chain, head: Option<u32>) -> impl Iterator<Item = (u32, &Entry)> {
        let with_slot = |slot: Option<u32>| slot.and_then(|slot| Some((slot, self.kept(slot)?)));
        std::iter::successors(with_slot(head), move |(_, kept)| {
            with_slot(kept.links[chain as usize].next.slot())
        })
        .map(|(slot, kept)| (slot, &kept.entry))
    }

    fn link(&mut self, chain: Chain, slot: Option<u32>) -> Option<&mut Link> {
        let kept = self.slots.get_mut(slot?)?;
        kept.links.get_mut(chain as usize)
    }

    fn put_before(&mut self, chain: Chain, slot: u32, head: Option<u32>) {
        if let Some(link) = self.link(chain, head) {
            link.prev = Neighbour::new(Some(slot));
        }
        if let Some(link) = self.link(chain, Some(slot)) {
            *link = Link { prev: Neighbour::default(), next: Neighbour::new(head) };
        }
    }

    /// Closes the gap and returns which neighbours it had.
    fn take_out(&mut self, chain: Chain, slot: u32) -> Link {
        let link = self.link(chain, Some(slot)).map(std::mem::take).unwrap_or_default();
        if let Some(prev) = self.link(chain, link.prev.slot()) {
            prev.next = link.next;
        }
        if let Some(next) = self.link(chain, link.next.slot()) {
            next.prev = link.prev;
        }
        link
    }

    #[cfg(test)]
    pub(super) fn tickets(&self) -> usize {
        self.order.len()
    }

    /// Sizes of the indices: flows, sockets, keys, unconfirmed keys.
    #[cfg(test)]
    pub(super) fn index_sizes(&self) -> [usize; 4] {
        [self.flows.len(), self.sockets.len(), self.keys.len(), self.unconfirmed.len()]
    }
}

fn entry_in(slots: &Slots, slot: u32) -> Option<&Entry> {
    slots.get(slot).map(|kept| &kept.entry)
}

fn flow_of(slots: &Slots, slot: u32) -> Option<Flow> {
    entry_in(slots, slot)?.flow()
}

fn socket_of(slots: &Slots, slot: u32) -> Option<u64> {
    entry_in(slots, slot)?.record.socket
}

fn key_of(slots: &Slots, slot: u32) -> Option<ConnectionKey> {
    Some(entry_in(slots, slot)?.record.key)
}

/// The ticket that the holder of this one would get today.
fn current(slots: &Slots, ticket: &Ticket) -> Option<Ticket> {
    let kept = slots.get(ticket.slot).filter(|kept| kept.serial == ticket.serial)?;
    Some(Ticket::new(&kept.entry, kept.serial, ticket.slot))
}
