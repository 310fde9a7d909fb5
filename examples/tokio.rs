// SPDX-License-Identifier: MIT OR Apache-2.0
//! tcptop in a tokio program: tokio waits for the poller's descriptor. Compared with a handler that sends events into a
//! channel of tokio's, this needs no further thread, and no rule for a channel that is full.
//!
//! ```sh
//! cargo build --example tokio && sudo target/debug/examples/tokio 5    # seconds
//! ```

use std::time::Duration;
use std::{env, error::Error};
use tcptop::{ConnectionTable, KernelTime, LinuxCollector};
use tokio::io::unix::AsyncFd;
use tokio::time::{interval, sleep};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let seconds = env::args().nth(1).map_or(Ok(5), |text| text.parse())?;

    // Both calls take some hundred milliseconds, so they do not run on a thread of the runtime.
    let start = || -> tcptop::Result<_> {
        let poller = LinuxCollector::builder().open()?;
        let existing = poller.bootstrap_existing()?;
        Ok((poller, existing))
    };
    let (poller, existing) = tokio::task::spawn_blocking(start).await??;
    // SAFETY: a poller has the same descriptor from its start until it is dropped.
    let mut poller = unsafe { AsyncFd::register(poller)? };
    let mut table = ConnectionTable::new();
    table.merge_bootstrap(existing);

    let mut ticks = interval(Duration::from_secs(1));
    let end = sleep(Duration::from_secs(seconds));
    tokio::pin!(end);
    loop {
        tokio::select! {
            ready = poller.readable_mut() => {
                let mut ready = ready?;
                for event in ready.get_inner_mut().poll(Duration::ZERO) {
                    table.apply(&event);
                }
                ready.clear_ready();
            }
            _ = ticks.tick() => print(&mut table),
            () = &mut end => break,
        }
    }
    print(&mut table);
    Ok(())
}

fn print(table: &mut ConnectionTable) {
    let rows = table.snapshot(KernelTime::now());
    println!("{} connections", rows.len());
    for row in rows {
        println!("  {}: {} bytes in, {} out", row.key, row.bytes_in, row.bytes_out);
    }
}
