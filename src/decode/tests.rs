// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;

/// A record put together byte by byte, as the kernel side lays it out: independent of the generated types.
struct Bytes(Vec<u8>);

impl Bytes {
    fn new() -> Self {
        Self(Vec::new())
    }
    fn u8(mut self, v: u8) -> Self {
        self.0.push(v);
        self
    }
    fn u16(mut self, v: u16) -> Self {
        self.0.extend(v.to_ne_bytes());
        self
    }
    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_ne_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_ne_bytes());
        self
    }
    fn padded(mut self, v: &[u8], len: usize) -> Self {
        self.0.extend(v);
        self.0.extend(vec![0; len - v.len()]);
        self
    }
    fn process(self, start: u64, cgroup: u64, pid: u32, uid: u32, comm: &[u8]) -> Self {
        self.u64(start).u64(cgroup).u32(pid).u32(uid).padded(comm, 16)
    }
    fn connection(self, family: u8, protocol: u8, provenance: u8, local: &[u8], remote: &[u8]) -> Self {
        self.u64(1_000)
            .u64(77)
            .u64(900)
            .u32(4_026_531_840)
            .u16(40_000)
            .u16(443)
            .padded(local, 16)
            .padded(remote, 16)
            .u8(family)
            .u8(protocol)
            .u8(provenance)
            .u8(0)
            .padded(&[], 4)
            .process(5, 6, 4242, 1000, b"curl")
    }
    fn transfer(kind: u32, rtt: u32, family: u8, protocol: u8, local: &[u8], remote: &[u8]) -> Self {
        Self::new()
            .u32(kind)
            .u32(rtt)
            .connection(family, protocol, 2, local, remote)
            .process(7, 8, 4243, 1001, b"worker")
            .u64(0xabcd)
            .u64(300)
            .u64(5_000_000_000)
            .u64(9)
            .u32(2)
            .u32(7)
    }
    fn state(kind: u32, provenance: u8, error: u32, old: u8, new: u8, flags: u8) -> Self {
        Self::end(kind, provenance, error, [old, new, flags, 0], 0)
    }
    /// `bytes`: old state, new state, flags, end.
    fn end(kind: u32, provenance: u8, error: u32, bytes: [u8; 4], lasted_ns: u64) -> Self {
        Self::new()
            .u32(kind)
            .u32(250)
            .connection(4, 6, provenance, &[10, 0, 0, 1], &[10, 0, 0, 2])
            .u64(11)
            .u64(22)
            .u64(33)
            .u64(44)
            .u64(lasted_ns)
            .u32(70)
            .u32(3)
            .u32(2)
            .u32(error)
            .padded(&bytes, 8)
    }
}

#[test]
fn a_tcp_transfer_carries_every_field_over() {
    let record = Bytes::transfer(0, 1234, 4, 6, &[127, 0, 0, 1], &[192, 0, 2, 7]);
    assert_eq!(record.0.len(), 200);
    let Ok(CollectorEvent::TcpSend(t)) = event(&record.0) else { panic!("{:?}", event(&record.0)) };
    let c = t.connection;
    assert_eq!(
        (c.time, c.socket, c.since, c.netns),
        (KernelTime(1_000), 77, KernelTime(900), NetNs::new(4_026_531_840))
    );
    assert_eq!(t.until, KernelTime(8_000));
    assert_eq!(c.key.to_string(), "tcp 127.0.0.1:40000 -> 192.0.2.7:443");
    let owner = c.owner.unwrap();
    assert_eq!((owner.pid, owner.name.as_str(), owner.uid), (4242, "curl", 1000));
    assert_eq!((owner.start_time_ns, owner.cgroup_id, c.provenance), (5, CgroupId::new(6), Provenance::Seen));
    let actor = t.actor.unwrap();
    assert_eq!((actor.pid, actor.name.as_str(), actor.uid), (4243, "worker", 1001));
    assert_eq!((t.bytes, t.calls, t.total_bytes, t.total_packets), (300, 2, 5_000_000_000, 9));
    assert_eq!((t.rtt, t.direction), (Some(Duration::from_micros(1234)), Direction::Out));
}

