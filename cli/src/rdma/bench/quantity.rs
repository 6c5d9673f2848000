//! Rates and times as people write them.

use std::str::FromStr;
use trackbed_rdma::bench::Rate;

/// A bandwidth in Gb/s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BitRate(pub(super) f64);

/// A time in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Time(pub(super) f64);

/// A rate to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted(pub(super) Rate);

/// A positive number and the factor of its unit.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    let value = number.parse::<f64>().ok()? * factor;
    (value.is_finite() && value > 0.0).then_some(value)
}

const GBIT: [(&str, f64); 6] = [
    ("Gb/s", 1.0),
    ("Gbit/s", 1.0),
    ("Gbps", 1.0),
    ("Tb/s", 1e3),
    ("Mb/s", 1e-3),
    ("kb/s", 1e-6),
];

impl FromStr for BitRate {
    type Err = String;

    fn from_str(text: &str) -> Result<BitRate, String> {
        quantity(text, &GBIT)
            .map(BitRate)
            .ok_or_else(|| format!("{text:?} is no bandwidth: write 90Gb/s or 500Mb/s"))
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Time, String> {
        quantity(text, &[("us", 1.0), ("ns", 1e-3), ("ms", 1e3), ("s", 1e6)])
            .map(Time)
            .ok_or_else(|| format!("{text:?} is no time: write 3us, 900ns or 1.5ms"))
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        let messages = [
            ("messages/s", 1.0),
            ("kmessages/s", 1e3),
            ("Mmessages/s", 1e6),
        ];
        let rate = match (quantity(text, &messages), quantity(text, &GBIT)) {
            (Some(messages), _) => Rate::MessagesPerSecond(messages as u64),
            (None, Some(gbit)) => Rate::BitsPerSecond((gbit * 1e9) as u64),
            (None, None) => {
                return Err(format!(
                    "{text:?} is no rate: write 10Gb/s or 100000messages/s"
                ));
            }
        };
        Ok(Wanted(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_their_units() {
        assert_eq!("90Gb/s".parse(), Ok(BitRate(90.0)));
        assert_eq!("2.5 Tb/s".parse(), Ok(BitRate(2500.0)));
        assert_eq!("3us".parse(), Ok(Time(3.0)));
        assert_eq!("1.5ms".parse(), Ok(Time(1500.0)));
        let bits = Wanted(Rate::BitsPerSecond(500_000_000));
        assert_eq!("500Mb/s".parse(), Ok(bits));
        let messages = Wanted(Rate::MessagesPerSecond(100_000));
        assert_eq!("100kmessages/s".parse(), Ok(messages));
    }

    #[test]
    fn what_has_no_unit_or_no_sense_is_refused_with_an_example() {
        for text in ["", "90", "-1Gb/s", "0Gb/s", "1 parsec", "1.2.3us", "infus"] {
            let said = [
                text.parse::<BitRate>().expect_err(text),
                text.parse::<Time>().expect_err(text),
                text.parse::<Wanted>().expect_err(text),
            ];
            assert!(said.iter().all(|said| said.contains("write ")), "{said:?}");
        }
    }
}
