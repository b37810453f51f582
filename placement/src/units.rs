//! Quantities that carry their unit, so that bytes, tokens and layers can't be taken for one another.

mod size;

use std::borrow::Cow;
use std::fmt;
use std::iter::Sum;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A number of bytes. Sums of bytes that come from outside (a header, a status) are made with [`Bytes::checked_add`]; `Sum` and
/// [`Bytes::saturating_add`] saturate, so that a sum too large for 64 bits never looks small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const ZERO: Bytes = Bytes(0);
    pub const MAX: Bytes = Bytes(u64::MAX);

    pub const fn mib(mib: u64) -> Bytes {
        Bytes(mib << 20)
    }

    pub const fn gib(gib: u64) -> Bytes {
        Bytes(gib << 30)
    }

    pub fn checked_add(self, other: Bytes) -> Option<Bytes> {
        self.0.checked_add(other.0).map(Bytes)
    }

    pub fn checked_mul(self, factor: u64) -> Option<Bytes> {
        self.0.checked_mul(factor).map(Bytes)
    }

    pub fn saturating_add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }

    pub fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }

    pub fn as_mib(self) -> f64 {
        self.0 as f64 / (1u64 << 20) as f64
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        iter.fold(Bytes::ZERO, Bytes::saturating_add)
    }
}

/// The largest binary unit in which the number is at least one: `1.34 GiB`, `92.1 MiB`, `17 B`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        for (unit, shift) in UNITS {
            if self.0 >= 1 << shift {
                let value = self.0 as f64 / (1u64 << shift) as f64;
                let decimals = if value < 10.0 { 2 } else { 1 };
                return write!(f, "{value:.decimals$} {unit}");
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A number of tokens: a context length, a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tokens(pub u64);

impl Tokens {
    /// What a cache of this many tokens is allocated in: the next multiple of 256. `None` where that overflows.
    pub fn padded_to_256(self) -> Option<Tokens> {
        self.0.checked_next_multiple_of(256).map(Tokens)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of layers, counted as llama.cpp and Ollama count them: the blocks, and one more for the output layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerCount(pub u32);

impl fmt::Display for LayerCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An `int64` of at least zero, the widest integer that the Kubernetes API has.
pub fn unsigned(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": 0})
}

macro_rules! unsigned_json_schema {
    ($($name:ident),*) => {$(
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                unsigned(generator)
            }
        }
    )*};
}
unsigned_json_schema!(Bytes, Tokens, LayerCount);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_keeps_them_above_one() {
        assert_eq!(Bytes(17).to_string(), "17 B");
        assert_eq!(Bytes::mib(92).to_string(), "92.0 MiB");
        assert_eq!(Bytes(1_438_814_044).to_string(), "1.34 GiB");
        assert_eq!(Bytes(u64::MAX).to_string(), "16777216.0 TiB");
    }

    #[test]
    fn a_sum_too_large_for_64_bits_saturates() {
        assert_eq!([Bytes::MAX, Bytes(1)].into_iter().sum::<Bytes>(), Bytes::MAX);
    }

    #[test]
    fn a_context_is_padded_to_256_and_overflow_is_seen() {
        assert_eq!(Tokens(1).padded_to_256(), Some(Tokens(256)));
        assert_eq!(Tokens(256).padded_to_256(), Some(Tokens(256)));
        assert_eq!(Tokens(u64::MAX).padded_to_256(), None);
    }
}
