// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many bytes each process has moved, once per second. The totals of connections that existed before are included.
//!
//! ```sh
//! cargo build --example per_process && sudo target/debug/examples/per_process 5    # seconds
//! ```

use std::cmp::Reverse;
use std::time::{Duration, Instant};
use std::{env, error::Error};
use tcptop::{ConnectionTable, GroupBy, KernelTime, LinuxCollector};

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = env::args().nth(1).map_or(Ok(5), |text| text.parse())?;
    let (collector, events) = LinuxCollector::builder().spawn()?;

    let mut table = ConnectionTable::new();
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
    println!("after {second} s:");
    // Connections that have ended are in the sums, too. `GroupBy` also has remote hosts, cgroups and ports.
    let mut sums = table.sums(GroupBy::Process, KernelTime::now());
    sums.sort_by_key(|sum| Reverse(sum.new_bytes_in + sum.new_bytes_out));
    for sum in sums {
        println!("  {}: {} bytes in, {} out", sum.group, sum.bytes_in, sum.bytes_out);
    }
}