#[test]
fn each_kind_of_transfer_becomes_its_own_variant_and_zero_rtt_means_none() {
    for (kind, expected) in EventKind::ALL.into_iter().take(4).enumerate() {
        let protocol = if kind < 2 { 6 } else { 17 };
        let record = Bytes::transfer(kind as u32, 0, 4, protocol, &[1, 2, 3, 4], &[5, 6, 7, 8]);
        let decoded = event(&record.0).unwrap();
        assert_eq!(decoded.kind(), Some(expected));
        let t = decoded.transfer().unwrap();
        let direction = if kind % 2 == 0 { Direction::Out } else { Direction::In };
        assert_eq!((t.rtt, t.direction), (None, direction));
        assert_eq!(CollectorEvent::from(*t), decoded, "what its fields say");
    }
}

/// Records that fit the fast path go there, and give the same event as on the full path.
#[test]
fn the_event_is_the_same_wherever_the_record_lies_and_whatever_its_names_are() {
    let fast = |name: &[u8]| {
        let mut record = Bytes::transfer(1, 7, 4, 6, &[10, 0, 0, 1], &[10, 0, 0, 2]).0;
        // The names of owner and actor.
        for at in [104, 144] {
            record[at..at + 16].copy_from_slice(&Bytes::new().padded(name, 16).0);
        }
        record
    };
    let at = |record: &[u8], start: usize| {
        let mut bytes = [0_u8; 216];
        let start = bytes.as_ptr().align_offset(8) + start;
        bytes[start..start + 200].copy_from_slice(record);
        event(&bytes[start..start + 200])
    };
    let names: [(&[u8], &str); 5] = [
        (b"curl", "curl"),
        (b"curl\0left over", "curl"),
        (b"fifteen letters", "fifteen letters"),
        (b"sixteen letters!", "sixteen letters"),
        (b"a\xffb", "a?b"),
    ];
    for (name, expected) in names {
        let record = fast(name);
        let Ok(CollectorEvent::TcpRecv(t)) = at(&record, 0) else { panic!("{expected}") };
        assert_eq!(t.actor.map(|actor| actor.name), Some(expected.into()));
        assert_eq!(t.connection.owner.map(|owner| owner.name), Some(expected.into()));
        assert_eq!(at(&record, 0), at(&record, 1));
    }
}

#[test]
fn ipv6_stays_ipv6_and_mapped_addresses_become_ipv4() {
    let v6 = |last: u8| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
    let key = |local: &[u8], remote: &[u8]| {
        event(&Bytes::transfer(2, 0, 6, 17, local, remote).0).unwrap().connection().unwrap().key.to_string()
    };
    assert_eq!(key(&v6(1), &v6(2)), "udp [2001:db8::1]:40000 -> [2001:db8::2]:443");
    assert_eq!(key(&mapped, &mapped), "udp 10.1.2.3:40000 -> 10.1.2.3:443");
    assert_eq!(key(&[0; 16], &mapped), "udp 0.0.0.0:40000 -> 10.1.2.3:443");
}

#[test]
fn a_state_change_carries_states_error_and_totals() {
    let Ok(CollectorEvent::TcpStateChange(s)) = event(&Bytes::state(4, 1, 111, 2, 7, 1).0) else { panic!() };
    assert_eq!((s.old_state, s.new_state, s.error), (TcpState::SynSent, TcpState::Close, Some(111)));
    assert_eq!(s.connection.provenance, Provenance::Inherited);
    assert_eq!(s.totals, Some(Totals { bytes_in: 11, bytes_out: 22, packets_in: 33, packets_out: 44 }));
    assert_eq!(s.rtt, Some(Duration::from_micros(250)));
    let Ok(CollectorEvent::TcpStateChange(s)) = event(&Bytes::state(4, 0, 0, 7, 99, 0).0) else { panic!() };
    assert_eq!((s.new_state, s.error, s.totals), (TcpState::Unknown(99), None, None));
    assert_eq!(s.connection.provenance, Provenance::Unknown);
}

