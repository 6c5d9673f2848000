//! The data plane beside its peers: verbs beside perftest, the shard beside fio, and on request either
//! beside another crate for the same.
//!
//! Some cases need no device: what posting costs in instructions, how fast a shard reads. They run
//! on this machine. The others run on two RDMA devices joined by a link; a machine without any
//! runs them in the virtual machine of `hack/vm`, which measures with this same program and hands
//! its rows over. Each case is measured in pairs, and one that fails does not keep the others back.

mod disk_to_nic;
mod instructions;
mod io_uring;
mod peers;
mod perftest;
mod transfer;

use std::path::PathBuf;

use clap::Args;

use crate::{
    BenchError, elsewhere,
    progress::Progress,
    row::Row,
    session::Session,
    soft_roce::{End, SoftRoce},
};

pub use disk_to_nic::{PumpOptions, pump};

/// Pairs on every change, and in the long run.
const PAIRS: (usize, usize) = (8, 75);

/// Which devices, and what is sent.
#[derive(Debug, Args)]
pub struct Options {
    /// Only the cases whose name begins so, such as `write/latency` or `io_uring`; may be repeated.
    /// Those that begin with `peers` are measured only on request, by this or by --long.
    #[arg(long, value_name = "PREFIX")]
    case: Vec<String>,
    /// Say which cases there are, and end.
    #[arg(long)]
    list: bool,
    /// Our device [default: a soft-RoCE link made for the occasion].
    #[arg(long, requires = "peer_device")]
    device: Option<String>,
    /// The device on the other end of the link, on this machine too.
    #[arg(long, requires = "device")]
    peer_device: Option<String>,
    /// Index of the GID that both ends use.
    #[arg(long, default_value_t = 1)]
    gid_index: u8,
    /// Message sizes in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 4096, 65_536, 1 << 20])]
    sizes: Vec<u64>,
    /// Pairs of runs for each case [default: 8, with --long 75].
    #[arg(long)]
    pairs: Option<usize>,
    /// A folder on the disk that is read; 300 MB are written to it [default: beside this program, in
    /// the virtual machine its own disk].
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Run the cases that need a device in the virtual machine of this script.
    #[arg(long, hide = true, value_name = "SCRIPT")]
    vm: Option<PathBuf>,
    /// Leave out the cases whose name begins so; may be repeated.
    #[arg(long, hide = true, value_name = "PREFIX")]
    skip: Vec<String>,
    /// Run only the cases that need a device, and print progress as lines too.
    #[arg(long, hide = true)]
    inside: bool,
}

/// What the modules of the cases need to know.
#[derive(Debug)]
struct Settings {
    long: bool,
    pairs: usize,
    gid_index: u8,
    folder: PathBuf,
}

/// A case, before it is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CaseOf {
    /// Instructions and allocations of posting and polling: three rows.
    Instructions,
    /// A shard's reads beside fio's, and the user time they take: two rows.
    IoUring,
    /// Messages beside perftest's.
    Transfer(transfer::Transfer),
    /// From the disk into the adapter beside the slower of fio and perftest.
    DiskToNic,
    /// The same work through another crate.
    Peers(peers::Peers),
}

impl CaseOf {
    /// The names of its rows.
    fn names(&self) -> Vec<String> {
        match self {
            Self::Instructions => instructions::NAMES.map(str::to_owned).to_vec(),
            Self::IoUring => io_uring::NAMES.map(str::to_owned).to_vec(),
            Self::Transfer(transfer) => vec![transfer.name()],
            Self::DiskToNic => vec![disk_to_nic::NAME.to_owned()],
            Self::Peers(peers) => vec![peers.name()],
        }
    }

    fn needs_device(&self) -> bool {
        match self {
            Self::Instructions | Self::IoUring => false,
            Self::Transfer(_) | Self::DiskToNic => true,
            Self::Peers(peers) => peers.needs_device(),
        }
    }

    /// Whether it is measured only when somebody asks for it or has much time: its peers take longer to
    /// build than the other cases to run.
    fn is_on_request(&self) -> bool {
        matches!(self, Self::Peers(_))
    }
}

/// All cases, in the order in which they are measured.
fn cases(sizes: &[u64]) -> Vec<CaseOf> {
    let transfers = transfer::all(sizes).into_iter().map(CaseOf::Transfer);
    [CaseOf::Instructions, CaseOf::IoUring]
        .into_iter()
        .chain(transfers)
        .chain([CaseOf::DiskToNic])
        .chain(peers::ALL.map(CaseOf::Peers))
        .collect()
}

impl Options {
    /// Whether a case is to be measured; `all` includes those that are on request.
    fn wants(&self, case: &CaseOf, all: bool) -> bool {
        let begins_with = |prefixes: &[String]| {
            let begins = |name: &String| {
                prefixes
                    .iter()
                    .any(|prefix| name.starts_with(prefix.as_str()))
            };
            case.names().iter().any(begins)
        };
        let asked = if self.case.is_empty() {
            all || !case.is_on_request()
        } else {
            begins_with(&self.case)
        };
        asked && !begins_with(&self.skip)
    }
}

