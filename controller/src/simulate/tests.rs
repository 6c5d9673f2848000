//! What a simulation says must be what can happen.

use super::*;
use crate::plan::Millis;
use std::{collections::BTreeMap, io::Write};

fn cluster() -> Cluster {
    "4x8:v100".parse().expect("a cluster")
}

#[test]
fn no_discipline_uses_more_than_there_is_and_each_ends_every_job() {
    let trace = generate(300, 32, 1.0, 3).misjudged(3.0, 1);
    for policy in Policy::ALL {
        let outcome = simulate(&trace, &cluster(), policy, &mut |_| {}).expect("it fits");
        assert_eq!(outcome.jobs.len(), 300);
        let mut changes: BTreeMap<Millis, i64> = BTreeMap::new();
        for (job, was) in outcome.jobs.iter().zip(&trace.jobs) {
            assert!(job.started >= job.submitted, "{policy:?}");
            assert_eq!(job.ended - job.started, was.run_time("v100"), "{policy:?}");
            *changes.entry(job.started).or_default() += i64::from(job.gpus);
            *changes.entry(job.ended).or_default() -= i64::from(job.gpus);
        }
        let mut busy = 0;
        for change in changes.values() {
            busy += change;
            assert!((0..=32).contains(&busy), "{policy:?}: {busy}");
        }
        assert!(
            (0.0..=1.0 + 1e-9).contains(&outcome.utilisation()),
            "{policy:?}"
        );
    }
}

#[test]
fn fifo_starts_nobody_before_one_who_came_earlier() {
    let trace = generate(200, 32, 1.2, 5);
    let outcome = simulate(&trace, &cluster(), Policy::Fifo, &mut |_| {});
    let jobs = outcome.expect("it fits").jobs;
    let ordered = |pair: &[JobOutcome]| {
        pair[0].submitted == pair[1].submitted || pair[0].started <= pair[1].started
    };
    assert!(jobs.windows(2).all(ordered));
}

#[test]
fn a_job_that_never_fits_is_refused_before_anything_is_played() {
    let trace = generate(50, 32, 1.0, 3);
    let small: Cluster = "1x2:v100".parse().expect("a cluster");
    let error = simulate(&trace, &small, Policy::Trackbed, &mut |_| {}).expect_err("too large");
    assert!(error.to_string().contains("--cluster"), "{error}");
}

#[test]
fn a_table_is_read_as_it_was_written() {
    let trace = generate(100, 32, 0.9, 1);
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(trace.table("").as_bytes()).expect("written");
    let read = Trace::read(file.path(), None).expect("a trace");
    assert_eq!(read.jobs.len(), 100);
    assert_eq!(read.table(""), trace.table(""));
}

#[test]
fn a_line_that_makes_no_sense_is_named() {
    let heading = "name,team,gpus,submitted,run";
    for (text, wanted) in [
        ("", "there is no job"),
        ("a,b,1,0,1\n", heading),
        (
            &format!("{heading}\na,b,0,0,1\n"),
            "line 2: 0 is no number of GPUs",
        ),
        (&format!("{heading}\na,b,1,NaN,1\n"), "submitted is NaN"),
        (&format!("{heading}\na,b,1,0,-1\n"), "run is -1"),
        (&format!("{heading}\na,b,1,0\n"), "4 fields"),
        ("ResNet\tx\ty\t1\t10\t0\t1\n", "--throughputs"),
    ] {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let error = Trace::read(file.path(), None).expect_err(text).to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
}

#[test]
fn steps_become_time_by_the_throughputs_beside_the_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("a.trace");
    let line = |kind: &str, steps, at, gpus| format!("{kind}\tcmd\t-n\t1\t{steps}\t{at}\t{gpus}\n");
    let text = line("ResNet (batch size 1)", 100, 5.0, 16) + &line("LM", 30, 7.5, 1);
    std::fs::write(&trace, text).expect("written");
    let throughputs = r#"{"v100": {"('ResNet (batch size 1)', 1)": {"null": 1.0},
        "('ResNet (batch size 1)', 8)": {"null": 4.0, "('LM', 1)": [1.0, 2.0]}, "('LM', 1)": {"null": 3.0}},
        "k80": {"('ResNet (batch size 1)', 8)": {"null": 0.0}},
        "v100_unconsolidated": {"('LM', 1)": {"null": 0.1}}}"#;
    std::fs::write(folder.path().join("throughputs.json"), throughputs).expect("written");
    let jobs = Trace::read(&trace, None).expect("a trace").jobs;
    assert_eq!(
        (jobs[0].submitted, jobs[1].submitted),
        (0, 2500),
        "the first job is at 0"
    );
    assert_eq!(
        jobs[0].run_time("v100"),
        25_000,
        "as fast as the largest that was measured"
    );
    assert_eq!(jobs[1].run_time("v100"), 10_000);
    assert_eq!(
        jobs[0].run_times.keys().collect::<Vec<_>>(),
        ["v100"],
        "nothing runs at no speed"
    );
    assert_eq!(jobs[0].team, "ResNet");
}

#[test]
fn what_users_say_is_wrong_by_no_more_than_was_wanted() {
    let trace = generate(500, 32, 0.9, 1).misjudged(3.0, 9);
    assert!(
        trace
            .jobs
            .iter()
            .all(|job| (1.0 / 3.0 - 1e-9..=3.0 + 1e-9).contains(&job.said))
    );
    assert!(
        trace.jobs.iter().any(|job| job.said > 2.0) && trace.jobs.iter().any(|job| job.said < 0.5)
    );
}
