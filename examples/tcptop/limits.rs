// SPDX-License-Identifier: MIT OR Apache-2.0
//! What runs, and what it does not see, in words.

use tcptop::{Capabilities, Feature, Visibility};

/// The first line says what runs. Existing connections count if they were `searched` for.
pub(crate) fn lines(can: &Capabilities, searched: bool) -> Vec<String> {
    let mut lines = vec![format!("tracing with {} on Linux {}", can.backend(), can.kernel())];
    lines.extend(can.self_test().iter().filter(|check| check.has_failed()).map(|check| format!("  {check}")));
    lines.extend(can.features().filter_map(|(feature, how)| match how {
        Visibility::Exact => None,
        _ if feature == Feature::Existing && !searched => None,
        how => Some(format!("  {}: {how}", feature.as_str().replace('_', " "))),
    }));
    lines.extend(can.missing_programs().iter().map(|program| format!("  without {program}")));
    lines.extend(can.rejected_backends().iter().map(|backend| format!("  not with {backend}")));
    lines
}
