// SPDX-License-Identifier: MIT OR Apache-2.0
//! The project's documents, for reading beside the interface. There is nothing here to use.
//!
//! - [`embedding`]: threads, signals, fork, event loops, tokio, backpressure, losses
//! - [`numbers`]: what each number counts, and when it is partial
//! - [`backends`], [`limits`], [`scenarios`]: which backend runs where, and what each one sees
//! - [`privileges`], [`security`]: capabilities, containers, Kubernetes, lockdown; threats
//! - [`json`]: the output of the example program, field by field
//! - [`troubleshooting`]: each message, and what to do
//! - [`design`], [`decisions`], [`measurements`]: how it works, why so, and what it costs

/// Documents link to each other by their files, as a repository wants it. Definitions that come first lead to the modules here.
macro_rules! links {
    ($($label:literal => $page:literal),+ $(,)?) => {
        concat!($("[", $label, "]: crate::_docs::", $page, "\n"),+)
    };
}

macro_rules! documents {
    ($($name:ident: $file:literal),+ $(,)?) => {$(
        #[doc = links!(
            "DESIGN.md" => "design",
            "SECURITY.md" => "security",
            "backends.md" => "backends",
            "decisions.md" => "decisions",
            "embedding.md" => "embedding",
            "json.md" => "json",
            "limits.md" => "limits",
            "measurements.md" => "measurements",
            "numbers.md" => "numbers",
            "numbers.md#existing-connections" => "numbers#existing-connections",
            "numbers.md#losses" => "numbers#losses",
            "numbers.md#processes" => "numbers#processes",
            "numbers.md#rates" => "numbers#rates",
            "numbers.md#the-audit" => "numbers#the-audit",
            "privileges.md" => "privileges",
            "privileges.md#containers" => "privileges#containers",
            "scenarios.md" => "scenarios",
            "troubleshooting.md" => "troubleshooting",
        )]
        #[doc = include_str!(concat!("../", $file))]
        pub mod $name {}
    )+};
}

documents! {
    backends: "docs/backends.md",
    decisions: "docs/decisions.md",
    design: "DESIGN.md",
    embedding: "docs/embedding.md",
    json: "docs/json.md",
    limits: "docs/limits.md",
    measurements: "docs/measurements.md",
    numbers: "docs/numbers.md",
    privileges: "docs/privileges.md",
    scenarios: "tests/scenarios.md",
    security: "SECURITY.md",
    troubleshooting: "docs/troubleshooting.md",
}
