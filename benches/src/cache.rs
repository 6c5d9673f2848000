//! The dataset cache beside its peers: what a pod pays for reading through the mount, how fast a cold
//! node is filled, and what a million files cost.
//!
//! Each case is measured in pairs on this machine, and one that fails does not keep the others back.

mod fill;
mod million;
mod mount;
mod nfs;
mod s3;

use std::path::{Path, PathBuf};

use clap::Args;
use tokio::runtime::Runtime;
use tonic::Status;

use crate::{BenchError, elsewhere, progress::Progress, row::Row, session::Session};

pub use nfs::{ReadOptions, answer};

/// Pairs on every change, and in the long run.
const PAIRS: (usize, usize) = (5, 40);

/// Which cases, and how often.
#[derive(Debug, Args)]
pub struct Options {
    /// Only the cases whose name begins so, such as `random-4k` or `fill/peer`; may be repeated.
    #[arg(long, value_name = "PREFIX")]
    case: Vec<String>,
    /// Say which cases there are, and end.
    #[arg(long)]
    list: bool,
    /// Pairs of runs for each case [default: 5, with --long 40].
    #[arg(long)]
    pairs: Option<usize>,
    /// Files of the dataset of a million files.
    #[arg(long, hide = true, default_value_t = 1_000_000)]
    files: usize,
    /// Run the cases that need soft-RoCE in the virtual machine of this script.
    #[arg(long, hide = true, value_name = "SCRIPT")]
    vm: Option<PathBuf>,
    /// Run only the cases that need soft-RoCE, on this machine, and print progress as lines too.
    #[arg(long, hide = true)]
    inside: bool,
}

/// What the modules of the cases need to know.
struct Settings {
    pairs: usize,
    files: usize,
    runtime: Runtime,
}

/// Cases that are set up together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// A mount of a version that is here, beside the same files read natively.
    Mount,
    /// A cold node, beside what it is filled from alone.
    Fill,
    /// A bucket's mount, beside other programs that mount buckets.
    S3,
    /// A dataset of a million files.
    Million,
    /// Nodes with soft-RoCE, beside NFS over RDMA.
    Nfs,
}

const GROUPS: [Group; 5] = [
    Group::Mount,
    Group::Fill,
    Group::S3,
    Group::Million,
    Group::Nfs,
];

impl Group {
    /// The names of its rows.
    fn names(self) -> Vec<String> {
        match self {
            Self::Mount => mount::names(),
            Self::Fill => fill::NAMES.map(str::to_owned).to_vec(),
            Self::S3 => s3::names(),
            Self::Million => million::NAMES.map(str::to_owned).to_vec(),
            Self::Nfs => vec![nfs::NAME.to_owned()],
        }
    }

    /// Whether it is measured where soft-RoCE works in network namespaces.
    fn needs_soft_roce(self) -> bool {
        self == Self::Nfs
    }

    /// Measures those of its cases that are wanted.
    fn measure(self, session: &mut Session<'_>, settings: &Settings, wanted: &[String]) {
        let measured = match self {
            Self::Mount => mount::measure(session, settings, wanted),
            Self::Fill => fill::measure(session, settings, wanted),
            Self::S3 => s3::measure(session, settings, wanted),
            Self::Million => million::measure(session, settings, wanted),
            Self::Nfs => nfs::measure(session, settings),
        };
        if let Err(error) = measured {
            session.fail(&wanted.join(", "), &error);
        }
    }
}

