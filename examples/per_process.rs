// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many bytes each process has moved, once per second: what its connections had moved before is included.
//!
//! ```sh
//! cargo build --example per_process && sudo target/debug/examples/per_process 5    # seconds
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use std::{env, error::Error};
use tcptop::{ConnectionTable, KernelTime, LinuxCollector};

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = env::args().nth(1).map_or(Ok(5), |text| text.parse())?;
    let (collector, events) = LinuxCollector::builder().spawn()?;

    // Closed connections stay in the table for as long as this program runs, so that their bytes are not forgotten.
    let mut table = ConnectionTable::new().linger(Duration::MAX);
    table.merge_bootstrap(collector.bootstrap_existing()?);
    print_totals(0, &mut table);
    for second in 1..=seconds {
        let next = Instant::now() + Duration::from_secs(1);
        while let Ok(event) = events.recv_deadline(next) {
            table.apply(&event);
        }
        print_totals(second, &mut table);
    }
    Ok(())
}

fn print_totals(second: u64, table: &mut ConnectionTable) {
    let mut totals = BTreeMap::new();
    for row in table.records_at(KernelTime::now()) {
        let (bytes_in, bytes_out) = totals.entry(row.owner).or_insert((0, 0));
        *bytes_in += row.bytes_in;
        *bytes_out += row.bytes_out;
    }
    println!("after {second} s:");
    for (process, (bytes_in, bytes_out)) in totals {
        // No owner: the tracer has not seen which process holds the connection.
        let name = process.map_or("-".into(), |p| format!("{}[{}]", p.name.escaped(), p.pid));
        println!("  {name}: {bytes_in} bytes in, {bytes_out} out");
    }
}
