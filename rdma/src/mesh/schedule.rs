//! In which order pairs measure: the circle method of round-robin tournaments.
//!
//! With n nodes there are n - 1 rounds (n, when n is odd) in each of which every node is in one pair at
//! most, and each pair occurs in exactly one of them; fewer rounds are impossible.

use std::time::Duration;

use super::MeshPlan;
use crate::bench::{Length, Plan};

/// What a test takes besides measuring: two processes meet, make queue pairs, connect and compare.
const SET_UP: Duration = Duration::from_millis(300);
/// A generous guess at a round trip, for estimates.
const ROUND_TRIP: Duration = Duration::from_micros(20);
/// The same for a message of bandwidth counted in messages.
const MESSAGE: Duration = Duration::from_micros(10);

/// How long a mesh of this many nodes takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Nodes.
    pub nodes: usize,
    /// Ports of each.
    pub rails: usize,
    /// Rounds.
    pub rounds: usize,
    /// Pairs of ports in all.
    pub pairs: usize,
    /// Pairs of ports that measure at the same time.
    pub at_once: usize,
    /// How long it takes, about.
    pub time: Duration,
}

impl Schedule {
    /// For this many nodes with this many ports each.
    pub fn new(nodes: usize, rails: usize, plan: &MeshPlan) -> Schedule {
        let turns = if plan.rails_apart { rails } else { 1 };
        let rounds = rounds(nodes) * turns;
        let round = (estimate(&plan.bandwidth) + SET_UP) * 2 + estimate(&plan.latency) + SET_UP;
        Schedule {
            nodes,
            rails,
            rounds,
            pairs: nodes * nodes.saturating_sub(1) / 2 * rails,
            at_once: nodes / 2 * rails / turns.max(1),
            time: round.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX)),
        }
    }
}

/// How long a plan takes, about, set-up aside.
pub(super) fn estimate(plan: &Plan) -> Duration {
    let each = match (plan.length, plan.measure) {
        (Length::Milliseconds(time), _) => Duration::from_millis(time),
        (Length::Iterations(count), measure) => {
            let one = match measure {
                crate::bench::Measure::Bandwidth => MESSAGE,
                crate::bench::Measure::Latency => ROUND_TRIP,
            };
            one.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
        }
    };
    let measured = each.saturating_mul(u32::try_from(plan.sizes.len()).unwrap_or(1) * plan.runs);
    measured + Duration::from_millis(plan.settle_milliseconds)
}

/// How many rounds there are.
pub(super) fn rounds(nodes: usize) -> usize {
    match nodes {
        0 | 1 => 0,
        _ => nodes.next_multiple_of(2) - 1,
    }
}

/// The pairs of one round, each with the lower number first.
pub fn round(nodes: usize, round: usize) -> Vec<(usize, usize)> {
    let circle = rounds(nodes);
    if circle == 0 {
        return Vec::new();
    }
    // The last one stands still (nobody, when the number is odd) while the others go round it.
    let still = circle;
    let place = |step: usize| (round + step) % circle;
    let mut pairs = Vec::with_capacity(nodes / 2);
    if still < nodes {
        pairs.push((place(0), still));
    }
    for step in 1..=(circle - 1) / 2 {
        let (one, other) = (place(step), place(circle - step));
        pairs.push((one.min(other), one.max(other)));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_measures_exactly_once_and_no_node_twice_in_a_round() {
        for nodes in (0..=33).chain([64, 255, 999, 1000]) {
            let mut met = vec![false; nodes * nodes];
            let mut count = 0;
            for number in 0..rounds(nodes) {
                let mut busy = vec![false; nodes];
                for (a, b) in round(nodes, number) {
                    assert!(a < b && b < nodes, "{nodes} nodes: {a}, {b}");
                    assert!(!busy[a] && !busy[b], "{nodes} nodes, round {number}");
                    (busy[a], busy[b]) = (true, true);
                    assert!(!met[a * nodes + b], "{nodes} nodes: {a}, {b} twice");
                    met[a * nodes + b] = true;
                    count += 1;
                }
            }
            assert_eq!(count, nodes * nodes.saturating_sub(1) / 2, "{nodes} nodes");
        }
    }

    #[test]
    fn a_thousand_nodes_with_eight_rails_take_999_rounds() {
        let schedule = Schedule::new(1000, 8, &MeshPlan::default());
        assert_eq!((schedule.rounds, schedule.pairs), (999, 3_996_000));
        assert_eq!(schedule.at_once, 4000);
        let apart = MeshPlan {
            rails_apart: true,
            ..MeshPlan::default()
        };
        let apart = Schedule::new(1000, 8, &apart);
        assert_eq!((apart.rounds, apart.at_once), (7992, 500));
        assert!(apart.time > schedule.time * 7);
    }
}
