//! Message sizes as people write them.

use std::fmt;
use std::str::FromStr;

use super::check::MOST_SIZES;

/// Message sizes as people write them: `64K`, `1,4K,1M`, or `1..1M` for all powers of two between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(pub Vec<u64>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let mut sizes = Vec::new();
        for part in text.split(',') {
            let Some((from, to)) = part.split_once("..") else {
                sizes.push(size(part)?);
                continue;
            };
            let (from, to) = (size(from)?, size(to)?);
            if from == 0 || from > to {
                return Err(format!("{part:?} is no range of sizes"));
            }
            let mut next = Some(from);
            while let Some(now) = next.filter(|now| *now <= to && sizes.len() <= MOST_SIZES) {
                sizes.push(now);
                next = now.checked_mul(2);
            }
        }
        Ok(Sizes(sizes))
    }
}

fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1u64),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| format!("{text:?} is no size: write bytes, or 64K, 1M, 1G"))
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!("64K,1M,3".parse(), Ok(Sizes(vec![65536, 1 << 20, 3])));
        assert_eq!("1..8".parse(), Ok(Sizes(vec![1, 2, 4, 8])));
        assert_eq!("2..8M".parse().map(|sizes: Sizes| sizes.0.len()), Ok(23));
        for wrong in ["", "K", "4..2", "0..4", "-1", "1T", "99999999999G"] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_sizes_never_panic(text in "[0-9kKmMgG.,]{0,24}") {
            text.parse::<Sizes>().ok();
        }
    }
}
