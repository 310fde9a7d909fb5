// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sums by process, host, cgroup and port. The reference adds up what the events say, by itself.

use super::disorder::Random;
use super::*;
use crate::model::CgroupId;
use crate::sums::{Group, GroupBy, Sum};
use std::collections::BTreeMap;

fn sums(table: &mut ConnectionTable, by: GroupBy, time: u64) -> BTreeMap<String, Sum> {
    table.sums(by, KernelTime(time)).into_iter().map(|sum| (sum.group.to_string(), sum)).collect()
}

/// In, out, and how many connections.
type Moved = (u64, u64, u64);

fn moved(sums: &BTreeMap<String, Sum>) -> BTreeMap<String, Moved> {
    sums.iter().map(|(name, sum)| (name.clone(), (sum.bytes_in, sum.bytes_out, sum.connections))).collect()
}

fn whole(sums: &BTreeMap<String, Sum>) -> Moved {
    sums.values()
        .fold((0, 0, 0), |all, sum| (all.0 + sum.bytes_in, all.1 + sum.bytes_out, all.2 + sum.connections))
}

/// The connection with this number: socket, ports, peer, process and cgroup follow from it.
fn connection(n: u64, time: u64) -> ConnectionInfo {
    let protocol = if n.is_multiple_of(3) { Protocol::Udp } else { Protocol::Tcp };
    let key = ConnectionKey::new(
        protocol,
        ip(1),
        5000 + (n % 4) as u16,
        ip(2 + (n % 7) as u8),
        80 + (n % 2) as u16,
    );
    let mut owner = Process::new(100 + (n % 5) as u32, "x");
    owner.cgroup_id = CgroupId::new(1 + n % 2);
    let info = ConnectionInfo {
        since: KernelTime(1000),
        netns: NetNs::new(7),
        ..ConnectionInfo::new(key, 1 + n, KernelTime(time))
    };
    ConnectionInfo { owner: Some(owner), provenance: Provenance::Seen, ..info }
}

fn name_of(by: GroupBy, info: &ConnectionInfo) -> String {
    let (key, owner) = (&info.key, info.owner.unwrap());
    match by {
        GroupBy::Process => format!("x[{}]", owner.pid),
        GroupBy::RemoteHost => key.remote_addr.to_string(),
        GroupBy::Cgroup => owner.cgroup_id.unwrap().to_string(),
        GroupBy::LocalPort => format!("{}/{}", key.protocol, key.local_port),
        GroupBy::RemotePort => format!("{}/{}", key.protocol, key.remote_port),
        GroupBy::ProcessAndHost => format!("x[{}] {}", owner.pid, key.remote_addr),
    }
}

/// The sums of the highest totals that events tell of each connection.
fn expected(by: GroupBy, events: &[CollectorEvent]) -> BTreeMap<String, Moved> {
    let mut totals = BTreeMap::new();
    for t in events.iter().filter_map(CollectorEvent::transfer) {
        let of_both: &mut [u64; 2] = totals.entry(t.connection.socket).or_default();
        let total = &mut of_both[t.direction as usize];
        *total = t.total_bytes.max(*total);
    }
    let mut groups: BTreeMap<String, Moved> = BTreeMap::new();
    for (socket, [bytes_in, bytes_out]) in totals {
        let group = groups.entry(name_of(by, &connection(socket - 1, 0))).or_default();
        *group = (group.0 + bytes_in, group.1 + bytes_out, group.2 + 1);
    }
    groups
}

/// Transfers of so many connections, each with its totals so far, in order. A third of the connections have a history.
fn traffic(random: &mut Random, connections: usize, count: u64) -> Vec<CollectorEvent> {
    let mut totals: Vec<[u64; 2]> = (0..connections as u64).map(|n| [n % 3 / 2 * 1_000_000; 2]).collect();
    let mut events = Vec::new();
    for time in 0..count {
        let n = if time < connections as u64 { time as usize } else { random.below(connections) };
        let (way, bytes) = (random.below(2), 1 + random.below(1000) as u64);
        totals[n][way] += bytes;
        let make = if way == 0 { recv } else { send };
        events.push(make(connection(n as u64, 2000 + time), bytes, totals[n][way]));
    }
    events
}