#[test]
fn an_end_carries_final_totals() {
    let ended = |end, error, lasted_ns| {
        let record = Bytes::end(5, 2, error, [0, 0, 1, end], lasted_ns);
        let Ok(CollectorEvent::Closed(c)) = event(&record.0) else { panic!() };
        c
    };
    let c = ended(2, 104, 5_000);
    assert_eq!(c.totals, Totals { bytes_in: 11, bytes_out: 22, packets_in: 33, packets_out: 44 });
    let micros = |us| Some(Duration::from_micros(us));
    assert_eq!((c.rtt, c.min_rtt, c.retransmits), (micros(250), micros(70), 3));
    assert_eq!((c.reason, c.error), (Some(CloseReason::Reset), Some(104)));
    assert_eq!(c.duration, Some(Duration::from_micros(5)));
    assert_eq!((ended(0, 0, 0).reason, ended(0, 0, 0).duration, ended(0, 0, 0).error), (None, None, None));
    use CloseReason::{Aborted, Orderly, TimedOut};
    assert_eq!([1, 3, 4].map(|end| ended(end, 0, 0).reason.unwrap()), [Orderly, TimedOut, Aborted]);
    assert!(event(&Bytes::end(5, 2, 0, [0, 0, 1, 5], 0).0).is_err(), "end 5");
}

#[test]
fn a_retransmission_carries_its_state_and_both_counts() {
    let record = Bytes::state(6, 2, 0, 2, 2, 2).0;
    assert_eq!(record.len(), 184);
    let Ok(CollectorEvent::TcpRetransmit(r)) = event(&record) else { panic!("{:?}", event(&record)) };
    assert_eq!((r.state, r.segments, r.total_segments), (TcpState::SynSent, 2, 3));
    assert_eq!(r.connection.owner.map(|owner| owner.pid), Some(4242));
    assert!(is_of_state(&record) && !is_end(&record));
    assert_eq!(derived_event(&event(&record).unwrap(), &record), None);
}

#[test]
fn bytes_that_are_in_no_report_are_noticed_at_the_end() {
    let unbalanced = |kind, flags| {
        let record = Bytes::end(kind, 2, 0, [1, 7, flags, 1], 1).0;
        has_audit_mismatch(&event(&record).unwrap(), &record)
    };
    assert!(!unbalanced(5, 1) && unbalanced(5, 5));
    assert!(!unbalanced(4, 5), "the connection goes on");
}

