// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tracer as a part of a larger program: a struct owns collector, events and table, and starts and stops tracing.
//!
//! ```sh
//! cargo build --example tracer_in_a_struct && sudo target/debug/examples/tracer_in_a_struct 5    # seconds
//! ```

use std::time::Duration;
use std::{env, error::Error, thread};
use tcptop::{ConnectionTable, Events, KernelTime, LinuxCollector, Result};

/// It needs no lifetimes and can move to another thread. Dropping it stops tracing, because that drops the collector.
#[derive(Debug, Default)]
struct Monitor {
    tracer: Option<(LinuxCollector, Events)>,
    table: ConnectionTable,
}

impl Monitor {
    fn start(&mut self) -> Result<()> {
        let (collector, events) = LinuxCollector::builder().spawn()?;
        // First tracing, then the search: so no connection is missed in between.
        self.table.merge_bootstrap(collector.bootstrap_existing()?);
        self.tracer = Some((collector, events));
        Ok(())
    }

    /// Applies the events that have come since the last call. Does not wait. Call it often enough: the channel holds
    /// 32,768 events.
    fn update(&mut self) {
        if let Some((_, events)) = &self.tracer {
            events.try_iter().for_each(|event| self.table.apply(&event));
        }
    }

    /// Applies the last events, too. The table keeps its rows.
    fn stop(&mut self) -> Result<()> {
        if let Some((mut collector, events)) = self.tracer.take() {
            collector.stop()?;
            events.iter().for_each(|event| self.table.apply(&event));
        }
        Ok(())
    }

    fn print(&mut self, title: &str) {
        println!("{title}");
        for row in self.table.snapshot(KernelTime::now()) {
            println!("  {}: {} bytes in, {} out", row.key, row.bytes_in, row.bytes_out);
        }
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let seconds = env::args().nth(1).map_or(Ok(5), |text| text.parse())?;
    let mut monitor = Monitor::default();
    monitor.start()?;
    monitor.print("tracing");
    for _ in 0..seconds {
        thread::sleep(Duration::from_secs(1));
        monitor.update();
    }
    monitor.stop()?;
    monitor.print("stopped");
    Ok(())
}
