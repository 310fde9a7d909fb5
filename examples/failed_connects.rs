// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which process could not connect to which peer, why, and how long it had tried.
//!
//! ```sh
//! cargo build --example failed_connects && sudo target/debug/examples/failed_connects 30    # seconds
//! ```

use std::time::{Duration, Instant};
use std::{env, error::Error};
use tcptop::{CollectorEvent, ConnectFailed, LinuxCollector, Protocol};

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = env::args().nth(1).map_or(Ok(30), |text| text.parse())?;
    // The kernel leaves out what the filter does not pass.
    let (_collector, events) = LinuxCollector::builder().protocol(Protocol::Tcp).spawn()?;
    println!("waiting for connects that fail");

    let end = Instant::now() + Duration::from_secs(seconds);
    while let Ok(event) = events.recv_deadline(end) {
        if let CollectorEvent::ConnectFailed(failure) = event {
            print(&failure);
        }
    }
    Ok(())
}

fn print(failure: &ConnectFailed) {
    let owner = failure.connection.owner;
    let process = owner.map_or("-".into(), |p| format!("{}[{}]", p.name.escaped(), p.pid));
    print!("{process} to {}: {}", failure.connection.key.remote(), failure.reason);
    if let Some(errno) = failure.error {
        print!(", {}", std::io::Error::from_raw_os_error(errno));
    }
    // A connect that fails at once, for instance without a route, has no duration.
    match failure.duration {
        Some(duration) => println!(", after {duration:.1?}"),
        None => println!(),
    }
}
