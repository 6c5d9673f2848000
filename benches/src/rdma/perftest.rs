//! The peers' command lines and what they print: perftest's programs and `ibv_rc_pingpong`.

use std::process::Command;

use super::transfer::{DEPTH, Figure, Run, Transfer, both};
use crate::{BenchError, soft_roce::End};

/// Runs both ends of the peer's program for the same transfer.
pub(super) fn measure(
    transfer: &Transfer,
    [client, server]: &[End; 2],
    run: Run,
) -> Result<f64, BenchError> {
    both(
        command(transfer, server, run, None),
        command(transfer, client, run, Some(&server.address)),
        run.port,
        |printed| figure(transfer, printed),
    )
}

fn program(transfer: &Transfer) -> String {
    let verb = transfer.verb.name();
    match transfer.figure {
        Figure::Bandwidth => format!("ib_{verb}_bw"),
        Figure::Latency => format!("ib_{verb}_lat"),
        Figure::LatencyEvents => "ibv_rc_pingpong".to_owned(),
    }
}

fn command(transfer: &Transfer, end: &End, run: Run, peer: Option<&str>) -> Command {
    let mut words: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("-d", end.device.clone());
    option("-s", transfer.size.to_string());
    option("-n", run.count.to_string());
    option("-p", run.port.to_string());
    option("-m", "4096".to_owned());
    match transfer.figure {
        Figure::Bandwidth => {
            option("-x", run.gid.to_string());
            option("-t", DEPTH.min(run.count).to_string());
            option("-Q", transfer.signal_every().to_string());
            words.extend(["-F", "--report_gbits", "--output=bandwidth"].map(str::to_owned));
        }
        Figure::Latency => {
            option("-x", run.gid.to_string());
            // Reads know no inline data, and perftest then not the option.
            if transfer.inline() > 0 {
                option("-I", transfer.inline().to_string());
            }
            words.push("-F".to_owned());
        }
        Figure::LatencyEvents => {
            option("-g", run.gid.to_string());
            words.push("-e".to_owned());
        }
    }
    words.extend(peer.map(str::to_owned));
    let mut command = end.command(&program(transfer));
    command.args(words);
    command
}

fn figure(transfer: &Transfer, printed: &str) -> Result<f64, BenchError> {
    let found = match transfer.figure {
        // `--output=bandwidth` prints the average alone, after whatever else it has to say.
        Figure::Bandwidth => printed
            .split_whitespace()
            .next_back()
            .and_then(|word| word.parse().ok()),
        Figure::Latency => typical_latency(printed, transfer.size),
        Figure::LatencyEvents => round_trip(printed).map(|time| time / 2.0),
    };
    found.ok_or_else(|| BenchError::Output {
        program: program(transfer),
        output: printed.trim().to_owned(),
    })
}

/// The median, in the table's column `t_typical[usec]`: `ib_write_lat` and the like.
fn typical_latency(printed: &str, size: u64) -> Option<f64> {
    let mut lines = printed.lines().map(|line| line.split_whitespace());
    let column = lines.find_map(|mut words| {
        (words.clone().next() == Some("#bytes"))
            .then(|| words.position(|word| word.starts_with("t_typical")))?
    })?;
    lines.find_map(|mut words| {
        (words.clone().next()?.parse() == Ok(size)).then(|| words.nth(column)?.parse().ok())?
    })
}

/// `1000 iters in 0.13 seconds = 134.35 usec/iter`: `ibv_rc_pingpong`.
fn round_trip(printed: &str) -> Option<f64> {
    let line = printed.lines().find(|line| line.ends_with("usec/iter"))?;
    line.split_whitespace().nth_back(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::transfer::Verb;

    fn transfer(figure: Figure) -> Transfer {
        Transfer {
            verb: Verb::Write,
            figure,
            size: 64,
        }
    }

    #[test]
    fn bandwidth_is_the_last_word() {
        let printed = "WARNING: BW peak won't be measured in this run.\n0.356\n";
        let found = figure(&transfer(Figure::Bandwidth), printed);
        assert_eq!(found.expect("a figure"), 0.356);
    }

    #[test]
    fn latency_is_the_median_of_the_right_row() {
        let printed = "\
---------------------------------------------------------------------------------------
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]
 2       1000          100.00         900.00       110.00             120.00
 64      1000          101.00         901.00       111.50             121.00
---------------------------------------------------------------------------------------
";
        let found = figure(&transfer(Figure::Latency), printed);
        assert_eq!(found.expect("a figure"), 111.5);
        assert!(figure(&transfer(Figure::Latency), "nothing").is_err());
    }

    #[test]
    fn event_mode_counts_one_way() {
        let printed = "  remote address: LID 0x0000\n\
            128000 bytes in 0.13 seconds = 7.62 Mbit/sec\n\
            1000 iters in 0.13 seconds = 134.40 usec/iter\n";
        let found = figure(&transfer(Figure::LatencyEvents), printed);
        assert_eq!(found.expect("a figure"), 67.2);
    }
}
