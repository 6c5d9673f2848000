//! A bucket's mount beside rclone's and s3fs's, of the same bucket on the same server.
//!
//! Every run begins with nothing cached: a new node, a new mount of the peer's, empty page caches. What
//! is timed is reading all files once, with several readers as a training job has them. So that the
//! server is not what is measured, it is one that costs little (`rclone serve s3`, its objects in memory),
//! and two rows show what it gives to a plain client, beside rclone's mount.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use trackbed_tests::{
    cluster::Cluster,
    rclone::{self, RcloneS3},
};

use super::{Settings, drop_caches, files_below, memory_or_disk, refused};
use crate::{
    BenchError,
    command::{Running, start},
    dataset::{self, read_files},
    paired::Better,
    row::Case,
    session::Session,
};

/// Readers of small files, as many as a data loader has workers.
const READERS: usize = 4;
/// Files of the large dataset.
const LARGE_FILES: usize = 2;
/// Bytes of each.
const LARGE_BYTES: u64 = 128 << 20;
/// More than the objects of all cases take.
const OBJECTS_BYTES: u64 = 4 << 30;
/// How long a peer may take to mount.
const MOUNTED_WITHIN: Duration = Duration::from_secs(30);

/// What is read: the name of the cases, the ratio wanted, the unit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
    Small,
    Large,
}

impl Files {
    const BOTH: [Files; 2] = [Files::Small, Files::Large];

    fn name(self) -> &'static str {
        match self {
            Self::Small => "s3-small-files",
            Self::Large => "s3-large",
        }
    }

    fn goal(self) -> f64 {
        match self {
            Self::Small => 4.0,
            Self::Large => 2.0,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Small => "files/s",
            Self::Large => "MB/s",
        }
    }

    fn readers(self) -> usize {
        match self {
            Self::Small => READERS,
            Self::Large => LARGE_FILES,
        }
    }

    /// The figure of reading this many files with so many bytes in this time.
    fn figure(self, files: usize, bytes: u64, seconds: f64) -> f64 {
        match self {
            Self::Small => files as f64 / seconds,
            Self::Large => bytes as f64 / 1e6 / seconds,
        }
    }

    fn write(self, root: &Path) -> Result<(), BenchError> {
        match self {
            Self::Small => dataset::write_small(root),
            Self::Large => dataset::write_large(root, LARGE_FILES, LARGE_BYTES),
        }
    }
}

/// Another program that mounts buckets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Rclone,
    S3fs,
}

impl Peer {
    const BOTH: [Peer; 2] = [Peer::Rclone, Peer::S3fs];

    fn name(self) -> &'static str {
        match self {
            Self::Rclone => "rclone",
            Self::S3fs => "s3fs",
        }
    }

    /// The program in the foreground, mounting the bucket at `target`, its files in `folder`.
    fn command(self, server: &RcloneS3, bucket: &str, folder: &Path, target: &Path) -> Command {
        let mut command = Command::new(self.name());
        let endpoint = server.endpoint();
        match self {
            Self::Rclone => {
                let remote = format!(":s3,provider=Other,env_auth,endpoint='{endpoint}':{bucket}");
                command
                    .args(["mount", "--read-only", "--vfs-cache-mode=off"])
                    .arg(format!("--config={}", folder.join("rclone").display()))
                    .arg(format!("--cache-dir={}", folder.join("cache").display()))
                    .arg(remote)
                    .arg(target)
                    .envs(server.environment())
                    // It refuses to start where this is set, and asks for plain HTTP only.
                    .env_remove("AWS_CA_BUNDLE");
            }
            Self::S3fs => {
                command
                    .args([bucket.as_ref(), target.as_os_str()])
                    .args(["-f", "-o", "ro,use_path_request_style,parallel_count=16"])
                    .args(["-o", "multireq_max=64,max_stat_cache_size=100000"])
                    .args(["-o", &format!("url={endpoint}")])
                    .envs(
                        server
                            .environment()
                            .map(|(name, value)| (name.replace('_', ""), value)),
                    );
            }
        }
        command
    }
}

/// The names of the rows.
pub(super) fn names() -> Vec<String> {
    let of = |files: Files| {
        let peers = Peer::BOTH.map(|peer| format!("{}/{}", files.name(), peer.name()));
        peers
            .into_iter()
            .chain([format!("{}/server", files.name())])
    };
    Files::BOTH.into_iter().flat_map(of).collect()
}

