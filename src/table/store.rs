// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the entries are kept, and the ways to find them: by flow (one look-up for each event), by socket and by key.

use super::entry::Entry;
use super::order::{Order, Ticket};
use super::place::{Flow, Place};
use crate::model::ConnectionKey;
use foldhash::HashMap;

/// Entries with their indices. Slots are numbered and used again; several entries of one socket or key form a chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    slots: Vec<Option<Kept>>,
    free: Vec<u32>,
    flows: HashMap<Flow, u32>,
    sockets: HashMap<u64, u32>,
    keys: HashMap<ConnectionKey, u32>,
    /// Rows of /proc that no event has confirmed yet: apart, because each new connection looks for its own here.
    unconfirmed: HashMap<ConnectionKey, u32>,
    order: Order,
    serial: u64,
}

#[derive(Clone, Debug)]
struct Kept {
    entry: Entry,
    serial: u64,
    links: [Link; 2],
}

/// Neighbours in a chain.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    prev: Option<u32>,
    next: Option<u32>,
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
        self.flows.get(flow).copied()
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        self.kept(slot).map(|kept| &kept.entry)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.slots.get_mut(slot as usize)?.as_mut().map(|kept| &mut kept.entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0..).zip(&self.slots).filter_map(|(slot, kept)| Some((slot, &kept.as_ref()?.entry)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.slots_mut().map(|(_, entry)| entry)
    }

    pub(super) fn slots_mut(&mut self) -> impl Iterator<Item = (u32, &mut Entry)> {
        (0..).zip(&mut self.slots).filter_map(|(slot, kept)| Some((slot, &mut kept.as_mut()?.entry)))
    }

    /// All connections of a socket, in no order.
    pub(super) fn of_socket(&self, socket: u64) -> impl Iterator<Item = (u32, &Entry)> {
        self.chain(Chain::Socket, self.sockets.get(&socket).copied())
    }

    /// All connections with this key that events have shown.
    pub(super) fn confirmed(&self, key: &ConnectionKey) -> impl Iterator<Item = (u32, &Entry)> {
        self.chain(Chain::Key, self.keys.get(key).copied())
    }

    /// All rows out of /proc with this key.
    pub(super) fn unconfirmed(&self, key: &ConnectionKey) -> impl Iterator<Item = (u32, &Entry)> {
        self.chain(Chain::Key, self.unconfirmed.get(key).copied())
    }

    /// The open row out of /proc that is this connection. Where several could be, it takes the same owner.
    pub(super) fn row_of(&self, place: &Place<'_>) -> Option<u32> {
        if self.unconfirmed.is_empty() {
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
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // A table of 2^32 entries does not fit into memory.
            (self.slots.len() - 1) as u32
        });
        let (flow, socket) = (entry.flow, entry.record.socket);
        self.order.push(Ticket::new(&entry, self.serial, slot));
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(Kept { entry, serial: self.serial, links: [Link::default(); 2] });
        }
        self.attach_key(slot);
        if let (Some(flow), Some(socket)) = (flow, socket) {
            self.flows.insert(flow, slot);
            let head = self.sockets.insert(socket, slot);
            self.put_before(Chain::Socket, slot, head);
        }
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Entry> {
        self.detach_key(slot);
        let entry = self.get(slot)?;
        if let (Some(flow), Some(socket)) = (entry.flow, entry.record.socket) {
            self.flows.remove(&flow);
            match self.take_out(Chain::Socket, slot) {
                Link { prev: None, next: Some(next) } => {
                    self.sockets.insert(socket, next);
                }
                Link { prev: None, next: None } => {
                    self.sockets.remove(&socket);
                }
                Link { prev: Some(_), .. } => {}
            }
        }
        let kept = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        let Self { order, slots, free, .. } = self;
        order.sweep(slots.len() - free.len(), |ticket| current(slots, ticket));
        Some(kept.entry)
    }

    /// Gives an entry another key.
    pub(super) fn rekey(&mut self, slot: u32, key: ConnectionKey) {
        self.detach_key(slot);
        if let Some(entry) = self.get_mut(slot) {
            entry.record.key = key;
        }
        self.attach_key(slot);
    }

    /// To be called when an entry has closed, or opened again.
    pub(super) fn requeue(&mut self, slot: u32) {
        if let Some(kept) = self.kept(slot) {
            let ticket = Ticket::new(&kept.entry, kept.serial, slot);
            self.order.push(ticket);
        }
    }

    /// Removes the entry that has to go first: closed longest ago, else least recently seen.
    pub(super) fn evict(&mut self) -> Option<Entry> {
        let Self { order, slots, .. } = self;
        let slot = order.pop(|ticket| current(slots, ticket))?;
        self.remove(slot)
    }

    fn kept(&self, slot: u32) -> Option<&Kept> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn heads(&mut self, is_confirmed: bool) -> &mut HashMap<ConnectionKey, u32> {
        if is_confirmed { &mut self.keys } else { &mut self.unconfirmed }
    }

    fn attach_key(&mut self, slot: u32) {
        let Some(entry) = self.get(slot) else { return };
        let (key, is_confirmed) = (entry.record.key, entry.flow.is_some());
        let head = self.heads(is_confirmed).insert(key, slot);
        self.put_before(Chain::Key, slot, head);
    }

    fn detach_key(&mut self, slot: u32) {
        let Some(entry) = self.get(slot) else { return };
        let (key, is_confirmed) = (entry.record.key, entry.flow.is_some());
        match self.take_out(Chain::Key, slot) {
            Link { prev: None, next: Some(next) } => {
                self.heads(is_confirmed).insert(key, next);
            }
            Link { prev: None, next: None } => {
                self.heads(is_confirmed).remove(&key);
            }
            Link { prev: Some(_), .. } => {}
        }
    }

    fn chain(&self, chain: Chain, head: Option<u32>) -> impl Iterator<Item = (u32, &Entry)> {
        let with_slot = |slot: Option<u32>| slot.and_then(|slot| Some((slot, self.kept(slot)?)));
        std::iter::successors(with_slot(head), move |(_, kept)| with_slot(kept.links[chain as usize].next))
            .map(|(slot, kept)| (slot, &kept.entry))
    }

    fn link(&mut self, chain: Chain, slot: Option<u32>) -> Option<&mut Link> {
        let kept = self.slots.get_mut(slot? as usize)?.as_mut()?;
        kept.links.get_mut(chain as usize)
    }

    fn put_before(&mut self, chain: Chain, slot: u32, head: Option<u32>) {
        if let Some(link) = self.link(chain, head) {
            link.prev = Some(slot);
        }
        if let Some(link) = self.link(chain, Some(slot)) {
            *link = Link { prev: None, next: head };
        }
    }

    /// Closes the gap and returns which neighbours it had.
    fn take_out(&mut self, chain: Chain, slot: u32) -> Link {
        let link = self.link(chain, Some(slot)).map(std::mem::take).unwrap_or_default();
        if let Some(prev) = self.link(chain, link.prev) {
            prev.next = link.next;
        }
        if let Some(next) = self.link(chain, link.next) {
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

/// The ticket that the holder of this one would get today.
fn current(slots: &[Option<Kept>], ticket: &Ticket) -> Option<Ticket> {
    let kept = slots.get(ticket.slot as usize)?.as_ref().filter(|kept| kept.serial == ticket.serial)?;
    Some(Ticket::new(&kept.entry, kept.serial, ticket.slot))
}
