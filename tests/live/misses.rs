// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel skips: programs on a processor where something holds them back. Whoever looks into a map holds back
//! kprobes there (`bpf_disable_instrumentation()`), for as long as the scheduler lets others run meanwhile.

use crate::harness::Trace;
use crate::net::{Child, send};
use crate::udp::bound;
use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use std::collections::BTreeMap;
use tcptop::{EventKind, LossPlace, Protocol};

/// Processes that look into a map all the time, until they are dropped.
fn hold_back_kprobes() -> Vec<Child> {
    let options = bpf_map_create_opts { sz: size_of::<bpf_map_create_opts>() as u64, ..Default::default() };
    let map = MapHandle::create(MapType::Array, Some("busy"), 4, 8, 1, &options).unwrap();
    Child::fork_for_each_processor(|_| {
        loop {
            map.lookup(&[0; 4], MapFlags::ANY).unwrap();
        }
    })
}

/// Bytes and datagrams by local port, of one socket with it or several.
#[derive(Default)]
struct Book(BTreeMap<u16, [u64; 2]>);

impl Book {
    fn enter(&mut self, local: u16, bytes: u64, datagrams: u64) {
        let sums = self.0.entry(local).or_default();
        *sums = [sums[0] + bytes, sums[1] + datagrams];
    }

    fn datagrams(&self) -> u64 {
        self.0.values().map(|[_, datagrams]| datagrams).sum()
    }
}

/// Sockets come and go, and their memory is used again. Where an end goes unseen, the next socket's account must not go
/// on from the last one's.
#[test]
fn a_socket_at_the_place_of_another_whose_end_went_unseen_has_its_own_account() {
    let mut trace = Trace::fresh();
    let ((_sink, to), mut sent, mut found) = (bound("127.0.0.1:0"), Book::default(), Book::default());
    let busy = hold_back_kprobes();
    for _ in 0..3000 {
        let (socket, local) = bound("127.0.0.1:0");
        socket.connect(("127.0.0.1", to)).unwrap();
        assert_eq!(send(&socket, &[1; 100], 0), 100);
        sent.enter(local, 100, 1);
    }
    drop(busy);
    trace.stop();
    let rows = trace.table.records();
    for row in rows.filter(|row| row.key.protocol == Protocol::Udp && row.key.remote_port == to) {
        found.enter(row.key.local_port, row.bytes_out, row.packets_out);
    }
    let missing = sent.datagrams() - found.datagrams();
    let stats = trace.collector.stats();
    let skipped = [EventKind::UdpSend, EventKind::Closed].map(|kind| stats.lost(kind, LossPlace::Hook));
    println!("{missing} of {} datagrams missing; skipped: {skipped:?}", sent.datagrams());
    for (local, found) in &found.0 {
        let sent = sent.0[local];
        assert!(found[0] <= sent[0] && found[1] <= sent[1], "port {local}: {found:?} of {sent:?}");
    }
    assert!(missing <= skipped[0], "{missing}: {stats:?}");
}
