// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever is lost, repeated or late: if the last event of each direction arrives, the totals are right.

use super::*;

/// xorshift64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    pub(super) fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(i + 1));
        }
    }

    /// Drops some, repeats some, and brings the rest into any order; `keep` is never dropped.
    fn spoil(&mut self, events: &[CollectorEvent], keep: &[usize]) -> Vec<CollectorEvent> {
        let mut spoiled = Vec::new();
        for (n, event) in events.iter().enumerate() {
            let copies = if keep.contains(&n) { 1 + self.below(2) } else { self.below(3) };
            spoiled.extend(std::iter::repeat_n(event.clone(), copies));
        }
        self.shuffle(&mut spoiled);
        spoiled
    }
}

/// A run of transfers in both directions, and where the last of each is.
fn transfers(random: &mut Random, info: impl Fn(u64) -> ConnectionInfo) -> Run {
    let mut run = Run { events: Vec::new(), last: [0, 0], totals: [0, 0] };
    for n in 0..30 {
        let direction = if n < 2 { n } else { random.below(2) };
        let bytes = random.below(5000) as u64;
        run.totals[direction] += bytes;
        run.last[direction] = run.events.len();
        let make = if direction == 0 { recv } else { send };
        run.events.push(make(info(n as u64), bytes, run.totals[direction]));
    }
    run
}

struct Run {
    events: Vec<CollectorEvent>,
    last: [usize; 2],
    totals: [u64; 2],
}

#[test]
fn tcp_totals_survive_any_disorder() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..500 {
        let mut run = transfers(&mut random, |n| tcp(2000 + n));
        run.events.push(begins(tcp(1001)));
        run.events.push(closes(tcp(3000)));
        let end = run.events.len() - 1;
        let spoiled = random.spoil(&run.events, &[run.last[0], run.last[1], end]);
        let record = only(&table(&spoiled));
        assert_eq!([record.bytes_in, record.bytes_out], run.totals, "round {round}: {spoiled:#?}");
        assert_eq!((record.is_closed, record.is_partial), (true, false));
        assert_eq!(record.tcp_state, Some(TcpState::Close));
    }
}

#[test]
fn a_closed_event_alone_makes_up_for_all_that_was_lost() {
    let mut random = Random(7);
    for _ in 0..100 {
        let mut run = transfers(&mut random, |n| tcp(2000 + n));
        run.events.push(closed(tcp(3000), totals(run.totals[0], run.totals[1])));
        let spoiled = random.spoil(&run.events, &[30]);
        let record = only(&table(&spoiled));
        assert_eq!([record.bytes_in, record.bytes_out], run.totals);
        assert!(record.is_closed);
    }
}

#[test]
fn udp_totals_survive_disorder_of_two_eras() {
    let mut random = Random(99);
    for round in 0..500 {
        let era = |random: &mut Random, since| {
            transfers(random, move |n| ConnectionInfo { since: KernelTime(since), ..udp(2, since + 1 + n) })
        };
        let (first, second) = (era(&mut random, 1000), era(&mut random, 2000));
        let events = [first.events, second.events].concat();
        let keep = [first.last[0], first.last[1], 30 + second.last[0], 30 + second.last[1]];
        let record = only(&table(&random.spoil(&events, &keep)));
        let sum = [first.totals[0] + second.totals[0], first.totals[1] + second.totals[1]];
        assert_eq!([record.bytes_in, record.bytes_out], sum, "round {round}");
    }
}

#[test]
fn totals_never_go_back() {
    let mut random = Random(3);
    for _ in 0..100 {
        let run = transfers(&mut random, |n| tcp(2000 + n));
        let mut table = ConnectionTable::new();
        let mut before = (0, 0);
        for event in random.spoil(&run.events, &[]) {
            table.apply(&event);
            let now = bytes(&only(&table));
            assert!(now.0 >= before.0 && now.1 >= before.1);
            before = now;
        }
    }
}

/// Events and rows of a few sockets, keys and moments, so that everything meets everything.
fn anything(random: &mut Random) -> CollectorEvent {
    use TcpState::*;
    let time = 1000 + random.below(1000) as u64;
    let mut info = if random.below(2) == 0 { tcp(time) } else { udp(random.below(4) as u8, time) };
    info.socket = 1 + random.below(8) as u64 + if info.key.protocol == Protocol::Udp { 100 } else { 0 };
    info.since = KernelTime(time - time % 250);
    info.netns = NetNs::new(random.below(3) as u32);
    info.key.local_port = random.below(3) as u16;
    if random.below(2) == 0 {
        info = owned(info, 1 + random.below(3) as u32, Provenance::Seen);
    }
    let total = random.below(1 << 20) as u64;
    let states = [SynSent, SynRecv, Established, CloseWait, Close, Listen];
    match (random.below(4), info.key.protocol) {
        (0, _) => send(info, 1, total),
        (1, _) => recv(info, 1, total),
        (2, Protocol::Tcp) => state(info, states[random.below(6)], states[random.below(6)]),
        (_, Protocol::Tcp) => closed(info, totals(total, total)),
        (_, Protocol::Udp) => {
            (info.key.remote_addr, info.key.remote_port) = ([0, 0, 0, 0].into(), 0);
            closed(info, Totals::default())
        }
    }
}

#[test]
fn whatever_comes_the_table_stays_sound() {
    let mut random = Random(0xdead_beef);
    let mut table = ConnectionTable::new().max_connections(20).linger(std::time::Duration::from_nanos(300));
    for _ in 0..20_000 {
        let event = anything(&mut random);
        match (random.below(10), event.connection()) {
            (0, Some(info)) => {
                let mut row = ConnectionRecord::new(info.key, info.time);
                (row.owner, row.netns, row.is_partial) = (info.owner, info.netns, true);
                table.merge_bootstrap([row]);
            }
            (1, Some(info)) => drop(table.snapshot(info.time)),
            _ => table.apply(&event),
        }
        assert_sound(&table);
    }
    assert!(table.evicted() > 0);
}

/// Every record is found by every way that leads to it, and nothing else is.
fn assert_sound(table: &ConnectionTable) {
    let store = &table.store;
    let entries: Vec<_> = store.iter().collect();
    assert!(entries.len() == table.len() && table.len() <= 20);
    let mut flows = 0;
    for &(slot, entry) in &entries {
        let key = &entry.record.key;
        let found = match entry.flow() {
            Some(_) => store.confirmed(key).filter(|&(other, _)| other == slot).count(),
            None => store.all_with(key).filter(|&(other, _)| other == slot).count(),
        };
        assert_eq!(found, 1);
        if let Some(flow) = entry.flow() {
            flows += 1;
            assert_eq!(store.find(&flow), Some(slot));
            let socket = entry.record.socket.expect("every flow has one");
            assert_eq!(store.of_socket(socket).filter(|&(other, _)| other == slot).count(), 1);
        } else if let Some(socket) = entry.record.socket {
            assert_eq!(store.rows_of_socket(socket).filter(|&(other, _)| other == slot).count(), 1);
        }
        assert_eq!(entry.is_open(), !entry.record.is_closed);
        assert!(table.get(key).is_some_and(|best| !best.is_closed || entry.record.is_closed));
    }
    let [all_flows, sockets, keys, open_rows, named_rows, ended_rows, row_ids] = store.index_sizes();
    assert_eq!(all_flows, flows);
    let rows = entries.len() - flows;
    assert!(
        sockets <= flows && keys <= flows && open_rows + named_rows + ended_rows <= rows && row_ids <= rows
    );
    assert!(table.misplaced.is_empty());
}
