//! `trackbed simulate`, as a person runs it.

use serde_json::Value;
use std::process::{Command, Output};

fn simulate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trackbed"))
        .arg("simulate")
        .args(args)
        .output()
        .expect("the binary starts")
}

fn rows(args: &[&str]) -> Vec<Value> {
    let output = simulate(&[args, &["--output", "json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("one JSON array")
}

fn figure(row: &Value, name: &str) -> f64 {
    row[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{row} has no {name}"))
}

#[test]
fn every_policy_is_compared_on_the_same_jobs() {
    let folder = tempfile::tempdir().expect("a folder");
    let plot = folder.path().join("waits.html");
    let named = plot.to_str().expect("a name");
    let rows = rows(&[
        "--generate",
        "400",
        "--cluster",
        "8x8:v100",
        "--compare",
        "--plot",
        named,
    ]);
    let policies: Vec<&str> = rows
        .iter()
        .filter_map(|row| row["policy"].as_str())
        .collect();
    assert_eq!(
        policies,
        ["trackbed", "fifo", "skip-fifo", "easy", "drf", "sjf"]
    );
    assert!(
        rows.iter()
            .all(|row| row["jobs"] == 400 && figure(row, "utilisation") <= 1.0)
    );
    assert!(
        figure(&rows[0], "meanJctHours") < figure(&rows[1], "meanJctHours"),
        "FIFO is the worst"
    );
    let page = std::fs::read_to_string(plot).expect("the page was written");
    assert_eq!(page.matches("<svg ").count(), 2);
    assert!(page.contains("skip-fifo") && page.contains("p99 wait"));
}

#[test]
fn more_nodes_are_shown_beside_what_there_is() {
    let rows = rows(&[
        "--generate",
        "300",
        "--cluster",
        "4x8:v100",
        "--load",
        "1.5",
        "--add-nodes",
        "4",
    ]);
    let clusters: Vec<&str> = rows
        .iter()
        .filter_map(|row| row["cluster"].as_str())
        .collect();
    assert_eq!(clusters, ["4x8:v100", "8x8:v100"]);
    assert!(figure(&rows[1], "meanWaitHours") < figure(&rows[0], "meanWaitHours"));
}

#[test]
fn a_saved_trace_is_the_same_jobs_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = folder.path().join("jobs.csv");
    let named = table.to_str().expect("a name");
    let made = rows(&[
        "--generate",
        "200",
        "--cluster",
        "4x8:v100",
        "--save-trace",
        named,
    ]);
    assert_eq!(rows(&["--trace", named, "--cluster", "4x8:v100"]), made);
}

#[test]
fn what_is_wrong_is_said_with_the_remedy() {
    for (args, wanted) in [
        (&["--generate", "10", "--cluster", "big"][..], "20x8:v100"),
        (&["--generate", "10", "--wrong-by", "0.5"], "from 1 to 100"),
        (&["--generate", "10", "--load", "NaN"], "from 0.01 to 10"),
        (&["--trace", "/nowhere.csv"], "/nowhere.csv"),
        (&[], "--generate"),
    ] {
        let output = simulate(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(wanted), "{args:?}: {said}");
    }
}
