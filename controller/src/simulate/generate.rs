//! Jobs made from a seed, in the shape of the public traces of training clusters.

use super::{Job, Trace};
use crate::plan::Millis;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use statrs::distribution::{ContinuousCDF, Exp, LogNormal};
use std::{collections::BTreeMap, f64::consts::TAU};

/// Sizes of gangs and how many of a hundred jobs have them: most are small, a few take most of the cluster.
const SIZES: [(u32, u32); 6] = [(1, 60), (2, 8), (4, 16), (8, 12), (16, 3), (32, 1)];

/// How many teams submit.
const TEAMS: u32 = 8;

const HOUR: f64 = 3_600_000.0;

/// Jobs made from a seed. Their shape is that of Microsoft's Philly trace (Jeon et al., "Analysis of
/// large-scale multi-tenant GPU clusters for DNN training workloads", ATC 2019): run times are log-normal
/// with a median of half an hour and a tail of weeks, longer for larger gangs; submissions come in bursts,
/// by day rather than by night, a burst from one team; most gangs are small.
///
/// There is so much work that `gpus` accelerators would be busy for the share `load` of the time in which
/// the jobs come.
pub fn generate(jobs: usize, gpus: u64, load: f64, seed: u64) -> Trace {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let run_times = LogNormal::new((0.5 * HOUR).ln(), 2.0).expect("a deviation of 2 is one");
    let gaps = Exp::new(1.0).expect("a rate of 1 is one");
    let largest = u32::try_from(gpus).unwrap_or(u32::MAX).max(1);
    let mut made: Vec<Job> = Vec::with_capacity(jobs);
    let mut time = 0.0;
    while made.len() < jobs {
        let team = random.random_range(0..TEAMS);
        // Half the bursts are of one job; the mean is of two.
        let burst = 1 + random.random::<f64>().max(f64::MIN_POSITIVE).log(0.5) as usize;
        for _ in 0..burst.min(jobs - made.len()) {
            let wanted = pick(random.random_range(0..100)).min(largest);
            let run = run_times.inverse_cdf(random.random_range(0.001..0.999));
            made.push(Job {
                name: format!("job-{}", made.len()),
                team: format!("team-{team}"),
                gpus: wanted,
                submitted: time as Millis,
                run_times: BTreeMap::from([(
                    String::new(),
                    (run * f64::from(wanted).powf(0.3)) as Millis,
                )]),
                said: 1.0,
            });
        }
        time += gaps.inverse_cdf(random.random_range(0.0..0.999_999)) * HOUR;
    }
    stretch(&mut made, gpus, load);
    Trace { jobs: made }
}

/// Sets the submissions apart so that there is as much work as is wanted, and by day rather than by night.
fn stretch(jobs: &mut [Job], gpus: u64, load: f64) {
    let work: f64 = jobs
        .iter()
        .map(|job| f64::from(job.gpus) * job.run_time("") as f64)
        .sum();
    let span = work / (gpus.max(1) as f64 * load.max(0.01));
    let last = jobs.last().map_or(1, |job| job.submitted.max(1)) as f64;
    for job in jobs {
        let time = job.submitted as f64 / last * span;
        let day = 24.0 * HOUR / TAU;
        job.submitted = (time - 0.6 * day * (time / day).sin()).max(0.0) as Millis;
    }
}

fn pick(hundredth: u32) -> u32 {
    let mut sum = 0;
    let size = SIZES.iter().find(|(_, share)| {
        sum += share;
        hundredth < sum
    });
    size.map_or(1, |(size, _)| *size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_jobs() {
        assert_eq!(generate(500, 128, 0.9, 7), generate(500, 128, 0.9, 7));
        assert_ne!(generate(500, 128, 0.9, 7), generate(500, 128, 0.9, 8));
    }

    #[test]
    fn there_is_as_much_work_as_was_wanted() {
        let trace = generate(2000, 128, 0.8, 1);
        let work: f64 = trace
            .jobs
            .iter()
            .map(|job| f64::from(job.gpus) * job.run_time("") as f64)
            .sum();
        let load = work / (trace.span() as f64 * 128.0);
        assert!((0.75..0.85).contains(&load), "{load}");
        assert!(trace.jobs.is_sorted_by_key(|job| job.submitted));
    }

    #[test]
    fn no_job_is_larger_than_the_cluster() {
        assert!(
            generate(500, 8, 0.9, 1)
                .jobs
                .iter()
                .all(|job| (1..=8).contains(&job.gpus))
        );
        assert!(generate(0, 8, 0.9, 1).jobs.is_empty());
    }
}
