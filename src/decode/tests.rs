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
            .process(5, 6, 4242, 1000, b"curl")
            .u32(4_026_531_840)
            .u16(40_000)
            .u16(443)
            .padded(local, 16)
            .padded(remote, 16)
            .u8(family)
            .u8(protocol)
            .u8(provenance)
            .padded(&[], 5)
    }
    fn transfer(kind: u32, rtt: u32, family: u8, protocol: u8, local: &[u8], remote: &[u8]) -> Self {
        Self::new()
            .u32(kind)
            .u32(rtt)
            .connection(family, protocol, 2, local, remote)
            .process(7, 8, 4243, 1001, b"worker")
            .u64(300)
            .u64(5_000_000_000)
            .u64(9)
            .u32(2)
            .u32(0)
    }
    fn state(kind: u32, provenance: u8, error: u32, old: u8, new: u8, has_totals: u8) -> Self {
        Self::new()
            .u32(kind)
            .u32(250)
            .connection(4, 6, provenance, &[10, 0, 0, 1], &[10, 0, 0, 2])
            .u64(11)
            .u64(22)
            .u64(33)
            .u64(44)
            .u32(error)
            .u8(old)
            .u8(new)
            .u8(has_totals)
            .u8(0)
    }
}

#[test]
fn a_tcp_transfer_carries_every_field_over() {
    let record = Bytes::transfer(0, 1234, 4, 6, &[127, 0, 0, 1], &[192, 0, 2, 7]);
    assert_eq!(record.0.len(), 192);
    let Ok(CollectorEvent::TcpSend(t)) = event(&record.0) else { panic!("{:?}", event(&record.0)) };
    let c = t.connection;
    assert_eq!((c.time, c.socket, c.since, c.netns), (KernelTime(1_000), 77, KernelTime(900), 4_026_531_840));
    assert_eq!(c.key.to_string(), "tcp 127.0.0.1:40000 -> 192.0.2.7:443");
    let owner = c.owner.unwrap();
    assert_eq!((owner.pid, owner.name.as_str(), owner.uid), (4242, "curl", 1000));
    assert_eq!((owner.start_time_ns, owner.cgroup_id, c.provenance), (5, 6, Provenance::Seen));
    let actor = t.actor.unwrap();
    assert_eq!((actor.pid, actor.name.as_str(), actor.uid), (4243, "worker", 1001));
    assert_eq!((t.bytes, t.calls, t.total_bytes, t.total_packets), (300, 2, 5_000_000_000, 9));
    assert_eq!(t.rtt_us, Some(1234));
}

#[test]
fn each_kind_of_transfer_becomes_its_own_variant_and_zero_rtt_means_none() {
    for (kind, expected) in EventKind::ALL.into_iter().take(4).enumerate() {
        let protocol = if kind < 2 { 6 } else { 17 };
        let record = Bytes::transfer(kind as u32, 0, 4, protocol, &[1, 2, 3, 4], &[5, 6, 7, 8]);
        let decoded = event(&record.0).unwrap();
        assert_eq!(decoded.kind(), Some(expected));
        let (CollectorEvent::TcpSend(t)
        | CollectorEvent::TcpRecv(t)
        | CollectorEvent::UdpSend(t)
        | CollectorEvent::UdpRecv(t)) = decoded
        else {
            panic!("{decoded:?}")
        };
        assert_eq!(t.rtt_us, None);
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
    assert_eq!(s.rtt_us, Some(250));
    let Ok(CollectorEvent::TcpStateChange(s)) = event(&Bytes::state(4, 0, 0, 7, 99, 0).0) else { panic!() };
    assert_eq!((s.new_state, s.error, s.totals), (TcpState::Unknown(99), None, None));
    assert_eq!(s.connection.provenance, Provenance::Unknown);
}

#[test]
fn an_end_carries_final_totals() {
    let Ok(CollectorEvent::Closed(c)) = event(&Bytes::state(5, 2, 0, 0, 0, 1).0) else { panic!() };
    assert_eq!(c.totals, Totals { bytes_in: 11, bytes_out: 22, packets_in: 33, packets_out: 44 });
}

#[test]
fn garbage_is_named_and_never_decoded() {
    let good = Bytes::transfer(0, 0, 4, 6, &[], &[]).0;
    assert_eq!(event(&[]), Err(Undecodable::UnknownKind));
    assert_eq!(event(&[0, 0, 0]), Err(Undecodable::UnknownKind));
    assert_eq!(event(&Bytes::new().u32(6).padded(&[], 188).0), Err(Undecodable::UnknownKind));
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
        event(&Bytes::state(4, 3, 0, 1, 2, 0).0),
        Err(Undecodable::Malformed(EventKind::TcpStateChange)),
        "provenance 3"
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
        let len = [0, 4, 160, 192, 200][(next() % 5) as usize];
        let mut record: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        if let Some(kind) = record.first_chunk_mut::<4>() {
            *kind = ((next() % 8) as u32).to_ne_bytes();
        }
        drop(event(&record));
    }
}

#[test]
fn the_cpus_losses_add_up_and_only_news_is_reported() {
    let cpu = |first: u64| (0..12).fold(Bytes::new(), |bytes, i| bytes.u64(first + i)).0;
    let (a, b) = (cpu(0), cpu(100));
    let table = losses([a.as_slice(), b.as_slice(), &[1, 2, 3]]);
    assert_eq!(table.get(EventKind::TcpSend, LossPlace::Ring), 100);
    assert_eq!(table.get(EventKind::Closed, LossPlace::Ring), 110);
    assert_eq!(table.get(EventKind::TcpSend, LossPlace::Storage), 112);
    assert_eq!(table.get(EventKind::TcpSend, LossPlace::Channel), 0);
    assert_eq!(loss_reports(&table, &table), []);
    let mut more = table;
    more.add(EventKind::UdpRecv, LossPlace::Ring, 5);
    assert_eq!(loss_reports(&table, &more), [Lost::new(EventKind::UdpRecv, LossPlace::Ring, 5)]);
}