/// Measures each case and hands over its row when it is done.
pub fn measure(
    options: &Options,
    long: bool,
    print: &mut dyn FnMut(Row),
) -> Result<(), BenchError> {
    let all = long || options.list;
    let wanted =
        |case: &CaseOf| options.wants(case, all) && (case.needs_device() || !options.inside);
    let cases: Vec<CaseOf> = cases(&options.sizes).into_iter().filter(wanted).collect();
    if options.list {
        for name in cases.iter().flat_map(CaseOf::names) {
            println!("{name}");
        }
        return Ok(());
    }
    if cases.is_empty() {
        return Err(BenchError::Unavailable(if options.skip.is_empty() {
            format!(
                "no case begins with {}: `hack/bench rdma --list` names them",
                options.case.join(" or ")
            )
        } else {
            "all cases that were asked for are skipped, for the reason above".to_owned()
        }));
    }
    let settings = Settings {
        long,
        pairs: options
            .pairs
            .unwrap_or(if long { PAIRS.1 } else { PAIRS.0 }),
        gid_index: options.gid_index,
        folder: options.folder.clone().unwrap_or_else(usual_folder),
    };
    let progress = if options.inside {
        Progress::lines()
    } else {
        Progress::bar()
    };
    let (there, here): (Vec<CaseOf>, Vec<CaseOf>) = cases
        .into_iter()
        .partition(|case| options.vm.is_some() && case.needs_device());
    progress.expect((here.len() * settings.pairs) as u64);
    let mut session = Session::new(&progress, print);
    // The link must live as long as the measurement.
    let (_link, ends) = if here.iter().any(CaseOf::needs_device) {
        ends(options)?
    } else {
        (None, None)
    };
    for case in &here {
        match (case, &ends) {
            (CaseOf::Instructions, _) => {
                if let Err(error) = instructions::measure(&mut |row| session.row(row)) {
                    session.fail("instructions", &error);
                }
            }
            (CaseOf::IoUring, _) => io_uring::measure(&mut session, &settings),
            (CaseOf::Peers(peers), ends) => {
                peers.measure(&mut session, &settings, ends.as_ref());
            }
            (CaseOf::Transfer(transfer), Some(ends)) => {
                transfer.measure(&mut session, &settings, ends);
            }
            (CaseOf::DiskToNic, Some(ends)) => {
                disk_to_nic::measure(&mut session, &settings, ends);
            }
            (_, None) => unreachable!("the ends are made when a case needs them"),
        }
    }
    if let Some(vm) = options.vm.as_ref().filter(|_| !there.is_empty()) {
        let arguments = inside(options, long);
        elsewhere::measure(&mut session, &progress, vm, &arguments);
    }
    progress.finish();
    session.end()
}

/// The arguments of this program in the virtual machine.
fn inside(options: &Options, long: bool) -> Vec<String> {
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

/// Both ends of a link: devices of this machine, or a link of software devices made for the occasion.
fn ends(options: &Options) -> Result<(Option<SoftRoce>, Option<[End; 2]>), BenchError> {
    if let (Some(device), Some(peer)) = (&options.device, &options.peer_device) {
        return Ok((None, Some([End::here(device), End::here(peer)])));
    }
    let link = SoftRoce::cable()?;
    let ends = [link.ends[0].clone(), link.ends[1].clone()];
    Ok((Some(link), Some(ends)))
}

/// Where the disk of a fresh guest of `hack/vm` is, elsewhere where the build is.
fn usual_folder() -> PathBuf {
    const GUEST_DISK: &str = "/var/lib/trackbed";
    if std::env::var_os("TRACKBED_GUEST").is_some() {
        return GUEST_DISK.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().map_or_else(std::env::temp_dir, Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What machines look for; changing a name is changing an interface.
    #[test]
    fn the_cases_have_the_names_that_machines_know() {
        let names: Vec<String> = cases(&[64, 1 << 20])
            .iter()
            .flat_map(CaseOf::names)
            .collect();
        for name in [
            "instructions/post",
            "instructions/poll",
            "allocations/request",
            "io_uring/read",
            "io_uring/user-time",
            "write/bandwidth/64",
            "read/bandwidth/64",
            "send/bandwidth/1048576",
            "write/latency/64",
            "read/latency/1048576",
            "send/latency/64",
            "send/latency-events/64",
            "disk-to-nic",
            "peers/ibverbs/send/bandwidth/4096",
            "peers/ibverbs/send/latency/64",
            "peers/tokio-uring/read",
        ] {
            assert!(names.iter().any(|each| each == name), "{name}: {names:?}");
        }
    }

    fn options(words: &[&str]) -> Options {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let words = ["rdma"].iter().chain(words);
        <Line as clap::Parser>::parse_from(words).options
    }

    #[test]
    fn peers_that_take_long_to_build_are_measured_on_request() {
        let read = CaseOf::Peers(peers::Peers::Read);
        assert!(!options(&[]).wants(&read, false));
        assert!(options(&[]).wants(&read, true));
        assert!(options(&["--case", "peers"]).wants(&read, false));
        assert!(!options(&["--case", "io_uring"]).wants(&read, true));
        assert!(options(&[]).wants(&CaseOf::DiskToNic, false));
    }

    #[test]
    fn a_peer_that_cannot_be_built_is_left_out_alone() {
        let skip = options(&["--case", "peers", "--skip", "peers/ibverbs"]);
        let latency = CaseOf::Peers(peers::Peers::Latency { size: 64 });
        assert!(!skip.wants(&latency, false));
        assert!(skip.wants(&CaseOf::Peers(peers::Peers::Read), false));
    }
}