/// Measures those that are wanted.
pub(super) fn measure(
    session: &mut Session<'_>,
    settings: &Settings,
    wanted: &[String],
) -> Result<(), BenchError> {
    let server = server(&Files::BOTH.map(Files::name))?;
    for files in Files::BOTH {
        let asked = |row: &str| wanted.contains(&format!("{}/{row}", files.name()));
        if !(asked("server") || Peer::BOTH.iter().any(|peer| asked(peer.name()))) {
            continue;
        }
        files.write(&server.bucket(files.name()))?;
        let case = |row: &str, peer_name, goal| Case {
            bench: "cache",
            name: format!("{}/{row}", files.name()),
            peer_name,
            unit: files.unit(),
            better: Better::Higher,
            goal,
        };
        for peer in Peer::BOTH {
            if asked(peer.name()) {
                session.measure(
                    &case(peer.name(), peer.name(), files.goal()),
                    settings.pairs,
                    &mut || {
                        let (_cluster, mount) = ours(settings, &server, files.name())?;
                        read_all(&mount, files)
                    },
                    &mut || theirs(peer, &server, files),
                );
            }
        }
        if asked("server") {
            session.measure(
                &case("server", "rclone", 1.0),
                settings.pairs,
                &mut || settings.runtime.block_on(plain_client(&server, files)),
                &mut || theirs(Peer::Rclone, &server, files),
            );
        }
    }
    Ok(())
}

/// A new server with these buckets.
pub(super) fn server(buckets: &[&str]) -> Result<RcloneS3, BenchError> {
    let program = rclone::program().ok_or_else(|| {
        BenchError::Unavailable(
            "no S3 server: hack/bench installs one and sets TRACKBED_RCLONE".to_owned(),
        )
    })?;
    // In memory, so that dropping caches does not make it read a disk.
    let parent = memory_or_disk(OBJECTS_BYTES);
    let started = RcloneS3::start(&program, &parent, buckets);
    started.map_err(BenchError::io("starting an S3 server"))
}

/// The URL of a bucket as an origin.
pub(super) fn url(server: &RcloneS3, bucket: &str) -> String {
    let credentials = server.credentials_file();
    format!(
        "s3://{bucket}/?endpoint={}&credentials={}",
        server.endpoint(),
        credentials.display()
    )
}

/// A new node with the bucket mounted.
pub(super) fn ours(
    settings: &Settings,
    server: &RcloneS3,
    bucket: &str,
) -> Result<(Cluster, PathBuf), BenchError> {
    settings.runtime.block_on(async {
        let cluster = Cluster::start(1)
            .await
            .map_err(BenchError::io("starting a node"))?;
        let node = &cluster.nodes[0];
        node.register("bench", &url(server, bucket))
            .await
            .map_err(refused)?;
        let mount = node.mount("bench").await.map_err(refused)?;
        Ok((cluster, mount))
    })
}

/// A peer's mount, new as well.
fn theirs(peer: Peer, server: &RcloneS3, files: Files) -> Result<f64, BenchError> {
    let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
    let mount = Mounted::new(peer, server, files.name(), folder)?;
    read_all(&mount.target, files)
}

/// A mount of a peer's; taken away when dropped.
struct Mounted {
    target: PathBuf,
    // Ends the program when dropped, after the mount was taken away.
    _program: Running,
    _folder: TempDir,
}

impl Mounted {
    fn new(
        peer: Peer,
        server: &RcloneS3,
        bucket: &str,
        folder: TempDir,
    ) -> Result<Mounted, BenchError> {
        let target = folder.path().join("mount");
        std::fs::create_dir(&target).map_err(BenchError::io("making a mount point"))?;
        let mut command = peer.command(server, bucket, folder.path(), &target);
        let program = start(&mut command)?;
        let program = program.ready(MOUNTED_WITHIN, "mount", |_| is_mounted(&target))?;
        Ok(Mounted {
            target,
            _program: program,
            _folder: folder,
        })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What stays mounted shows as a busy temporary folder.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.target)
            .stderr(Stdio::null())
            .status();
    }
}

fn is_mounted(target: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let target = target.display().to_string();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&target))
}

/// Reads all files below a mount once.
fn read_all(mount: &Path, files: Files) -> Result<f64, BenchError> {
    drop_caches()?;
    let start = Instant::now();
    let paths = files_below(mount)?;
    let bytes = read_files(&paths, files.readers())?;
    Ok(files.figure(paths.len(), bytes, start.elapsed().as_secs_f64()))
}

/// What the server gives to a client that does nothing with it.
async fn plain_client(server: &RcloneS3, files: Files) -> Result<f64, BenchError> {
    let start = Instant::now();
    let (objects, bytes) = server
        .get_all(files.name())
        .await
        .map_err(BenchError::io("getting the objects of a bucket"))?;
    Ok(files.figure(objects, bytes, start.elapsed().as_secs_f64()))
}
