//! Who is asked first.

use super::{Gang, Millis};
use std::cmp::Ordering;

/// How a queue is gone through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Discipline {
    /// Trackbed's own.
    Trackbed(Ageing),
    /// Another scheduler's, to compare with.
    Peer(Peer),
}

/// What other schedulers do, with the same placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// First come, first served: nobody overtakes.
    Fifo,
    /// First come, first served, but who does not fit is skipped.
    SkipFifo,
    /// First come, first served, room held for the first that does not fit, and others let through that do
    /// not delay it: EASY backfill (Lifka, "The ANL/IBM SP scheduling system", 1995).
    Easy,
    /// The team with the least dominant share first, a gang at a time: dominant resource fairness (Ghodsi et
    /// al., NSDI 2011). The dominant resource is accelerators.
    DrfGang,
    /// The shortest run time first, who does not fit is skipped.
    Sjf,
}

/// How Trackbed weighs a gang's size against its wait.
///
/// First comes what takes the least accelerator time, divided by 1 + `weight` times its wait over its run
/// time: the least work first makes the mean completion time short (Smith's rule, "Various optimizers for
/// single-stage production", 1956, with the work of a parallel job), and what waits many times its own run
/// time overtakes what is new. The first that does not fit has room held for it, and others go through
/// that do not delay it, so that wide gangs are not starved by narrow ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ageing {
    /// What a wait as long as the run time takes off a gang's size.
    pub weight: f64,
    /// The run time of a gang that says none.
    pub unknown_run_time: Millis,
}

impl Default for Ageing {
    fn default() -> Self {
        Ageing {
            weight: 0.3,
            unknown_run_time: 24 * 3_600_000,
        }
    }
}

impl Default for Discipline {
    fn default() -> Self {
        Discipline::Trackbed(Ageing::default())
    }
}

impl Discipline {
    /// The queue in the order in which it is asked; by its places.
    pub(super) fn order(&self, queue: &[Gang], now: Millis) -> Vec<usize> {
        let mut order: Vec<usize> = (0..queue.len()).collect();
        let older = |a: &Gang, b: &Gang| (a.submitted, &a.name).cmp(&(b.submitted, &b.name));
        match self {
            Discipline::Trackbed(ageing) => {
                let scores: Vec<f64> = queue.iter().map(|gang| ageing.score(gang, now)).collect();
                order.sort_by(|&a, &b| {
                    (queue[b].priority.cmp(&queue[a].priority))
                        .then(scores[a].total_cmp(&scores[b]))
                        .then_with(|| older(&queue[a], &queue[b]))
                });
            }
            Discipline::Peer(Peer::Sjf) => order.sort_by(|&a, &b| {
                (queue[b].priority.cmp(&queue[a].priority))
                    .then(run_time(&queue[a]).cmp(&run_time(&queue[b])))
                    .then_with(|| older(&queue[a], &queue[b]))
            }),
            Discipline::Peer(_) => order.sort_by(|&a, &b| {
                let priority = queue[b].priority.cmp(&queue[a].priority);
                priority.then_with(|| older(&queue[a], &queue[b]))
            }),
        }
        order
    }
}

impl Ageing {
    /// The lower, the sooner.
    fn score(&self, gang: &Gang, now: Millis) -> f64 {
        let run_time = gang.shortest().unwrap_or(self.unknown_run_time).max(1) as f64;
        let work = run_time * gang.gpus().max(1) as f64;
        // A clock that was set back makes no gang older than it is.
        let waited = now.saturating_sub(gang.submitted).max(0) as f64;
        work / (1.0 + self.weight * waited / run_time)
    }
}

/// A gang that says no run time is the longest of all.
fn run_time(gang: &Gang) -> Millis {
    gang.shortest().unwrap_or(Millis::MAX)
}

/// Who has waited longer comes first.
pub(super) fn longest_wait(a: &Gang, b: &Gang) -> Ordering {
    (a.submitted, &a.name).cmp(&(b.submitted, &b.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Amounts, Role, TeamId};

    fn gang(name: &str, submitted: Millis, gpus: u32, run_time: Millis) -> Gang {
        let request = Amounts {
            gpus,
            ..Amounts::default()
        };
        let mut gang = Gang::new(
            name,
            TeamId(0),
            submitted,
            vec![Role::new("worker", 1, request)],
        );
        gang.run_time = Some(run_time);
        gang
    }

    fn names(queue: &[Gang], now: Millis, discipline: Discipline) -> Vec<&str> {
        let order = discipline.order(queue, now);
        order
            .into_iter()
            .map(|index| queue[index].name.as_str())
            .collect()
    }

    #[test]
    fn the_least_work_comes_first_until_waiting_has_made_up_for_it() {
        let queue = [gang("large", 0, 8, 1000), gang("small", 100_000, 1, 1000)];
        assert_eq!(
            names(&queue[..], 100_000, Discipline::default()),
            ["large", "small"]
        );
        let queue = [gang("large", 0, 8, 100_000), gang("small", 1000, 1, 1000)];
        assert_eq!(
            names(&queue[..], 1000, Discipline::default()),
            ["small", "large"]
        );
    }

    #[test]
    fn priority_goes_before_all() {
        let mut queue = [gang("small", 0, 1, 1), gang("urgent", 5, 8, 100_000)];
        queue[1].priority = 1;
        for peer in [
            Peer::Fifo,
            Peer::SkipFifo,
            Peer::Easy,
            Peer::DrfGang,
            Peer::Sjf,
        ] {
            assert_eq!(
                names(&queue, 10, Discipline::Peer(peer))[0],
                "urgent",
                "{peer:?}"
            );
        }
        assert_eq!(names(&queue, 10, Discipline::default())[0], "urgent");
    }

    #[test]
    fn peers_go_by_age_or_by_run_time() {
        let queue = [
            gang("young", 9, 1, 1),
            gang("old", 1, 1, 100),
            gang("older", 0, 1, 50),
        ];
        assert_eq!(
            names(&queue, 10, Discipline::Peer(Peer::Fifo)),
            ["older", "old", "young"]
        );
        assert_eq!(
            names(&queue, 10, Discipline::Peer(Peer::Sjf)),
            ["young", "older", "old"]
        );
    }

    #[test]
    fn a_clock_that_jumps_back_changes_no_order_and_overflows_nothing() {
        let queue = [
            gang("a", Millis::MAX, 1, 1),
            gang("b", Millis::MIN, 1, Millis::MAX),
        ];
        for now in [Millis::MIN, 0, Millis::MAX] {
            assert_eq!(names(&queue, now, Discipline::default()).len(), 2);
        }
    }
}
