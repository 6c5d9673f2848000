//! What a person or a peer asks for, checked, so that nothing later can overflow or take for ever.

use std::time::Duration;

use thiserror::Error;

use super::{Length, Measure, Plan, Rate, Verb};
use crate::verbs::Mtu;

pub(super) const MOST_SIZES: usize = 64;
/// Largest message measured: larger ones say nothing more, and both ends map this much.
const LARGEST: u64 = 1 << 30;
/// Largest message times queue pairs: what an end maps for each of a few uses.
const MOST_MEMORY: u64 = 4 << 30;
const DEEPEST: u32 = 16384;
const MOST_QUEUE_PAIRS: u32 = 1024;
const MOST_ITERATIONS: u64 = 1 << 40;
const MOST_RUNS: u32 = 1000;
const LONGEST: Duration = Duration::from_secs(3600);
const LARGEST_INLINE: u32 = 4096;
const ATOMIC_BYTES: u64 = 8;

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
    /// What doesn't go together.
    #[error("{what}: {remedy}")]
    Senseless {
        /// What.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// More than the device can do.
    #[error("{device} allows a {what} of at most {limit}, not {wanted}: {remedy}")]
    Device {
        /// The device.
        device: String,
        /// What of it.
        what: &'static str,
        /// Its limit.
        limit: u64,
        /// What was asked for.
        wanted: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// The server was told something else than the client.
    #[error(
        "the server was given {what} {ours}, the client asks for {theirs}: give it on the client only"
    )]
    Conflict {
        /// What differs.
        what: String,
        /// The server's.
        ours: String,
        /// The client's.
        theirs: String,
    },
}

impl Plan {
    /// Checks it.
    pub fn check(&self) -> Result<(), PlanError> {
        self.check_sizes()?;
        self.check_queues()?;
        self.check_path()?;
        self.check_length()?;
        self.check_sense()
    }

    fn check_sizes(&self) -> Result<(), PlanError> {
        let count = self.sizes.len() as u64;
        within("number of sizes", count, 1, MOST_SIZES as u64)?;
        for size in &self.sizes {
            if self.verb == Verb::Atomic && *size != ATOMIC_BYTES {
                let allowed = format!("{ATOMIC_BYTES}, what an atomic operation works on,");
                return Err(PlanError::Range {
                    what: "message size",
                    value: *size,
                    allowed,
                });
            }
            within("message size", *size, 1, LARGEST)?;
        }
        let pairs = self.queue_pairs.into();
        within("number of queue pairs", pairs, 1, MOST_QUEUE_PAIRS.into())?;
        let memory = self.largest().saturating_mul(pairs);
        within("largest message times queue pairs", memory, 1, MOST_MEMORY)
    }

    fn check_queues(&self) -> Result<(), PlanError> {
        let depth = self.depth.into();
        within("depth", depth, 1, DEEPEST.into())?;
        within("post list", self.post_list.into(), 1, depth)?;
        within("signal interval", self.signal_every.into(), 1, depth)?;
        within(
            "receive depth",
            self.receive_depth.into(),
            1,
            DEEPEST.into(),
        )?;
        within("inline size", self.inline.into(), 0, LARGEST_INLINE.into())
    }

    fn check_path(&self) -> Result<(), PlanError> {
        if let Some(mtu) = self.mtu
            && Mtu::from_bytes(mtu).is_none()
        {
            return Err(PlanError::Range {
                what: "MTU",
                value: mtu.into(),
                allowed: "256, 512, 1024, 2048 or 4096".to_owned(),
            });
        }
        within("service level", self.service_level.into(), 0, 15)?;
        // 0 would be to wait for ever.
        within("timeout", self.timeout.into(), 1, 31)?;
        within("number of retries", self.retries.into(), 0, 7)
    }

    fn check_length(&self) -> Result<(), PlanError> {
        let longest = u64::try_from(LONGEST.as_millis()).unwrap_or(u64::MAX);
        match self.length {
            Length::Iterations(count) => {
                within("number of iterations", count, 1, MOST_ITERATIONS)?;
            }
            Length::Milliseconds(time) => within("duration in ms", time, 1, longest)?,
        }
        within("number of runs", self.runs.into(), 1, MOST_RUNS.into())?;
        within("warm-up", self.warmup, 0, MOST_ITERATIONS)?;
        within("time to settle in ms", self.settle_milliseconds, 0, longest)?;
        match self.rate {
            Some(Rate::BitsPerSecond(rate)) => within("rate in bits a second", rate, 1, 1 << 50),
            Some(Rate::MessagesPerSecond(rate)) => {
                within("rate in messages a second", rate, 1, 1 << 40)
            }
            None => Ok(()),
        }
    }

