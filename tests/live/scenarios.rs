// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of scenarios is complete, and names tests that exist.

use crate::harness::{SCENARIOS, scenarios};

const SOURCES: [&str; 27] = [
    include_str!("cgroups.rs"),
    include_str!("collector.rs"),
    include_str!("connecting.rs"),
    include_str!("crowds.rs"),
    include_str!("datagrams.rs"),
    include_str!("ends.rs"),
    include_str!("existing.rs"),
    include_str!("foreign.rs"),
    include_str!("handover.rs"),
    include_str!("identity.rs"),
    include_str!("kernel.rs"),
    include_str!("lifecycle.rs"),
    include_str!("listeners.rs"),
    include_str!("namespaces.rs"),
    include_str!("once.rs"),
    include_str!("owner.rs"),
    include_str!("paths.rs"),
    include_str!("peers.rs"),
    include_str!("reasons.rs"),
    include_str!("redirected.rs"),
    include_str!("retransmits.rs"),
    include_str!("storm.rs"),
    include_str!("tcp.rs"),
    include_str!("udp.rs"),
    include_str!("unsent.rs"),
    include_str!("vanished.rs"),
    include_str!("wraps.rs"),
];

/// The text of a test, after its name.
fn body(test: &str) -> Option<&'static str> {
    let head = format!("#[test]\nfn {test}() {{\n");
    let (_, rest) = SOURCES.iter().find_map(|source| source.split_once(&head))?;
    rest.split_once("\n}\n").map(|(body, _)| body)
}

/// The tests that a row names.
fn tests(row: &[&'static str]) -> impl Iterator<Item = &'static str> {
    row[3].split(", ").map(|name| name.strip_prefix('`').and_then(|name| name.strip_suffix('`')).unwrap())
}

#[test]
fn every_scenario_has_a_row_and_tests() {
    let numbers: Vec<_> = scenarios().map(|row| row[0].parse::<u32>().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u32).collect::<Vec<_>>());
    for row in scenarios() {
        assert_eq!(row.len(), 7, "{row:?}");
        for name in tests(&row) {
            assert!(body(name).is_some(), "scenario {} names {name}, which is no test", row[0]);
        }
        for answer in &row[4..] {
            let is_explained = SCENARIOS.contains(&format!("\n- **{answer}**: "));
            assert!(*answer == "exact" || is_explained, "scenario {}: {answer}", row[0]);
        }
    }
}

/// A lesser answer that no test demands would be an excuse, and a test that asks for the answer of a scenario with no
/// lesser one has been forgotten. Only the scenario's own tests may ask.
#[test]
fn lesser_answers_are_those_that_tests_demand() {
    for row in scenarios() {
        let question = format!("answer({}, ", row[0]);
        let bodies: Vec<_> = tests(&row).filter_map(body).collect();
        let is_demanded = |body: &&str| body.contains(&question) && body.contains("Answer::Lesser");
        let has_lesser = row[4..].iter().any(|answer| *answer != "exact");
        assert_eq!(bodies.iter().any(is_demanded), has_lesser, "scenario {}: test and table", row[0]);
        let asked = |texts: &[&str]| texts.iter().map(|text| text.matches(&question).count()).sum::<usize>();
        assert_eq!(asked(&SOURCES), asked(&bodies), "scenario {}: asked for by other tests", row[0]);
    }
}
