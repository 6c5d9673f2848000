//! What kept a bandwidth from being higher, as far as the sender can tell.

use super::plan::{Plan, Rate};
use super::{Limit, Row};

/// A sender that found nothing to do in less than this share of its turns was the bottleneck itself.
const HARDLY_IDLE: f64 = 0.02;
/// Messages up to this size are limited by their number rather than by their bytes.
const SMALL: u64 = 4096;
/// This close to a rate is at it.
const CLOSE: f64 = 0.9;

/// `idle` is the share of the sender's turns that found nothing to do.
pub(super) fn limit(plan: &Plan, row: &Row, idle: f64, line_rate: Option<f64>) -> Limit {
    let directions = if plan.bidirectional { 2.0 } else { 1.0 };
    let gbit = row.gbit_per_second.unwrap_or(0.0) / directions;
    let messages = row.messages_per_second.unwrap_or(0.0) / directions;
    if line_rate.is_some_and(|rate| gbit >= CLOSE * rate) {
        return Limit::LineRate;
    }
    let kept_to = match plan.rate {
        Some(Rate::BitsPerSecond(bits)) => gbit >= CLOSE * bits as f64 / 1e9,
        Some(Rate::MessagesPerSecond(rate)) => messages >= CLOSE * rate as f64,
        None => false,
    };
    if kept_to {
        Limit::Rate
    } else if u64::from(plan.depth) * u64::from(plan.queue_pairs) == 1 {
        Limit::Depth
    } else if !plan.events && idle < HARDLY_IDLE {
        Limit::Processor
    } else if row.bytes <= SMALL {
        Limit::MessageRate
    } else {
        Limit::Path
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Measure, Verb};
    use super::super::report::tests::bandwidth;
    use super::*;

    #[test]
    fn the_nearest_bound_is_named() {
        let plan = Plan::new(Verb::Write, Measure::Bandwidth);
        let large = bandwidth(65536, 92.0);
        assert_eq!(limit(&plan, &large, 0.5, Some(100.0)), Limit::LineRate);
        assert_eq!(limit(&plan, &large, 0.5, Some(200.0)), Limit::Path);
        assert_eq!(limit(&plan, &large, 0.5, None), Limit::Path);
        assert_eq!(limit(&plan, &large, 0.0, Some(200.0)), Limit::Processor);
        let small = bandwidth(64, 1.0);
        assert_eq!(limit(&plan, &small, 0.5, None), Limit::MessageRate);
        let one = Plan {
            depth: 1,
            ..plan.clone()
        };
        assert_eq!(limit(&one, &small, 0.5, None), Limit::Depth);
        let paced = Plan {
            rate: Some(Rate::BitsPerSecond(92_000_000_000)),
            ..plan.clone()
        };
        assert_eq!(limit(&paced, &large, 0.0, Some(200.0)), Limit::Rate);
        let both = Plan {
            bidirectional: true,
            ..plan
        };
        assert_eq!(limit(&both, &large, 0.5, Some(100.0)), Limit::Path);
    }
}