/// Measures each case and hands over its row when it is done.
pub fn measure(
    options: &Options,
    long: bool,
    print: &mut dyn FnMut(Row),
) -> Result<(), BenchError> {
    let is_wanted = |name: &String| {
        options.case.is_empty() || options.case.iter().any(|prefix| name.starts_with(prefix))
    };
    let groups = GROUPS
        .into_iter()
        .filter(|group| !options.inside || group.needs_soft_roce())
        .map(|group| {
            let wanted: Vec<String> = group.names().into_iter().filter(is_wanted).collect();
            (group, wanted)
        })
        .filter(|(_, wanted)| !wanted.is_empty());
    if options.list {
        for (_, wanted) in groups {
            wanted.iter().for_each(|name| println!("{name}"));
        }
        return Ok(());
    }
    let (there, here): (Vec<_>, Vec<_>) =
        groups.partition(|(group, _)| options.vm.is_some() && group.needs_soft_roce());
    if here.is_empty() && there.is_empty() {
        return Err(BenchError::Unavailable(format!(
            "no case begins with {}: `hack/bench cache --list` names them",
            options.case.join(" or ")
        )));
    }
    if !here.is_empty() {
        drop_caches()?;
    }
    let pairs = options
        .pairs
        .unwrap_or(if long { PAIRS.1 } else { PAIRS.0 });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(BenchError::io("starting a runtime"))?;
    let settings = Settings {
        pairs,
        files: options.files,
        runtime,
    };
    let progress = match options.inside {
        true => Progress::lines(),
        false => Progress::bar(),
    };
    let count: usize = here.iter().map(|(_, wanted)| wanted.len()).sum();
    progress.expect((count * pairs) as u64);
    let mut session = Session::new(&progress, print);
    for (group, wanted) in here {
        group.measure(&mut session, &settings, &wanted);
    }
    if let Some(vm) = options.vm.as_ref().filter(|_| !there.is_empty()) {
        let cases = there.iter().flat_map(|(_, wanted)| wanted);
        let arguments = inside(cases, pairs);
        elsewhere::measure(&mut session, &progress, vm, &arguments);
    }
    progress.finish();
    session.end()
}

/// The arguments of this program in the virtual machine.
fn inside<'a>(cases: impl Iterator<Item = &'a String>, pairs: usize) -> Vec<String> {
    let pairs = pairs.to_string();
    let words = ["cache", "--json", "--inside", "--pairs", &pairs];
    let mut words = words.map(str::to_owned).to_vec();
    for case in cases {
        words.extend(["--case".to_owned(), case.clone()]);
    }
    words
}

/// What a node of the benchmark answered instead of doing it.
fn refused(status: Status) -> BenchError {
    BenchError::Unavailable(status.message().to_owned())
}

/// Empties the page cache, the directory cache and the inode cache of this machine.
fn drop_caches() -> Result<(), BenchError> {
    const SWITCH: &str = "/proc/sys/vm/drop_caches";
    std::fs::write(SWITCH, "3").map_err(|error| {
        BenchError::Unavailable(format!(
            "cold reads need empty caches, and {SWITCH} can't be written ({error}): run as root"
        ))
    })
}

/// Where files of so many bytes lie in memory, if there is room, else on a disk.
fn memory_or_disk(bytes: u64) -> PathBuf {
    const MEMORY: &str = "/dev/shm";
    let room = nix::sys::statvfs::statvfs(MEMORY)
        .is_ok_and(|memory| memory.blocks_available() * memory.fragment_size() > bytes);
    match room {
        true => MEMORY.into(),
        false => std::env::temp_dir(),
    }
}

/// All files below a folder, in the order of their paths.
fn files_below(root: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let attempt = || BenchError::io(format!("listing {}", root.display()));
    let (mut folders, mut files) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(attempt())? {
            let entry = entry.map_err(attempt())?;
            let kind = entry.file_type().map_err(attempt())?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What machines look for; changing a name is changing an interface.
    #[test]
    fn the_cases_have_the_names_that_machines_know() {
        let names: Vec<String> = GROUPS.into_iter().flat_map(Group::names).collect();
        for name in [
            "sequential/cold",
            "sequential/warm",
            "random-4k/cold",
            "random-4k/warm",
            "random-128k/cold",
            "random-128k/warm",
            "small-files/cold",
            "small-files/warm",
            "fill/peer",
            "fill/origin",
            "s3-small-files/rclone",
            "s3-small-files/s3fs",
            "s3-large/rclone",
            "s3-large/s3fs",
            "million-files/mount",
            "million-files/memory",
            "nfs-rdma/shared",
        ] {
            assert!(names.iter().any(|each| each == name), "{name}: {names:?}");
        }
    }
}