#[test]
fn sums_are_those_of_all_events_whatever_is_late_repeated_closed_dropped_or_evicted() {
    let mut random = Random(0x5eed_1234_5678_9abc);
    for round in 0..60 {
        let mut events = traffic(&mut random, 50, 400);
        for n in 0..50 {
            let info = connection(n, 2000 + random.below(600) as u64);
            events.push(if n % 3 == 0 { closed(info, Totals::default()) } else { closes(info) });
        }
        let all = events.clone();
        if round % 2 == 0 {
            random.shuffle(&mut events);
        }
        let mut table = ConnectionTable::new().max_connections(20).linger(Duration::from_nanos(50));
        let mut before = BTreeMap::new();
        for event in &events {
            table.apply(event);
            if random.below(4) == 0 {
                table.apply(&all[random.below(all.len())]);
            }
            if random.below(30) == 0 {
                let now = sums(&mut table, GroupBy::Process, event.connection().unwrap().time.0);
                let grows = |(name, was): (&String, &Sum)| {
                    now[name].bytes_in >= was.bytes_in && now[name].bytes_out >= was.bytes_out
                };
                assert!(before.iter().all(grows), "{before:#?} {now:#?}");
                before = now;
            }
        }
        events.iter().for_each(|event| table.apply(event));
        assert!(table.evicted() > 0);
        for by in GroupBy::ALL {
            assert_eq!(moved(&sums(&mut table, by, 1 << 40)), expected(by, &all), "round {round}: by {by}");
        }
        assert!(table.is_empty() || round % 2 == 0, "all have ended");
    }
}

#[test]
fn with_more_evictions_than_are_remembered_sums_are_those_of_the_bytes_in_events() {
    let mut random = Random(77);
    let mut table = ConnectionTable::new().max_connections(5);
    table.dropped.set_limit(3);
    let mut bytes = (0, 0);
    for event in traffic(&mut random, 40, 3000).iter().filter(|e| e.connection().unwrap().socket % 3 != 0) {
        table.apply(event);
        let t = event.transfer().unwrap();
        *(if t.direction == Direction::In { &mut bytes.0 } else { &mut bytes.1 }) += t.bytes;
    }
    assert!(table.dropped.has_forgotten);
    let all = whole(&sums(&mut table, GroupBy::Process, 10_000));
    assert_eq!((all.0, all.1), bytes);
}

#[test]
fn what_is_new_is_told_once_by_each_grouping_and_history_is_not_new() {
    let mut random = Random(5);
    let events = traffic(&mut random, 30, 2000);
    let mut table = ConnectionTable::new().max_connections(10).linger(Duration::ZERO);
    let (mut bytes, mut told) = (0, [0; 2]);
    for (n, event) in events.iter().enumerate() {
        table.apply(event);
        bytes += event.transfer().unwrap().bytes;
        for (count, (every, by)) in told.iter_mut().zip([(100, GroupBy::Process), (333, GroupBy::RemoteHost)])
        {
            if n % every == 0 || n + 1 == events.len() {
                let sums = table.sums(by, KernelTime(2000 + n as u64));
                *count += sums.iter().map(|sum| sum.new_bytes_in + sum.new_bytes_out).sum::<u64>();
            }
        }
    }
    assert_eq!(told, [bytes; 2]);
    let again = table.sums(GroupBy::Process, KernelTime(5000));
    assert!(again.iter().all(|sum| sum.new_bytes_in + sum.new_bytes_out == 0));
}

