// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the moment at which the kernel saw an event to the moment at which its receiver has it.

use crate::loads::{Load, UdpBlast};
use std::fmt;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;
use tcptop::{CollectorEvent, Granularity, KernelTime, LinuxCollector, Transfer};

pub(crate) struct Delay {
    median: Duration,
    p99: Duration,
}

impl Delay {
    fn of(mut delays: Vec<Duration>) -> Self {
        delays.sort();
        let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
        Self { median: at(50), p99: at(99) }
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.2?}, p99 {:.2?}", self.median, self.p99)
    }
}

/// One call, then a pause in which the reader goes to sleep.
pub(crate) fn rare() -> Delay {
    measure(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("an address");
        for _ in 0..50 {
            socket.send_to(&[1], address).expect("loopback takes it");
            thread::sleep(Duration::from_millis(151));
        }
    })
}

/// As many calls as there can be.
pub(crate) fn many() -> Delay {
    measure(|| {
        UdpBlast::new().run(Duration::from_secs(2));
    })
}

fn measure(traffic: impl FnOnce() + Send + 'static) -> Delay {
    let (mut collector, events) = LinuxCollector::builder()
        .granularity(Granularity::PerCall)
        .channel_capacity(1 << 20)
        .spawn()
        .expect("tracing needs root");
    let traffic = thread::spawn(traffic);
    let receiver = thread::spawn(move || {
        let delay = |event: CollectorEvent| {
            let (CollectorEvent::UdpSend(Transfer { connection, .. })
            | CollectorEvent::UdpRecv(Transfer { connection, .. })) = event
            else {
                return None;
            };
            Some(KernelTime::now().saturating_since(connection.time))
        };
        events.iter().filter_map(delay).collect::<Vec<_>>()
    });
    traffic.join().expect("the traffic ends");
    tcptop::NetworkCollector::stop(&mut collector).expect("stops");
    Delay::of(receiver.join().expect("ends with the channel"))
}
