//! Floats that arrive with the bits that they had: JSON knows no NaN and no infinity. As a type, and for
//! `#[serde(with = "crate::distributed::exact")]`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A float that travels by its bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Exact(#[serde(with = "self")] pub f64);

/// Writes the bits of `value`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    value.to_bits().serialize(serializer)
}

/// Reads what [`serialize`] has written.
///
/// # Errors
/// Those of the deserializer.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    u64::deserialize(deserializer).map(f64::from_bits)
}