#[test]
fn a_record_tells_what_is_new_since_the_look_before() {
    let mut table = table([&send(tcp(2000), 10, 5000), &recv(tcp(2000), 7, 7)]);
    let new = |table: &mut ConnectionTable| {
        let record = &table.snapshot(KernelTime(3000))[0];
        (record.new_bytes_in, record.new_bytes_out)
    };
    assert_eq!(new(&mut table), (7, 10));
    table.apply(&send(tcp(2001), 90, 5100));
    drop(table.sums(GroupBy::Process, KernelTime(3000)));
    assert_eq!(new(&mut table), (0, 100), "with what a lost event would have told");
    assert_eq!(new(&mut table), (0, 0));
    let mut table = table.max_connections(1);
    table.apply(&send(ConnectionInfo { socket: 2, ..tcp(2002) }, 1, 1));
    table.apply(&send(tcp(2003), 20, 5120));
    assert_eq!(new(&mut table), (0, 20), "it was evicted, and is back");
}

#[test]
fn bytes_stay_with_the_process_that_moved_them_when_the_connection_is_handed_over() {
    use Provenance::*;
    let mut table = ConnectionTable::new().linger(Duration::ZERO);
    table.apply(&send(owned(tcp(2000), 10, Inherited), 0, 0));
    table.apply(&send(owned(tcp(2001), 20, Seen), 100, 100));
    table.apply(&send(owned(tcp(2002), 30, Seen), 50, 150));
    table.apply(&send(owned(tcp(2003), 20, Seen), 5, 155));
    let (of, each) = (|sums: &BTreeMap<String, Sum>| moved(sums), |name: &str, sum| (name.to_owned(), sum));
    let expected = BTreeMap::from([each("x[20]", (0, 105, 1)), each("x[30]", (0, 50, 0))]);
    assert_eq!(of(&sums(&mut table, GroupBy::Process, 3000)), expected);
    let hosts = sums(&mut table, GroupBy::RemoteHost, 3000);
    assert_eq!(of(&hosts), BTreeMap::from([each("10.0.0.2", (0, 155, 1))]));
    table.apply(&closed(tcp(4000), totals(0, 155)));
    let ended = sums(&mut table, GroupBy::Process, 4000);
    assert!(
        table.is_empty() && of(&ended) == expected && ended.values().all(|sum| sum.open == 0),
        "{ended:#?}"
    );
}

#[test]
fn an_owner_that_is_found_out_later_gets_it_all() {
    let mut table = table([&send(tcp(2000), 100, 100)]);
    assert_eq!(table.sums(GroupBy::Process, KernelTime(2000))[0].group, Group::Unknown);
    table.apply(&send(owned(tcp(2001), 20, Provenance::Seen), 1, 101));
    let sums = table.sums(GroupBy::Process, KernelTime(2001));
    assert_eq!((sums.len(), sums[0].bytes_out, sums[0].group.to_string()), (1, 101, "x[20]".into()));
}

#[test]
fn processes_are_told_apart_by_start_time_as_exactly_as_proc_has_it() {
    let with = |socket, start_time_ns, name| {
        let owner = Process { start_time_ns, ..Process::new(5, name) };
        ConnectionInfo { socket, owner: Some(owner), provenance: Provenance::Seen, ..tcp(2000 + socket) }
    };
    let events = [(1, 7_654_321_000, "old"), (2, 7_650_000_000, "new"), (3, 9_000_000_000, "else")]
        .map(|(socket, start, name)| send(with(socket, start, name), 1, 1));
    let sums = sums(&mut table(&events), GroupBy::Process, 3000);
    let connections: Vec<_> = sums.iter().map(|(name, sum)| (name.as_str(), sum.connections)).collect();
    assert_eq!(connections, [("else[5]", 1), ("new[5]", 2)], "with the latest name");
}

#[test]
fn round_trip_times_are_the_median_of_open_connections_and_the_least_of_all() {
    let micros = |us| Some(Duration::from_micros(us));
    let with = |socket, rtt, is_open| {
        let end = Closed {
            rtt: micros(rtt),
            min_rtt: micros(rtt),
            ..Closed::new(connection(socket, 3000), totals(0, 0))
        };
        let open = Transfer { rtt: micros(rtt), ..transfer(connection(socket, 3000), Direction::Out, 1, 1) };
        if is_open { open.into() } else { CollectorEvent::Closed(end) }
    };
    let mut table =
        table(&[with(5, 40, true), with(10, 9000, true), with(20, 70, true), with(25, 10, false)]);
    let sum = &table.sums(GroupBy::Process, KernelTime(3000))[0];
    assert_eq!((sum.open, sum.connections, sum.rtt, sum.min_rtt), (3, 4, micros(70), micros(10)));
    assert!(sum.is_partial, "one has begun before");
}

