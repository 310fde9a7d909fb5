// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program with an event loop of its own: epoll waits for tcptop's descriptor and for a timer. No further thread reads
//! events.
//!
//! ```sh
//! cargo build --example epoll && sudo target/debug/examples/epoll 5    # seconds
//! ```
//!
//! The functions are rustix's (features `event` and `time`). The descriptor works the same with libc, mio, polling and
//! GLib.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use std::time::Duration;
use std::{env, error::Error, mem::MaybeUninit};
use tcptop::{ConnectionTable, KernelTime, LinuxCollector};

const TRAFFIC: u64 = 0;
const SECOND: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let mut seconds: u64 = env::args().nth(1).map_or(Ok(5), |text| text.parse())?;

    let mut poller = LinuxCollector::builder().open()?;
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty())?;
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: second, it_value: second },
    )?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &poller, EventData::new_u64(TRAFFIC), EventFlags::IN)?;
    epoll::add(&epoll, &timer, EventData::new_u64(SECOND), EventFlags::IN)?;

    let mut table = ConnectionTable::new();
    table.merge_bootstrap(poller.bootstrap_existing()?);
    print(&mut table);
    while seconds > 0 {
        let mut room = [MaybeUninit::<Event>::uninit(); 2];
        let (ready, _) = epoll::wait(&epoll, &mut room, None)?;
        for event in ready {
            match event.data.u64() {
                // Without a timeout it takes what there is and does not wait.
                TRAFFIC => poller.poll(Duration::ZERO).iter().for_each(|event| table.apply(event)),
                _ => {
                    let mut expirations = [0; 8];
                    rustix::io::read(&timer, &mut expirations)?;
                    seconds = seconds.saturating_sub(u64::from_ne_bytes(expirations));
                    print(&mut table);
                }
            }
        }
    }
    Ok(())
}

fn print(table: &mut ConnectionTable) {
    let rows = table.snapshot(KernelTime::now());
    println!("{} connections", rows.len());
    for row in rows {
        println!("  {}: {} bytes in, {} out", row.key, row.bytes_in, row.bytes_out);
    }
}