#[test]
fn state_changes_make_derived_events() {
    let of = |error, old, new, flags| {
        let record = Bytes::state(4, 2, error, old, new, flags).0;
        derived_event(&event(&record).unwrap(), &record)
    };
    let opened = |old, flags| match of(0, old, 1, flags) {
        Some(CollectorEvent::Opened(o)) => (o.role, o.rtt),
        other => panic!("{other:?}"),
    };
    let rtt = Some(Duration::from_micros(250));
    let roles = [Role::Client, Role::Server, Role::Client];
    assert_eq!([opened(2, 2), opened(3, 0), opened(3, 3)], roles.map(|role| (role, rtt)));
    let failed = |error| match of(error, 2, 7, 2) {
        Some(CollectorEvent::ConnectFailed(f)) => (f.reason.as_str(), f.error.unwrap_or(0)),
        other => panic!("{other:?}"),
    };
    for (error, reason) in [
        (0, "aborted"),
        (111, "refused"),
        (104, "reset"),
        (110, "timed_out"),
        (113, "unreachable"),
        (99, "no_local_port"),
        (13, "forbidden"),
        (5, "other"),
    ] {
        assert_eq!(failed(error), (reason, error as i32));
    }
    assert_eq!([of(0, 1, 7, 0), of(0, 7, 2, 0), of(0, 1, 8, 0)], [None, None, None]);
    let duration = |old| {
        let record = Bytes::end(4, 2, 111, [old, 7, 2, 4], 3_000).0;
        match derived_event(&event(&record).unwrap(), &record) {
            Some(CollectorEvent::ConnectFailed(f)) => f.duration,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!([duration(2), duration(3)], [Some(Duration::from_micros(3)), None]);
    // It has failed without a change.
    match event(&Bytes::state(4, 2, 101, 7, 7, 2).0) {
        Ok(CollectorEvent::ConnectFailed(f)) => {
            assert_eq!((f.reason.as_str(), f.error), ("unreachable", Some(101)))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_kernel_is_no_process_and_has_a_name() {
    let record = |pid, comm: &[u8]| {
        let bytes = Bytes::new().u32(0).u32(0).connection(4, 6, 2, &[], &[]).process(0, 0, pid, 0, comm);
        bytes.u64(1).u64(1).u64(1).u64(1).u32(1).u32(0).0
    };
    let actor = |pid, comm: &[u8]| match event(&record(pid, comm)) {
        Ok(CollectorEvent::TcpSend(t)) => t.actor,
        other => panic!("{other:?}"),
    };
    assert_eq!(actor(0, b""), None);
    assert!(actor(0, b"kernel").is_some_and(|a| a.is_kernel() && a.name == "kernel"));
    assert!(actor(7, b"x").is_some_and(|a| !a.is_kernel()));
}

#[test]
fn garbage_is_named_and_never_decoded() {
    let good = Bytes::transfer(0, 0, 4, 6, &[], &[]).0;
    assert_eq!(event(&[]), Err(Undecodable::UnknownKind));
    assert_eq!(event(&[0, 0, 0]), Err(Undecodable::UnknownKind));
    assert_eq!(event(&Bytes::new().u32(7).padded(&[], 188).0), Err(Undecodable::UnknownKind));
    assert_eq!(event(&Bytes::new().u32(u32::MAX).0), Err(Undecodable::UnknownKind));
    let malformed = Err(Undecodable::Malformed(EventKind::TcpSend));
    for len in 4..good.len() {
        assert_eq!(event(&good[..len]), malformed, "{len} bytes");
    }
    let longer = [good.as_slice(), &[0]].concat();
    assert_eq!(event(&longer), malformed);
    assert_eq!(event(&Bytes::transfer(0, 0, 5, 6, &[], &[]).0), malformed, "family 5");
    assert_eq!(event(&Bytes::transfer(0, 0, 4, 7, &[], &[]).0), malformed, "protocol 7");
    assert_eq!(
        event(&Bytes::state(4, 4, 0, 1, 2, 0).0),
        Err(Undecodable::Malformed(EventKind::TcpStateChange)),
        "provenance 4"
    );
}

#[test]
fn no_random_bytes_make_the_decoder_panic() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20_000 {
        let len = [0, 4, 100, 184, 192, 200][(next() % 6) as usize];
        let mut record: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        if let Some(kind) = record.first_chunk_mut::<4>() {
            *kind = ((next() % 9) as u32).to_ne_bytes();
        }
        drop(event(&record));
    }
}

#[test]
fn losses_have_a_kind_and_a_place_and_only_news_is_reported() {
    let counters = tt_counters { ring: [100, 1, 2, 3, 4, 110, 6], storage: [112, 1, 2, 3, 4, 5, 6] };
    let table = losses(&counters);
    assert_eq!(table.get(EventKind::TcpSend, LossPlace::Ring), 100);
    assert_eq!(table.get(EventKind::Closed, LossPlace::Ring), 110);
    assert_eq!(table.get(EventKind::TcpSend, LossPlace::Storage), 112);
    assert_eq!(table.get(EventKind::TcpSend, LossPlace::Channel), 0);
    assert_eq!(loss_reports(&table, &table), []);
    let mut more = table;
    more.add(EventKind::UdpRecv, LossPlace::Ring, 5);
    assert_eq!(loss_reports(&table, &more), [Lost::new(EventKind::UdpRecv, LossPlace::Ring, 5)]);
}
