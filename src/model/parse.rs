// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading a choice by its name.

/// A text names none of the values that there are.
///
/// ```
/// let error = "sctp".parse::<tcptop::Protocol>().unwrap_err();
/// assert_eq!(error.to_string(), "unknown protocol `sctp`: expected tcp or udp");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{}`: expected {expected}", .found.escape_debug())]
pub struct ParseError {
    what: &'static str,
    expected: &'static str,
    found: String,
}

impl ParseError {
    /// `found` is no `what`; these are.
    pub(crate) fn new(what: &'static str, expected: &'static str, found: &str) -> Self {
        Self { what, expected, found: found.into() }
    }
}

/// A type is read by the names that it is printed with.
macro_rules! from_str_by_name {
    ($type:ty, $all:expr, $what:literal, $expected:literal) => {
        impl std::str::FromStr for $type {
            type Err = $crate::model::ParseError;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                let named = $all.into_iter().find(|value: &$type| value.as_str() == name);
                named.ok_or_else(|| $crate::model::ParseError::new($what, $expected, name))
            }
        }
    };
}
pub(crate) use from_str_by_name;
