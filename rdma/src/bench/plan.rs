//! What is to be measured: decided by the client, checked by both ends.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::verbs::Mtu;

/// Largest message measured: larger ones say nothing more, and both ends map this much.
const LARGEST: u64 = 1 << 30;
const MOST_SIZES: usize = 64;
const DEEPEST: u32 = 16384;
const MOST_ITERATIONS: u64 = 1 << 40;
const LONGEST: Duration = Duration::from_secs(3600);
const LARGEST_INLINE: u32 = 4096;

/// The operation measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// RDMA WRITE.
    Write,
}

/// What of it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// How much, with many messages on their way.
    Bandwidth,
    /// How soon, with one message on its way, back and forth.
    Latency,
}

/// How long each size is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// This many messages.
    Iterations(u64),
    /// For this many milliseconds.
    Milliseconds(u64),
}

/// A measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The operation.
    pub verb: Verb,
    /// What of it.
    pub measure: Measure,
    /// Message sizes in bytes, measured one after another.
    pub sizes: Vec<u64>,
    /// Messages on their way at most.
    pub depth: u32,
    /// Messages posted with one doorbell.
    pub post_list: u32,
    /// One message in this many asks for a completion.
    pub signal_every: u32,
    /// Messages up to this size are copied into the work request.
    pub inline: u32,
    /// An upper bound on the path MTU, in bytes.
    pub mtu: Option<u32>,
    /// How long each size is measured.
    pub length: Length,
    /// Messages sent before the clock starts.
    pub warmup: u64,
}

impl Plan {
    /// The usual measurement: 64 KiB, 128 deep, lists of 16, one signal in 64, two seconds; for latency
    /// 2 bytes, 2000 round trips.
    pub fn new(verb: Verb, measure: Measure) -> Plan {
        let (sizes, length) = match measure {
            Measure::Bandwidth => (vec![64 << 10], Length::Milliseconds(2000)),
            Measure::Latency => (vec![2], Length::Iterations(2000)),
        };
        Plan {
            verb,
            measure,
            sizes,
            depth: 128,
            post_list: 16,
            signal_every: 64,
            inline: 60,
            mtu: None,
            length,
            warmup: 256,
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        let verb = match self.verb {
            Verb::Write => "write",
        };
        let measure = match self.measure {
            Measure::Bandwidth => "bandwidth",
            Measure::Latency => "latency",
        };
        format!("{verb} {measure}")
    }

    /// The largest message.
    pub fn largest(&self) -> u64 {
        self.sizes.iter().copied().max().unwrap_or(0)
    }

    pub(super) fn mtu(&self) -> Mtu {
        self.mtu.and_then(Mtu::from_bytes).unwrap_or(Mtu::Bytes4096)
    }

    /// Checks what a person or a peer asks for, so that nothing later can overflow or take for ever.
    pub fn check(&self) -> Result<(), PlanError> {
        let refuse = |what, value: u64, allowed: String| {
            Err(PlanError::Range {
                what,
                value,
                allowed,
            })
        };
        if self.sizes.is_empty() || self.sizes.len() > MOST_SIZES {
            let count = self.sizes.len() as u64;
            return refuse("number of sizes", count, format!("1 to {MOST_SIZES}"));
        }
        if let Some(size) = self
            .sizes
            .iter()
            .find(|size| **size == 0 || **size > LARGEST)
        {
            return refuse("message size", *size, format!("1 to {LARGEST}"));
        }
        let lists = [
            ("depth", self.depth, DEEPEST),
            ("post list", self.post_list, self.depth),
            ("signal interval", self.signal_every, self.depth),
        ];
        for (what, value, most) in lists {
            if value == 0 || value > most {
                return refuse(what, value.into(), format!("1 to {most}"));
            }
        }
        if self.inline > LARGEST_INLINE {
            return refuse(
                "inline size",
                self.inline.into(),
                format!("0 to {LARGEST_INLINE}"),
            );
        }
        if let Some(mtu) = self.mtu
            && Mtu::from_bytes(mtu).is_none()
        {
            return refuse("MTU", mtu.into(), "256, 512, 1024, 2048 or 4096".to_owned());
        }
        match (self.measure, self.length) {
            (_, Length::Iterations(count)) if count == 0 || count > MOST_ITERATIONS => {
                return refuse(
                    "number of iterations",
                    count,
                    format!("1 to {MOST_ITERATIONS}"),
                );
            }
            (Measure::Latency, Length::Milliseconds(_)) => return Err(PlanError::LatencyDuration),
            (Measure::Latency, Length::Iterations(count)) if count > 10_000_000 => {
                return refuse("number of round trips", count, "1 to 10000000".to_owned());
            }
            (_, Length::Milliseconds(time))
                if time == 0 || Duration::from_millis(time) > LONGEST =>
            {
                return refuse(
                    "duration in ms",
                    time,
                    format!("1 to {}", LONGEST.as_millis()),
                );
            }
            _ => {}
        }
        if self.warmup > MOST_ITERATIONS {
            return refuse("warm-up", self.warmup, format!("0 to {MOST_ITERATIONS}"));
        }
        Ok(())
    }
}

/// Why a plan can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A value out of its range.
    #[error("the {what} can't be {value}: {allowed} is possible")]
    Range {
        /// What it is.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// What there is.
        allowed: String,
    },
    /// Latency is counted in round trips.
    #[error(
        "latency is measured in round trips on both ends: use --iterations instead of --duration"
    )]
    LatencyDuration,
    /// More than the device can do.
    #[error("{device} allows a {what} of at most {limit}, not {wanted}")]
    Device {
        /// The device.
        device: String,
        /// What of it.
        what: &'static str,
        /// Its limit.
        limit: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// The server was told something else than the client.
    #[error(
        "this end was given {what} {ours}, the client asks for {theirs}: give it on the client only"
    )]
    Conflict {
        /// What differs.
        what: &'static str,
        /// Ours.
        ours: String,
        /// The client's.
        theirs: String,
    },
}

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
        for wrong in ["", "K", "4..2", "0..4", "-1", "1T", "99999999999G"] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_usual_plans_are_in_order() {
        for measure in [Measure::Bandwidth, Measure::Latency] {
            assert_eq!(Plan::new(Verb::Write, measure).check(), Ok(()));
        }
    }

    #[test]
    fn what_a_plan_asks_for_is_bounded() {
        let usual = Plan::new(Verb::Write, Measure::Bandwidth);
        let wrong = [
            Plan {
                sizes: vec![],
                ..usual.clone()
            },
            Plan {
                sizes: vec![0],
                ..usual.clone()
            },
            Plan {
                sizes: vec![u64::MAX],
                ..usual.clone()
            },
            Plan {
                depth: 0,
                ..usual.clone()
            },
            Plan {
                post_list: 129,
                ..usual.clone()
            },
            Plan {
                signal_every: 0,
                ..usual.clone()
            },
            Plan {
                mtu: Some(1500),
                ..usual.clone()
            },
            Plan {
                length: Length::Iterations(0),
                ..usual.clone()
            },
            Plan {
                length: Length::Milliseconds(u64::MAX),
                ..usual.clone()
            },
            Plan {
                measure: Measure::Latency,
                ..usual
            },
        ];
        for plan in wrong {
            assert!(plan.check().is_err(), "{plan:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_sizes_never_panic(text in "[0-9kKmMgG.,]{0,24}") {
            text.parse::<Sizes>().ok();
        }
    }
}
