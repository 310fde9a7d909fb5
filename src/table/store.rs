// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stores the entries and finds them: by flow (one look-up for each event), by socket and by key.
//!
//! Any user can make many connections with one key (SO_REUSEPORT), or with one socket that connects again and again. So a
//! search follows a chain for [`CROWD`] steps at most, and uses ids where there are any.

use super::entry::Entry;
use super::index::Index;
use super::matching::{CROWD, Flow, MatchKey};
use super::order::{Order, Ticket};
use crate::model::ConnectionKey;
use std::hash::Hash;
use std::num::NonZeroU32;

/// Entries with their indices. Slots are numbered and used again; several entries of one socket or key form a chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    slots: Slots,
    free: Vec<u32>,
    flows: Index,
    /// Of connections that events have shown.
    sockets: Index,
    keys: Index,
    /// Rows of a scan that no event has confirmed yet: apart, because each new connection looks for its own here. Those
    /// that have ended are apart again, so that none of them stands before one that is looked for.
    open_rows: Index,
    /// Open rows that have an id: of interest to nobody who has one.
    named_rows: Index,
    ended_rows: Index,
    /// Rows with an id, by that.
    row_ids: Index,
    order: Order,
    serial: u64,
}

type Slots = super::slots::Slots<Stored>;

#[cfg(test)]
thread_local! {
    /// How many steps were taken along chains, and from one remembered end to the next: what a search costs.
    pub(super) static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[derive(Clone, Debug)]
struct Stored {
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

/// Below this there is nothing worth giving back.
const SMALL: usize = 1024;

impl Store {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn find(&self, flow: &Flow) -> Option<u32> {
        self.flows.get(flow, |slot| self.get(slot).is_some_and(|entry| entry.is_of(flow)))
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        self.stored(slot).map(|stored| &stored.entry)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.slots.get_mut(slot).map(|stored| &mut stored.entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.slots.iter().map(|(slot, stored)| (slot, &stored.entry))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.slots_mut().map(|(_, entry)| entry)
    }

    pub(super) fn slots_mut(&mut self) -> impl Iterator<Item = (u32, &mut Entry)> {
        self.slots.iter_mut().map(|(slot, stored)| (slot, &mut stored.entry))
    }

    /// All connections of a socket that events have shown, the latest first.
    pub(super) fn of_socket(&self, socket: u64) -> impl Iterator<Item = (u32, &Entry)> {
        let has_id = |slot| socket_of(&self.slots, slot) == Some(socket);
        self.chain(Chain::Socket, self.sockets.get(&socket, has_id))
    }

    /// The rows of a scan with this id. A socket has one, or few if it was connected elsewhere in between.
    pub(super) fn rows_of_socket(&self, socket: u64) -> impl Iterator<Item = (u32, &Entry)> {
        let has_id = |slot| socket_of(&self.slots, slot) == Some(socket);
        self.chain(Chain::Socket, self.row_ids.get(&socket, has_id)).take(CROWD)
    }

    /// Connections with this key that events have shown.
    pub(super) fn confirmed(&self, key: &ConnectionKey) -> impl Iterator<Item = (u32, &Entry)> {
        self.with_key(&self.keys, key).take(CROWD)
    }

    /// Rows of a scan with this key that are open and have no id.
    pub(super) fn open_rows(&self, key: &ConnectionKey) -> impl Iterator<Item = (u32, &Entry)> {
        self.with_key(&self.open_rows, key).take(CROWD)
    }

    /// Those that have ended.
    pub(super) fn ended_rows(&self, key: &ConnectionKey) -> impl Iterator<Item = (u32, &Entry)> {
        self.with_key(&self.ended_rows, key).take(CROWD)
    }

    /// Everything with this key, however many there are.
    pub(super) fn all_with(&self, key: &ConnectionKey) -> impl Iterator<Item = (u32, &Entry)> {
        let lists = [&self.open_rows, &self.named_rows, &self.ended_rows, &self.keys];
        lists.map(|list| self.with_key(list, key)).into_iter().flatten()
    }

    fn with_key(&self, list: &Index, key: &ConnectionKey) -> impl Iterator<Item = (u32, &Entry)> + use<'_> {
        let has_key = |slot| self.get(slot).is_some_and(|entry| entry.record.key == *key);
        self.chain(Chain::Key, list.get(key, has_key))
    }

    /// The open row of a scan that is this connection: the one with its id, else one without an id. Where several could be,
    /// it takes the same owner.
    pub(super) fn row_of(&self, wanted: &MatchKey<'_>) -> Option<u32> {
        if self.open_rows.len() + self.named_rows.len() == 0 {
            return None;
        }
        let is_it = |row: &Entry| row.is_open() && wanted.may_match(&MatchKey::of_record(&row.record));
        let mut with_id = wanted.socket.into_iter().flat_map(|socket| self.rows_of_socket(socket));
        if let Some((slot, _)) = with_id.find(|(_, row)| is_it(row)) {
            return Some(slot);
        }
        let named = Some(&self.named_rows).filter(|_| wanted.socket.is_none());
        let rows = || {
            let named = named.into_iter().flat_map(|list| self.with_key(list, wanted.key)).take(CROWD);
            self.open_rows(wanted.key).chain(named).filter(|(_, row)| is_it(row))
        };
        let same_owner = rows().find(|(_, row)| wanted.pid.is_some() && row.record.pid() == wanted.pid);
        let only_one = || rows().next().filter(|_| rows().nth(1).is_none());
        same_owner.or_else(only_one).map(|(slot, _)| slot)
    }

    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        self.serial += 1;
        let slot = self.free.pop().unwrap_or_else(|| self.slots.add());
        let (flow, socket) = (entry.flow(), entry.record.socket);
        self.order.push(Ticket::new(&entry, self.serial, slot));
        self.slots.put(slot, Stored { entry, serial: self.serial, links: [Link::default(); 2] });
        self.attach_key(slot);
        if let Some(flow) = &flow {
            let Self { flows, slots, .. } = self;
            flows.insert(flow, slot, |slot| flow_of(slots, slot));
        }
        if let Some(socket) = socket {
            let (ids, slots) = self.ids(flow.is_some());
            let head = ids.insert(&socket, slot, |slot| socket_of(slots, slot));
            self.put_before(Chain::Socket, slot, head);
        }
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Entry> {
        self.detach_key(slot);
        let entry = self.get(slot)?;
        let (flow, socket) = (entry.flow(), entry.record.socket);
        if let Some(flow) = &flow {
            let Self { flows, slots, .. } = self;
            flows.remove(flow, |slot| flow_of(slots, slot));
        }
        if let Some(socket) = socket {
            let link = self.take_out(Chain::Socket, slot);
            let (ids, slots) = self.ids(flow.is_some());
            link.leave(ids, &socket, |slot| socket_of(slots, slot));
        }
        let stored = self.slots.take(slot)?;
        self.free.push(slot);
        self.sweep();
        Some(stored.entry)
    }

    fn sweep(&mut self) {
        let Self { order, slots, free, .. } = self;
        order.sweep(slots.len() - free.len(), |ticket| current(slots, ticket));
    }

    /// Changes an entry in its key, or whether it is open.
    pub(super) fn relist<T>(&mut self, slot: u32, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.detach_key(slot);
        let changed = self.get_mut(slot).map(change);
        self.attach_key(slot);
        changed
    }

    /// Gives memory back once three quarters of the places are empty: what is left moves together. That costs no more than
    /// all that had to happen before. Slots have other numbers then.
    pub(super) fn shrink(&mut self) {
        if self.slots.len() < SMALL || self.len() > self.slots.len() / 4 {
            return;
        }
        let Self { slots, serial, .. } = std::mem::take(self);
        self.serial = serial;
        for stored in slots.into_values() {
            self.insert(stored.entry);
        }
    }

    /// To be called when an entry has closed, or opened again. Its former ticket is worth nothing any more.
    pub(super) fn requeue(&mut self, slot: u32) {
        self.serial += 1;
        if let Some(stored) = self.slots.get_mut(slot) {
            stored.serial = self.serial;
            self.order.push(Ticket::new(&stored.entry, stored.serial, slot));
            self.sweep();
        }
    }

    /// Removes the entry that has to go first: closed longest ago, else least recently seen.
    pub(super) fn evict(&mut self) -> Option<Entry> {
        let Self { order, slots, .. } = self;
        let slot = order.pop(|ticket| current(slots, ticket))?;
        self.remove(slot)
    }

    fn stored(&self, slot: u32) -> Option<&Stored> {
        self.slots.get(slot)
    }

    fn attach_key(&mut self, slot: u32) {
        let Some((key, list, slots)) = self.list_of(slot) else { return };
        let head = list.insert(&key, slot, |slot| key_of(slots, slot));
        self.put_before(Chain::Key, slot, head);
    }

    fn detach_key(&mut self, slot: u32) {
        let link = self.take_out(Chain::Key, slot);
        let Some((key, list, slots)) = self.list_of(slot) else { return };
        link.leave(list, &key, |slot| key_of(slots, slot));
    }

    /// The key of an entry, and where it is listed under that.
    fn list_of(&mut self, slot: u32) -> Option<(ConnectionKey, &mut Index, &Slots)> {
        let Self { keys, open_rows, named_rows, ended_rows, slots, .. } = self;
        let entry = entry_in(slots, slot)?;
        let list = match (entry.is_confirmed, entry.is_open(), entry.record.socket) {
            (true, ..) => keys,
            (false, true, None) => open_rows,
            (false, true, Some(_)) => named_rows,
            (false, false, _) => ended_rows,
        };
        Some((entry.record.key, list, slots))
    }

    /// Where sockets are listed by their ids.
    fn ids(&mut self, is_confirmed: bool) -> (&mut Index, &Slots) {
        let Self { sockets, row_ids, slots, .. } = self;
        (if is_confirmed { sockets } else { row_ids }, slots)
    }

    fn chain(&self, chain: Chain, head: Option<u32>) -> impl Iterator<Item = (u32, &Entry)> {
        let with_slot = |slot: Option<u32>| slot.and_then(|slot| Some((slot, self.stored(slot)?)));
        std::iter::successors(with_slot(head), move |(_, stored)| {
            #[cfg(test)]
            STEPS.with(|steps| steps.set(steps.get() + 1));
            with_slot(stored.links[chain as usize].next.slot())
        })
        .map(|(slot, stored)| (slot, &stored.entry))
    }

    fn link(&mut self, chain: Chain, slot: Option<u32>) -> Option<&mut Link> {
        let stored = self.slots.get_mut(slot?)?;
        stored.links.get_mut(chain as usize)
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

    #[cfg(test)]
    pub(super) fn index_sizes(&self) -> [usize; 7] {
        self.indices().map(Index::len)
    }

    #[cfg(test)]
    fn indices(&self) -> [&Index; 7] {
        let Self { flows, sockets, keys, open_rows, named_rows, ended_rows, row_ids, .. } = self;
        [flows, sockets, keys, open_rows, named_rows, ended_rows, row_ids]
    }

    /// For how many entries there is room, in the slots, the indices and the queue.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        let indices = self.indices().map(Index::room);
        indices
            .into_iter()
            .chain([self.slots.len(), self.free.capacity(), self.order.room()])
            .max()
            .unwrap_or(0)
    }
}

fn entry_in(slots: &Slots, slot: u32) -> Option<&Entry> {
    slots.get(slot).map(|stored| &stored.entry)
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
    let stored = slots.get(ticket.slot).filter(|stored| stored.serial == ticket.serial)?;
    Some(Ticket::new(&stored.entry, stored.serial, ticket.slot))
}
