//! `trackbed doctor`: what of Trackbed works on this machine, and how to mend what does not.
//!
//! It tries things out rather than going by versions: starts a ring with the memory that a node pins,
//! mounts a file, an image, writes past the page cache. What it makes it takes away again.

mod disk;
mod kernel;
mod kubelet;

use crate::exit::Failure;
use crate::node::DEFAULT_MEMORY;
use crate::output::{Output, print};
use crate::rdma::{check, node_name, print_json};
use crate::size::Size;
use clap::Args;
use std::path::{Path, PathBuf};
use trackbed_rdma::check::{
    CheckReport, Expectation, Finding, Scope, Verdict, gather, gather_node, judge,
};

const AFTER_HELP: &str = "\
Examples:
  trackbed doctor --cache-dir /mnt/nvme/trackbed
  trackbed doctor --cache-dir /mnt/nvme/trackbed --kubelet-root /var/lib/kubelet
  trackbed doctor --output json | jq -r '.findings[] | select(.severity == \"failure\").remedy'

docs/doctor.md lists everything that is looked at. RDMA devices are looked at as by `trackbed rdma
check --no-load`.
Exit status: 0 what is needed works, 1 something that is needed does not, 2 something that decides
could not be found out.";

/// Say what will work on this machine, and how to mend what will not
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DoctorArgs {
    /// Folder of the cache; may be given several times, once for each disk
    #[arg(
        long,
        env = "TRACKBED_CACHE_DIR",
        value_name = "FOLDER",
        value_delimiter = ',',
        default_value = "/var/lib/trackbed"
    )]
    cache_dir: Vec<PathBuf>,

    /// What kubelet is told by --root-dir; without it kubelet's folders are not looked at
    #[arg(long, value_name = "FOLDER")]
    kubelet_root: Option<PathBuf>,

    /// Memory that the node is to pin for data on its way
    #[arg(long, env = "TRACKBED_MEMORY", value_name = "SIZE", default_value_t = DEFAULT_MEMORY)]
    memory: Size,

    /// Peers are to talk verbs: without a device that can the machine is not fit
    #[arg(long)]
    need_rdma: bool,

    /// Show in the table what is as it should be, too
    #[arg(long)]
    all: bool,

    /// The form of what is printed
    #[arg(long, value_enum, default_value = "table", value_name = "FORM")]
    output: Output,
}

/// Looks, prints, and ends with the verdict.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let mut findings = kernel::look(args.memory.0, &args.cache_dir[0]);
    for folder in &args.cache_dir {
        findings.extend(disk::look(folder));
    }
    if let Some(root) = &args.kubelet_root {
        findings.extend(kubelet::look(Path::new("/proc"), root));
    }
    findings.extend(rdma(Path::new("/"), args.need_rdma));
    let node = node_name().unwrap_or_else(|| "this node".to_owned());
    let report = CheckReport::new(node, findings);
    match args.output {
        Output::Table => print(&check::text(&report, args.all))?,
        Output::Json => print_json(&report)?,
    }
    match report.verdict {
        Verdict::Pass => Ok(()),
        // The findings have been printed; there is nothing to add.
        Verdict::Fail => Err(Failure::silent(1)),
        Verdict::Inconclusive => Err(Failure::silent(2)),
    }
}

/// Devices, ports, addresses, PCI, locked memory, huge pages.
fn rdma(root: &Path, needed: bool) -> Vec<Finding> {
    const ID: &str = "rdma/devices";
    let scope = Scope {
        root,
        live: true,
        selections: &[],
    };
    let facts = match gather(&scope) {
        Ok(facts) => facts,
        Err(error) => {
            let why = error.to_string();
            let mut findings = judge(&gather_node(root), &Expectation::default());
            findings.push(match needed {
                true => Finding::failure(ID, "node", why).expected("a device, since peers are to talk verbs")
                    .remedy("load the driver of the adapter (`trackbed rdma devices` says what is there), or let peers talk TCP (--fabric tcp)"),
                false => Finding::note(ID, "node", why).expected("a device, for peers to talk verbs; they talk TCP"),
            });
            return findings;
        }
    };
    judge(&facts, &Expectation::default())
}