#[test]
fn sums_of_some_rows_are_those_of_these_rows_and_no_look() {
    let with = |socket, pid| ConnectionInfo { socket, ..owned(tcp(2000 + socket), pid, Provenance::Seen) };
    let mut table = table(&[send(with(1, 5), 10, 10), send(with(2, 5), 20, 20), send(with(3, 6), 40, 40)]);
    let of = |sums: &[Sum]| -> BTreeMap<String, [u64; 3]> {
        let numbers = |sum: &Sum| [sum.connections, sum.bytes_out, sum.new_bytes_out];
        sums.iter().map(|sum| (sum.group.to_string(), numbers(sum))).collect()
    };
    let now = KernelTime(3000);
    let some = of(&table.sums_of(GroupBy::Process, now, |record| record.bytes_out != 20));
    assert_eq!(some, [("x[5]".into(), [1, 10, 10]), ("x[6]".into(), [1, 40, 40])].into());
    let all = [("x[5]".into(), [2, 30, 30]), ("x[6]".into(), [1, 40, 40])].into();
    assert_eq!(of(&table.sums(GroupBy::Process, now)), all);
    assert_eq!(of(&table.sums_of(GroupBy::Process, now, |_| true)), all);
}

#[test]
fn groups_without_a_connection_are_bounded_and_the_rest_is_added_up() {
    let mut table = ConnectionTable::new().linger(Duration::ZERO).max_groups(10);
    let lives = connection(1, 2000);
    table.apply(&send(lives, 1000, 1000));
    for n in 0..200 {
        let mut info = connection(1, 2000 + 10 * n);
        (info.socket, info.owner) = (100 + n, Some(Process::new(1000 + n as u32, "x")));
        table.apply(&send(info, 10, 10));
        table.apply(&closes(ConnectionInfo { time: KernelTime(info.time.0 + 1), ..info }));
        let all = sums(&mut table, GroupBy::Process, 2005 + 10 * n);
        assert_eq!(whole(&all), (0, 1000 + 10 * (n + 1), n + 2));
        assert!(table.groups.len(GroupBy::Process) <= 22, "{}", table.groups.len(GroupBy::Process));
    }
    let mut all = sums(&mut table.max_groups(0), GroupBy::Process, 5000);
    assert_eq!((all.len(), all["x[101]"].bytes_out, all["other"].bytes_out), (2, 1000, 2000));
    assert_eq!((all["other"].connections, all["other"].open, all["other"].new_bytes_out), (200, 0, 0));
    assert_eq!(all.remove("other").map(|sum| sum.group), Some(Group::Other));
}

#[test]
fn an_existing_connection_that_was_evicted_is_not_counted_twice() {
    let row = |socket: u64, bytes_out| ConnectionRecord {
        socket: Some(socket),
        bytes_out,
        owner: Some(Process::new(5, "x")),
        ..ConnectionRecord::new(ConnectionKey { local_port: socket as u16, ..tcp_key() }, KernelTime(1500))
    };
    let mut table = ConnectionTable::new().max_connections(1);
    table.merge_bootstrap([row(1, 700), row(2, 30)]);
    assert_eq!(moved(&sums(&mut table, GroupBy::Process, 1500))["x[5]"], (0, 730, 2));
    let mut back = owned(ConnectionInfo { key: row(1, 0).key, ..tcp(2000) }, 5, Provenance::Seen);
    back.since = KernelTime(1900);
    table.apply(&send(back, 50, 750));
    assert_eq!(moved(&sums(&mut table, GroupBy::Process, 2000))["x[5]"], (0, 780, 2));
    table.merge_bootstrap([row(2, 30)]);
    assert_eq!(moved(&sums(&mut table, GroupBy::Process, 2000))["x[5]"], (0, 780, 2));
}
