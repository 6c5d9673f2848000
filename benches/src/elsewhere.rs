//! Cases that this machine can't run, measured by this same program in the virtual machine of `hack/vm`.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde::Deserialize;

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

/// Has the cases that these arguments name measured inside, and hands their rows on as they come. The
/// program inside prints its rows as JSON and its progress as [`Progress::lines`].
pub(crate) fn measure(
    session: &mut Session<'_>,
    progress: &Progress,
    vm: &Path,
    arguments: &[String],
) {
    progress.case("starting the virtual machine");
    if let Err(error) = run(session, progress, vm, arguments) {
        session.fail("in the virtual machine", &error);
    }
}

fn run(
    session: &mut Session<'_>,
    progress: &Progress,
    vm: &Path,
    arguments: &[String],
) -> Result<(), BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    let program = vm.display().to_string();
    let mut child = Command::new(vm)
        .args(["run", "--timeout", LIMIT_SECONDS, "--"])
        .arg(own)
        .args(arguments)
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
