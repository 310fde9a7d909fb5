// SPDX-License-Identifier: MIT OR Apache-2.0
//! Times that may be unknown, serialized as whole microseconds: `#[serde(with = "crate::model::micros")]`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

pub(crate) fn serialize<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    let micros = time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    micros.serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_micros))
}
