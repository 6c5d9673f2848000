//! `trackbed rdma check`.

mod prometheus;

use super::{print, print_json, table};
use crate::exit::Failure;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use trackbed_rdma::check::{
    CheckReport, Expectation, LoadOptions, Scope, Selection, Severity, Verdict, gather, judge, load,
};

const AFTER_HELP: &str = "\
Examples:
  trackbed rdma check
  trackbed rdma check --expect-rate 400 --expect-mtu 4096
  trackbed rdma check --device mlx5_0 --device mlx5_1/1 --no-load
  trackbed rdma check --output json | jq -r '.findings[] | select(.severity == \"failure\").remedy'
  trackbed rdma check --output prometheus > /var/lib/node_exporter/trackbed.prom

docs/rdma-check.md lists everything that is looked at.
Exit status: 0 fit, 1 not fit, 2 something that decides could not be found out, 3 there is no
device to check.";

/// Say whether this node is fit for RDMA, and what to do where it is not
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct CheckArgs {
    /// Only this device, or this port of it; more than once for several [default: all]
    #[arg(long, value_name = "DEVICE[/PORT]")]
    device: Vec<Selection>,

    /// The rate that each port must have, in Gb/s [default: that of its siblings]
    #[arg(long, value_name = "GBPS")]
    expect_rate: Option<f64>,

    /// The active MTU that each port must have: 256, 512, 1024, 2048 or 4096
    #[arg(long, value_name = "BYTES")]
    expect_mtu: Option<u32>,

    /// Leave out the load, and with it the counters that must not rise meanwhile
    #[arg(long)]
    no_load: bool,

    /// Seconds of load on each port, from the device to itself
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    load_time: f64,

    /// Judge the sys and proc trees that were copied to this folder, instead of this machine
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,

    /// Show in the table what is as it should be, too
    #[arg(long)]
    all: bool,

    /// The form of what is printed
    #[arg(long, value_enum, default_value_t = Form::Table, value_name = "FORM")]
    output: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// For programs: one JSON value
    Json,
    /// For node_exporter's textfile collector
    Prometheus,
}

pub(crate) fn run(args: CheckArgs) -> Result<(), Failure> {
    let expectation = expectation(&args)?;
    let options = LoadOptions {
        time: load_time(args.load_time)?,
    };
    let live = args.root.is_none();
    let root = args.root.clone().unwrap_or_else(|| PathBuf::from("/"));
    let scope = Scope {
        root: &root,
        live,
        selections: &args.device,
    };
    let mut facts = gather(&scope).map_err(Failure::unable)?;
    if live && !args.no_load {
        load(&mut facts, &options, &mut |port| {
            eprintln!("loading {port} for {} s", args.load_time);
        });
    }
    let report = CheckReport::new(node_name(), judge(&facts, &expectation));
    match args.output {
        Form::Table => print(&text(&report, args.all))?,
        Form::Json => print_json(&report)?,
        Form::Prometheus => {
            print(prometheus::text(&report, std::time::SystemTime::now()).trim_end())?
        }
    }
    match report.verdict {
        Verdict::Pass => Ok(()),
        // The findings have been printed; there is nothing to add.
        Verdict::Fail => Err(Failure::silent(1)),
        Verdict::Inconclusive => Err(Failure::silent(2)),
    }
}

fn node_name() -> String {
    super::node_name().unwrap_or_else(|| "this node".to_owned())
}

fn expectation(args: &CheckArgs) -> Result<Expectation, Failure> {
    if let Some(rate) = args.expect_rate
        && !(rate.is_finite() && rate > 0.0)
    {
        return Err(Failure::unable(format!(
            "--expect-rate {rate} is no rate in Gb/s: give 100, 200, 400, …"
        )));
    }
    if let Some(mtu) = args.expect_mtu
        && ![256, 512, 1024, 2048, 4096].contains(&mtu)
    {
        return Err(Failure::unable(format!(
            "--expect-mtu {mtu} is no RDMA MTU: give 256, 512, 1024, 2048 or 4096"
        )));
    }
    Ok(Expectation {
        rate_gbps: args.expect_rate,
        mtu: args.expect_mtu,
    })
}