    fn check_sense(&self) -> Result<(), PlanError> {
        if self.measure == Measure::Bandwidth {
            return Ok(());
        }
        let no = |what, remedy| Err(PlanError::Senseless { what, remedy });
        if self.queue_pairs > 1 {
            return no(
                "latency is of one message at a time, on one queue pair",
                "leave --queue-pairs out, or measure bandwidth",
            );
        }
        if self.bidirectional {
            return no(
                "latency goes to and fro already",
                "leave --bidirectional out, or measure bandwidth",
            );
        }
        if self.rate.is_some() {
            return no(
                "latency has one message at a time",
                "leave --rate out, or measure bandwidth",
            );
        }
        if self.events && self.verb == Verb::Write {
            return no(
                "a write gives the other end no completion to be woken by",
                "measure send latency with --events, or leave it out",
            );
        }
        Ok(())
    }
}

fn within(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), PlanError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(PlanError::Range {
        what,
        value,
        allowed: format!("{least} to {most}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spoil = fn(&mut Plan);

    #[test]
    fn the_usual_plans_are_in_order() {
        for measure in [Measure::Bandwidth, Measure::Latency] {
            for verb in [Verb::Write, Verb::Send, Verb::Read, Verb::Atomic] {
                assert_eq!(Plan::new(verb, measure).check(), Ok(()));
            }
        }
    }

    #[test]
    fn what_a_plan_asks_for_is_bounded() {
        let wrong: [(&str, Spoil); 20] = [
            ("no size", |plan| plan.sizes.clear()),
            ("size 0", |plan| plan.sizes = vec![0]),
            ("a huge size", |plan| plan.sizes = vec![u64::MAX]),
            ("too many sizes", |plan| plan.sizes = vec![1; 65]),
            ("no queue pair", |plan| plan.queue_pairs = 0),
            ("too much memory", |plan| {
                (plan.sizes, plan.queue_pairs) = (vec![1 << 30], 8);
            }),
            ("depth 0", |plan| plan.depth = 0),
            ("receive depth 0", |plan| plan.receive_depth = 0),
            ("a list beyond the depth", |plan| plan.post_list = 129),
            ("no signal", |plan| plan.signal_every = 0),
            ("inline", |plan| plan.inline = 5000),
            ("MTU", |plan| plan.mtu = Some(1500)),
            ("service level", |plan| plan.service_level = 16),
            ("timeout", |plan| plan.timeout = 0),
            ("retries", |plan| plan.retries = 8),
            ("no message", |plan| plan.length = Length::Iterations(0)),
            ("for ever", |plan| {
                plan.length = Length::Milliseconds(u64::MAX);
            }),
            ("no run", |plan| plan.runs = 0),
            ("no rate", |plan| {
                plan.rate = Some(Rate::BitsPerSecond(0));
            }),
            ("settling for ever", |plan| {
                plan.settle_milliseconds = u64::MAX;
            }),
        ];
        for (what, spoil) in wrong {
            let mut plan = Plan::new(Verb::Write, Measure::Bandwidth);
            spoil(&mut plan);
            assert!(plan.check().is_err(), "{what}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_what_to_do() {
        let wrong: [(Verb, Spoil, &str); 4] = [
            (Verb::Write, |plan| plan.events = true, "send latency"),
            (Verb::Send, |plan| plan.queue_pairs = 2, "--queue-pairs"),
            (Verb::Read, |plan| plan.bidirectional = true, "bandwidth"),
            (
                Verb::Atomic,
                |plan| plan.sizes = vec![16],
                "8, what an atomic",
            ),
        ];
        for (verb, spoil, says) in wrong {
            let mut plan = Plan::new(verb, Measure::Latency);
            spoil(&mut plan);
            let error = plan.check().expect_err("senseless").to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
