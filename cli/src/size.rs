//! Sizes as people write them: `512MiB`, `1.5 TB`, `1048576`.

use serde::{Deserialize, Deserializer};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// Why a text is not a size.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a size: write a number and a unit, such as 512MiB, 2GiB or 1.5TB")]
pub(crate) struct SizeError(String);

const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("KIB", 1 << 10),
    ("MB", 1_000_000),
    ("MIB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GIB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TIB", 1 << 40),
];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let refuse = || SizeError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = trimmed.split_at(digits.unwrap_or(trimmed.len()));
        let unit = unit.trim().to_ascii_uppercase();
        let (_, factor) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(refuse)?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(*factor).map(Size).ok_or_else(refuse);
        }
        let bytes = number.parse::<f64>().map_err(|_| refuse())? * *factor as f64;
        // Above 2^53 a fraction of a unit is no longer exact, and nobody means it.
        if bytes.is_finite() && bytes < (1_u64 << 53) as f64 {
            Ok(Size(bytes as u64))
        } else {
            Err(refuse())
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.iter().find(|(_, shift)| self.0 >= 1 << shift) {
            Some((unit, shift)) => {
                write!(f, "{:.1} {unit}", self.0 as f64 / (1_u64 << shift) as f64)
            }
            None => write!(f, "{} B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("64KiB", 65_536),
            ("1.5 MiB", 1_572_864),
            ("2gb", 2_000_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in [
            "",
            "MiB",
            "-1",
            "1 parsec",
            "1.2.3",
            "99999999999999999999",
            "9e99",
            "99999999TiB",
        ] {
            let error = text.parse::<Size>().expect_err(text).to_string();
            assert!(error.contains("512MiB"), "{error}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        let shown: Vec<_> = [5, 2048, 5 << 30]
            .map(|bytes| Size(bytes).to_string())
            .into();
        assert_eq!(shown, ["5 B", "2.0 KiB", "5.0 GiB"]);
    }
}