fn load_time(seconds: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| (Duration::from_millis(1)..=Duration::from_secs(3600)).contains(time))
        .ok_or_else(|| {
            Failure::unable(format!("--load-time {seconds}: give 0.001 to 3600 seconds"))
        })
}

/// A report for people: what is not as it should be, what to do, and the verdict.
pub(crate) fn text(report: &CheckReport, all: bool) -> String {
    let mut parts = Vec::new();
    let shown: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| all || finding.severity != Severity::Ok)
        .collect();
    if !shown.is_empty() {
        let mut table = table(&["SEVERITY", "CHECK", "SUBJECT", "FOUND", "EXPECTED"]);
        for finding in &shown {
            table.add_row([
                finding.severity.to_string(),
                finding.id.clone(),
                finding.subject.clone(),
                finding.found.clone(),
                finding.expected.clone().unwrap_or_default(),
            ]);
        }
        table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
        parts.push(table.to_string());
    }
    let remedies: Vec<String> = shown
        .iter()
        .filter(|finding| finding.severity >= Severity::Warning)
        .filter_map(|finding| {
            let remedy = finding.remedy.as_ref()?;
            Some(format!("  {} {}: {remedy}", finding.subject, finding.id))
        })
        .collect();
    if !remedies.is_empty() {
        parts.push(format!("What to do:\n{}", remedies.join("\n")));
    }
    let counts: Vec<String> = Severity::ALL
        .iter()
        .rev()
        .filter_map(|severity| {
            let count = report
                .findings
                .iter()
                .filter(|finding| finding.severity == *severity)
                .count();
            (count > 0).then(|| format!("{count} {severity}"))
        })
        .collect();
    let verdict = match report.verdict {
        Verdict::Pass => "fit",
        Verdict::Fail => "not fit",
        Verdict::Inconclusive => "inconclusive: something that decides could not be found out",
    };
    parts.push(format!(
        "{}: {verdict} ({})",
        report.node,
        counts.join(", ")
    ));
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use trackbed_rdma::check::Finding;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: CheckArgs,
    }

    fn parsed(line: &str) -> Result<CheckArgs, clap::Error> {
        Command::try_parse_from(line.split_whitespace()).map(|command| command.args)
    }

    fn report() -> CheckReport {
        let finding = |id: &str, severity, remedy: Option<&str>| Finding {
            id: id.to_owned(),
            severity,
            subject: "mlx5_0/1".to_owned(),
            found: format!("what {id} found"),
            expected: None,
            remedy: remedy.map(str::to_owned),
        };
        CheckReport::new(
            "node-1".to_owned(),
            vec![
                finding("port/mtu", Severity::Ok, None),
                finding("port/state", Severity::Failure, Some("plug the cable in")),
            ],
        )
    }

    #[test]
    fn a_person_sees_what_is_wrong_first_what_to_do_and_the_verdict() {
        let short = text(&report(), false);
        assert!(!short.contains("port/mtu"), "{short}");
        assert!(
            short.contains("mlx5_0/1 port/state: plug the cable in"),
            "{short}"
        );
        assert!(
            short.ends_with("node-1: not fit (1 failure, 1 ok)"),
            "{short}"
        );
        assert!(text(&report(), true).contains("port/mtu"));
    }

    #[test]
    fn expectations_that_make_no_sense_are_refused() {
        for line in [
            "check --device /1",
            "check --device mlx5_0/0",
            "check --output xml",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
        for line in ["--expect-rate=-1", "--expect-rate NaN", "--expect-mtu 1500"] {
            let args = parsed(&format!("check {line}")).expect("parsed");
            assert_eq!(expectation(&args).expect_err("refused").code(), 3, "{line}");
        }
        assert!(load_time(0.0).is_err() && load_time(f64::INFINITY).is_err());
    }
}
