//! A process on each node that reads the dataset as training does.
//!
//! It is also what holds the node's mount namespace: where the node has the share mounted and where
//! `trackbed node` makes its mounts.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use clap::Args;

use super::{
    server,
    tree::{Expected, Tree},
};
use crate::{
    BenchError,
    command::{Asked, run},
    dataset::Noise,
    soft_roce::End,
};

/// Workers of a node's data loader.
const WORKERS: usize = 2;
/// Bytes of a read.
const PIECE: usize = 1 << 20;

/// Runs in a node's namespaces. All hosts have one name here: without one of its own each would seem to
/// the server to be the same client, restarted.
const MOUNT: &str = r#"
modprobe -a nfsv4 rpcrdma
echo "$1" >/sys/fs/nfs/net/nfs_client/identifier
exec mount -t nfs4 -o "ro,vers=4.2,rdma,port=$2" "$3:/" "$4"
"#;

/// What a reader is told at its start.
#[derive(Debug, Args)]
pub struct ReadOptions {
    /// What is to be found: a file that the case wrote.
    #[arg(long)]
    expected: PathBuf,
}

/// The readers of all nodes; dropping them ends them, and with them the nodes' mounts.
pub(super) struct Readers {
    readers: Vec<Asked>,
}

impl Readers {
    /// Starts one at each of these ends.
    pub(super) fn start(ends: &[End], tree: &Tree, folder: &Path) -> Result<Self, BenchError> {
        let expected = folder.join("expected.json");
        let text = serde_json::to_string(tree).expect("a tree is plain data");
        std::fs::write(&expected, text)
            .map_err(BenchError::io(format!("writing {}", expected.display())))?;
        let own = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
        let own = own.display().to_string();
        let started = ends.iter().map(|end| {
            let mut command = end.command(&own);
            command.args(["read", "--expected"]).arg(&expected);
            Asked::start(&mut command)
        });
        Ok(Self {
            readers: started.collect::<Result<_, _>>()?,
        })
    }

    /// What leads a program into a node's namespaces.
    pub(super) fn enter(&self, node: usize) -> Vec<String> {
        let process = self.readers[node].id().to_string();
        let words = ["nsenter", "--mount", "--net", "--target", &process, "--"];
        words.map(str::to_owned).to_vec()
    }

    /// Mounts the server's share on each node, at the same path.
    pub(super) fn mount(&mut self, address: &str, at: &Path) -> Result<(), BenchError> {
        let (port, at) = (server::PORT.to_string(), at.display().to_string());
        for node in 0..self.readers.len() {
            // It answers once it is in its namespaces.
            self.readers[node].ask("")?;
            let mut words = self.enter(node);
            let name = format!("node-{}", node + 1);
            let script = ["sh", "-ec", MOUNT, "sh", &name, &port, address, &at];
            words.extend(script.map(str::to_owned));
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            run(words[0], &words[1..])?;
        }
        Ok(())
    }

    /// Has all nodes read everything below their roots at once, each in an order of its own.
    pub(super) fn read(&mut self, epoch: u64, roots: &[PathBuf]) -> Result<(), BenchError> {
        let nodes = self.readers.len() as u64;
        std::thread::scope(|scope| {
            let each = self.readers.iter_mut().zip(roots).zip(0..);
            let asked: Vec<_> = each
                .map(|((reader, root), node)| {
                    let question = format!("{} {}", epoch * nodes + node, root.display());
                    scope.spawn(move || reader.ask(&question).map(drop))
                })
                .collect();
            let mut answers = asked
                .into_iter()
                .map(|thread| thread.join().expect("it does not panic"));
            // All of them are waited for, whatever the first says.
            let first = answers.find(Result::is_err);
            answers.for_each(drop);
            first.unwrap_or(Ok(()))
        })
    }
}

/// The reader itself: reads a dataset for each line `SEED ROOT` of standard input, and answers with the
/// bytes it compared; a line without either it answers with 0.
pub fn answer(options: &ReadOptions) -> Result<(), BenchError> {
    let path = &options.expected;
    let attempt = || BenchError::io(format!("reading {}", path.display()));
    let text = std::fs::read(path).map_err(attempt())?;
    let tree: Tree =
        serde_json::from_slice(&text).map_err(|error| attempt()(std::io::Error::from(error)))?;
    for line in std::io::stdin().lines() {
        let line = line.map_err(BenchError::io("reading standard input"))?;
        let mut bytes = 0;
        if let Some((seed, root)) = line.split_once(' ') {
            let seed = seed.parse().map_err(|_| BenchError::Output {
                program: "whoever asks for an epoch".to_owned(),
                output: line.clone(),
            })?;
            bytes = epoch(&tree, Path::new(root), seed)?;
        }
        println!("{bytes}");
    }
    Ok(())
}

/// Reads and compares every file once. Returns the bytes.
fn epoch(tree: &Tree, root: &Path, seed: u64) -> Result<u64, BenchError> {
    let order = shuffled(tree.files.len(), seed);
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut buffer = vec![0; PIECE];
        let mut bytes = 0;
        while let Some(&index) = order.get(next.fetch_add(1, Relaxed)) {
            let expected = &tree.files[index];
            compare(expected, &root.join(&expected.path), &mut buffer)?;
            bytes += expected.bytes;
        }
        Ok(bytes)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("it does not panic"))
            .sum()
    })
}

/// Reads a file to its end and holds its length and checksum against what is expected.
fn compare(expected: &Expected, path: &Path, buffer: &mut [u8]) -> Result<(), BenchError> {
    let attempt = || BenchError::io(format!("reading {}", path.display()));
    let mut file = File::open(path).map_err(attempt())?;
    let (mut bytes, mut crc32c) = (0, 0);
    loop {
        match file.read(buffer).map_err(attempt())? {
            0 => break,
            read => {
                bytes += read as u64;
                crc32c = crc32c::crc32c_append(crc32c, &buffer[..read]);
            }
        }
    }
    if (bytes, crc32c) == (expected.bytes, expected.crc32c) {
        return Ok(());
    }
    Err(BenchError::Unavailable(format!(
        "{} has {bytes} bytes with the checksum {crc32c:#010x}, and not {} with {:#010x}",
        path.display(),
        expected.bytes,
        expected.crc32c
    )))
}

/// The numbers below `count` in an order that the seed decides (Fisher and Yates).
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut noise = Noise(seed);
    for last in (1..count).rev() {
        order.swap(last, (noise.draw() % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::nfs::tree;

    #[test]
    fn each_epoch_has_every_file_once_in_an_order_of_its_own() {
        let (first, second) = (shuffled(260, 0), shuffled(260, 1));
        assert_ne!(first, second);
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, (0..260).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_reader_notices_a_byte_that_is_wrong_and_one_that_is_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let tree = tree::write(folder.path()).expect("a dataset");
        let read = |seed| epoch(&tree, folder.path(), seed);
        assert_eq!(read(7).expect("it is as written"), tree.bytes());

        let victim = &tree.files[3];
        let path = folder.path().join(&victim.path);
        let good = std::fs::read(&path).expect("the file");
        let mut flipped = good.clone();
        flipped[99_999] ^= 1;
        for bad in [&flipped[..], &good[..99_999]] {
            std::fs::write(&path, bad).expect("the file");
            let told = read(7).expect_err("a byte is not right").to_string();
            assert!(told.contains(&victim.path), "{told}");
        }
    }
}
