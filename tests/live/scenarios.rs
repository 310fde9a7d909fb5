// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of scenarios is complete, and names tests that exist.

use crate::harness::{SCENARIOS, scenarios};

const SOURCES: [&str; 10] = [
    include_str!("datagrams.rs"),
    include_str!("ends.rs"),
    include_str!("existing.rs"),
    include_str!("handover.rs"),
    include_str!("lifecycle.rs"),
    include_str!("owner.rs"),
    include_str!("paths.rs"),
    include_str!("reasons.rs"),
    include_str!("tcp.rs"),
    include_str!("udp.rs"),
];

fn is_test(name: &str) -> bool {
    SOURCES.iter().any(|source| source.contains(&format!("#[test]\nfn {name}()")))
}

#[test]
fn every_scenario_has_a_row_and_tests() {
    let numbers: Vec<_> = scenarios().map(|row| row[0].parse::<u32>().unwrap()).collect();
    assert_eq!(numbers, (1..=60).collect::<Vec<_>>());
    for row in scenarios() {
        assert_eq!(row.len(), 7, "{row:?}");
        for name in row[3].split(", ") {
            let name = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')).unwrap();
            assert!(is_test(name), "scenario {} names {name}, which is no test", row[0]);
        }
        for answer in &row[4..] {
            let is_explained = SCENARIOS.contains(&format!("\n- **{answer}**: "));
            assert!(*answer == "exact" || is_explained, "scenario {}: {answer}", row[0]);
        }
    }
}
