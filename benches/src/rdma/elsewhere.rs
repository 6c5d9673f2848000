//! The cases that need a device, measured by this same program in the virtual machine of `hack/vm`.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde::Deserialize;

use super::Options;
use crate::{
    BenchError,
    progress::{Progress, Step},
    row::Row,
    session::Session,
};

/// How long the machine may run: more than the longest measurement takes under emulation.
const LIMIT_SECONDS: &str = "28800";
/// Exit statuses with which the program inside ends when it has printed all its rows: the rows say
/// which goal was missed.
const MEASURED: [i32; 3] = [0, 1, 2];

/// A line of what the program inside prints.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Progress { progress: Step },
    Row(Row),
}

/// Has the cases measured inside and hands their rows on as they come.
pub(super) fn measure(
    session: &mut Session<'_>,
    progress: &Progress,
    vm: &Path,
    options: &Options,
    long: bool,
) {
    progress.case("starting the virtual machine");
    if let Err(error) = run(session, progress, vm, options, long) {
        session.fail("in the virtual machine", &error);
    }
}

fn run(
    session: &mut Session<'_>,
    progress: &Progress,
    vm: &Path,
    options: &Options,
    long: bool,
) -> Result<(), BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    let program = vm.display().to_string();
    let mut child = Command::new(vm)
        .args(["run", "--timeout", LIMIT_SECONDS, "--"])
        .arg(own)
        .args(arguments(options, long))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| BenchError::Start {
            program: program.clone(),
            source,
            remedy: "it is in the repository, and hack/bench calls it from there",
        })?;
    let printed = child.stdout.take().expect("it was asked for");
    for line in BufReader::new(printed).lines() {
        let line = line.map_err(BenchError::io("reading from the virtual machine"))?;
        match serde_json::from_str(&line) {
            Ok(Line::Row(row)) => session.row(row),
            Ok(Line::Progress { progress: step }) => progress.follow(&step),
            Err(_) => progress.aside(|| eprintln!("{line}")),
        }
    }
    let status = child
        .wait()
        .map_err(BenchError::io("waiting for the virtual machine"))?;
    if status.code().is_some_and(|code| MEASURED.contains(&code)) {
        return Ok(());
    }
    Err(BenchError::Failed {
        command: format!("{program} run"),
        status: status.to_string(),
        stderr: "what it said is above".to_owned(),
    })
}

/// The options for the program inside.
fn arguments(options: &Options, long: bool) -> Vec<String> {
    let sizes: Vec<String> = options.sizes.iter().map(u64::to_string).collect();
    let mut words = ["rdma", "--json", "--inside"].map(str::to_owned).to_vec();
    words.extend(["--sizes".to_owned(), sizes.join(",")]);
    words.extend(["--gid-index".to_owned(), options.gid_index.to_string()]);
    words.extend(long.then(|| "--long".to_owned()));
    if let Some(pairs) = options.pairs {
        words.extend(["--pairs".to_owned(), pairs.to_string()]);
    }
    for (option, prefixes) in [("--case", &options.case), ("--skip", &options.skip)] {
        for prefix in prefixes {
            words.extend([option.to_owned(), prefix.clone()]);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_progress_are_told_apart() {
        let progress = r#"{"progress":{"case":"send/latency/64","done":3,"of":8}}"#;
        let line: Line = serde_json::from_str(progress).expect("progress");
        assert!(matches!(line, Line::Progress { progress } if progress.done == 3));
        let row = r#"{"bench":"rdma","case":"disk-to-nic","ours":1.0,"peer":1.0,"peer_name":"fio",
            "unit":"MB/s","ratio":1.0,"interval":[0.9,1.1],"pairs":8,"goal":0.95,
            "verdict":"inconclusive"}"#;
        let line: Line = serde_json::from_str(row).expect("a row");
        assert!(matches!(line, Line::Row(row) if row.case == "disk-to-nic"));
        assert!(serde_json::from_str::<Line>("Kernel panic").is_err());
    }
}
