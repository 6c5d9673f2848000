//! `trackbed rdma report`.

mod csv;
mod heat;
mod page;
mod sections;

use super::input::{self, ResultFile};
use crate::exit::Failure;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use trackbed_rdma::bench::Report;
use trackbed_rdma::check::CheckReport;
use trackbed_rdma::mesh::{Judgement, Mesh, Tolerance, outliers};

const AFTER_HELP: &str = "\
Examples:
  trackbed rdma bench write bandwidth node-1 --size 2..8M --output json > write.json
  trackbed rdma bench write latency node-1 --size 2..64K --output json > latency.json
  trackbed rdma report write.json latency.json mesh.jsonl -o report.html
  trackbed rdma report write.json --baseline last-month.json --line-rate 200 -o report.html
  trackbed rdma report write.json --csv figures.csv --json figures.json -o report.html

Files hold what bench, mesh and check print with --output json, or a mesh's state file. The report
is one file without scripts or anything from elsewhere: it can be mailed, kept and printed.
Exit status: 0 written, 3 a file can't be read or written.";

/// Draw results as one HTML file
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ReportArgs {
    /// Results of bench, mesh and check
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Where to write the report
    #[arg(short, long, default_value = "report.html", value_name = "FILE")]
    output: PathBuf,

    /// Its heading
    #[arg(long, default_value = "RDMA report")]
    title: String,

    /// Draw these results of bench in grey behind
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Gb/s to compare bandwidth with [default: what each result names]
    #[arg(long, value_name = "GBPS")]
    line_rate: Option<f64>,

    /// Write all figures as CSV, too
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Write everything the report is made of as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Everything that is shown.
#[derive(Serialize)]
pub(super) struct Content {
    pub(super) title: String,
    pub(super) benches: Vec<Report>,
    pub(super) baseline: Vec<Report>,
    pub(super) line_rate_gbit_per_second: Option<f64>,
    pub(super) meshes: Vec<JudgedMesh>,
    pub(super) checks: Vec<CheckReport>,
}

/// A mesh and what stands out in it.
#[derive(Serialize)]
pub(super) struct JudgedMesh {
    pub(super) mesh: Mesh,
    pub(super) judgement: Judgement,
}

pub(crate) fn run(args: ReportArgs) -> Result<(), Failure> {
    if let Some(rate) = args.line_rate
        && !(rate > 0.0 && rate <= 1e6)
    {
        return Err(Failure::unable(format!(
            "--line-rate {rate} is no rate in Gb/s: give 100, 200, 400, …"
        )));
    }
    let mut content = Content {
        title: args.title,
        benches: Vec::new(),
        baseline: Vec::new(),
        line_rate_gbit_per_second: args.line_rate,
        meshes: Vec::new(),
        checks: Vec::new(),
    };
    for file in &args.files {
        for result in input::read(file)? {
            match result {
                ResultFile::Bench(report) => content.benches.push(*report),
                ResultFile::Mesh(mesh) => {
                    let judgement = outliers(&mesh, &Tolerance::default());
                    content.meshes.push(JudgedMesh {
                        mesh: *mesh,
                        judgement,
                    });
                }
                ResultFile::Check(check) => content.checks.push(check),
            }
        }
    }
    if let Some(path) = &args.baseline {
        for result in input::read(path)? {
            if let ResultFile::Bench(report) = result {
                content.baseline.push(*report);
            }
        }
        if content.baseline.is_empty() {
            return Err(Failure::unable(format!(
                "{} holds no result of `trackbed rdma bench`",
                path.display()
            )));
        }
    }
    let html = page::html(&content).map_err(|error| {
        Failure::failed(format!(
            "cannot draw the report: {error}: please report this"
        ))
    })?;
    write(&args.output, &html)?;
    if let Some(path) = &args.csv {
        write(path, &csv::figures(&content))?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&content)
            .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
        write(path, &text)?;
    }
    eprintln!("wrote {}", args.output.display());
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|error| Failure::unable(format!("cannot write {}: {error}", path.display())))
}

#[cfg(test)]
mod tests;
