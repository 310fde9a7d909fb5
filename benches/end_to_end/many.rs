// SPDX-License-Identifier: MIT OR Apache-2.0
//! One ring for many processors: how long a record takes there, reckoned from what it takes on this machine.

use crate::flood;
use std::time::Duration;

const PROCESSORS: [u32; 3] = [16, 64, 256];
/// Records per second that each of them writes.
const RATES: [u32; 4] = [1_000, 10_000, 30_000, 100_000];

pub(crate) fn print(name: &str) {
    let [alone, together] = [1, 2].map(flood::crowd);
    println!("{name:<60} {:>22}", format!("{alone:.0?} alone, {together:.0?} beside another"));
    // While two processors do nothing else the ring takes two records in the time that each needs for one.
    let service = together / 2;
    for processors in PROCESSORS {
        let at = |rate| {
            let pause = Duration::from_secs(1) / rate;
            let time = time_of_record(processors, pause, service);
            format!("{:.1?} at {rate}/s", Duration::from_nanos(time as u64))
        };
        println!("    reckoned for {processors} processors, each: {}", RATES.map(at).join(", "));
    }
}

/// Nanoseconds from reserving a record to having written it, where so many processors write one, pause, and so on: mean
/// value analysis of a queue with one server, the ring's lock, and customers that come back.
fn time_of_record(processors: u32, pause: Duration, service: Duration) -> f64 {
    let (pause, service) = (pause.as_nanos() as f64, service.as_nanos() as f64);
    let (mut time, mut waiting) = (0.0, 0.0);
    for customers in 1..=processors {
        // Who comes finds what one customer less would leave waiting.
        time = service * (1.0 + waiting);
        waiting = time * f64::from(customers) / (pause + time);
    }
    time
}
