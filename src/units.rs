//! Byte quantities: `u64` everywhere, checked rounding, and one way to print and to parse them.

use std::fmt;
use std::str::FromStr;

/// 1024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1024 MiB.
pub const GIB: u64 = 1 << 30;
/// 1024 GiB.
pub const TIB: u64 = 1 << 40;

/// The least multiple of `align` that is at least `value`; `None` when it does not fit in a `u64`.
///
/// `align` must be a power of two.
#[inline]
pub const fn align_up(value: u64, align: u64) -> Option<u64> {
    debug_assert!(align.is_power_of_two());
    match value.checked_add(align - 1) {
        Some(sum) => Some(sum & !(align - 1)),
        None => None,
    }
}

/// The greatest multiple of `align` that is at most `value`. `align` must be a power of two.
#[inline]
pub const fn align_down(value: u64, align: u64) -> u64 {
    debug_assert!(align.is_power_of_two());
    value & !(align - 1)
}

/// A number of bytes that prints as people read it (`1.50 GiB`) and parses what people write
/// (`1.5GiB`, `512m`, `4096`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        let text = match UNITS.iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) if self.0.is_multiple_of(*unit) => format!("{} {name}", self.0 / unit),
            Some((unit, name)) => format!("{:.2} {name}", self.0 as f64 / *unit as f64),
            None => format!("{} B", self.0),
        };
        f.pad(&text)
    }
}

/// Why a text is not a number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a size: {reason} (write for example 4096, 512MiB or 1.5g)")]
pub struct ParseBytesError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// Units are powers of 1024, in any case, with or without `i` and `b`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| ParseBytesError { text: text.chars().take(40).collect(), reason };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => KIB,
            "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => GIB,
            "t" | "tb" | "tib" => TIB,
            _ => return Err(error("unknown unit")),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(Bytes).ok_or_else(|| error("larger than 2^64"));
        }
        let value: f64 = number.parse().map_err(|_| error("no number before the unit"))?;
        let bytes = value * unit as f64;
        if bytes >= u64::MAX as f64 { Err(error("larger than 2^64")) } else { Ok(Bytes(bytes.round() as u64)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_and_refuses_overflow() {
        assert_eq!(align_up(0, 512), Some(0));
        assert_eq!(align_up(1, 512), Some(512));
        assert_eq!(align_up(u64::MAX, 512), None);
        assert_eq!(align_down(1023, 512), 512);
    }

    #[test]
    fn prints_what_it_parses() {
        for (text, bytes) in
            [("4096", 4096), ("1.5 GiB", 3 * GIB / 2), ("512m", 512 * MIB), ("2TiB", 2 * TIB), ("7b", 7)]
        {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for bytes in [0, 1, 1023, 1024, 1536 * MIB, 3 * GIB] {
            assert_eq!(Bytes(bytes).to_string().parse::<Bytes>().unwrap(), Bytes(bytes));
        }
        for text in ["", "x", "1.2.3g", "99999999999g", "18446744073709551616", "-1", "5 parsecs", "1e3"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
