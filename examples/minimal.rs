// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connections that exist now, and then each transfer as it happens.
//!
//! ```sh
//! cargo build --example minimal && sudo target/debug/examples/minimal 5    # seconds
//! ```

use std::time::{Duration, Instant};
use std::{env, error::Error};
use tcptop::LinuxCollector;

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = env::args().nth(1).map_or(Ok(5), |text| text.parse())?;

    // Tracing is live when this returns: no connection made afterwards is missed.
    let (collector, events) = LinuxCollector::builder().spawn()?;

    let existing = collector.bootstrap_existing()?;
    for row in &existing {
        // Processes choose their names: escaped() keeps control characters from the terminal.
        let name = row.process_name().unwrap_or_default();
        println!("{} {}: {} bytes in, {} out", row.key, name.escaped(), row.bytes_in, row.bytes_out);
    }
    println!("{} connections exist; transfers follow", existing.len());

    let end = Instant::now() + Duration::from_secs(seconds);
    while let Ok(event) = events.recv_deadline(end) {
        if let Some(transfer) = event.transfer() {
            let name = transfer.actor.unwrap_or_default().name;
            let (key, bytes) = (transfer.connection.key, transfer.bytes);
            println!("{key} {}: {bytes} bytes {}", name.escaped(), transfer.direction);
        }
    }
    // Dropping both the collector and the events stops tracing.
    Ok(())
}
