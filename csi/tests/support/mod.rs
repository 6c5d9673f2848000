//! Datasets in memory, for tests of what shows them as files.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod cluster;
pub(crate) mod many;
pub(crate) mod site;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;
use trackbed_cache::manifest::{EntryIndex, Manifest, Place};
use trackbed_cache::origin::{ListedEntry, ListedKind, ObjectIdentity, Timestamp};
use trackbed_csi::expose::choose::{Findings, Way, choose};
use trackbed_csi::expose::{Cached, ReadFailure, VerifiedPiece, VersionView};

/// What a path of a test's dataset is.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
}

/// One path of a test's dataset.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) path: Vec<u8>,
    pub(crate) node: Node,
    pub(crate) mode: u16,
    pub(crate) mtime: Timestamp,
}

pub(crate) fn file(path: &str, content: &[u8]) -> Item {
    Item {
        path: path.into(),
        node: Node::File(content.to_vec()),
        mode: 0o644,
        mtime: Timestamp {
            seconds: 1_700_000_000,
            nanos: 5,
        },
    }
}

/// How reads of a file misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They fail, as when no holder of the data answers.
    Error,
    /// They give no bytes where there should be some.
    Short,
    /// They panic, as a defect would.
    Panic,
    /// They never end.
    Hang,
}

/// A dataset version in memory.
pub(crate) struct MemoryVersion {
    manifest: Arc<Manifest>,
    contents: HashMap<EntryIndex, Vec<u8>>,
    faults: Mutex<HashMap<EntryIndex, Fault>>,
    hung: Mutex<Vec<oneshot::Sender<()>>>,
    /// Reads so far.
    pub(crate) reads: AtomicU64,
    /// No read gives bytes across a multiple of this: chunks, as it were.
    piece: u64,
}

impl MemoryVersion {
    pub(crate) fn new(items: &[Item], piece: u64) -> Arc<MemoryVersion> {
        let listed: Vec<ListedEntry> = items
            .iter()
            .map(|item| ListedEntry {
                path: item.path.clone(),
                kind: match &item.node {
                    Node::Directory => ListedKind::Directory,
                    Node::File(bytes) => ListedKind::File {
                        size: bytes.len() as u64,
                        identity: ObjectIdentity::Modified(item.mtime),
                    },
                    Node::Symlink(target) => ListedKind::Symlink {
                        target: target.clone(),
                    },
                },
                mode: item.mode,
                mtime: item.mtime,
            })
            .collect();
        let manifest = Manifest::build(Place::ANY, listed).expect("a valid listing");
        let contents = items
            .iter()
            .filter_map(|item| match &item.node {
                Node::File(bytes) => Some((manifest.find(&item.path)?, bytes.clone())),
                _ => None,
            })
            .collect();
        Arc::new(MemoryVersion {
            manifest: Arc::new(manifest),
            contents,
            faults: Mutex::default(),
            hung: Mutex::default(),
            reads: AtomicU64::new(0),
            piece,
        })
    }

    pub(crate) fn break_file(&self, path: &str, fault: Fault) {
        let entry = self.manifest.find(path.as_bytes()).expect("a file");
        self.faults.lock().insert(entry, fault);
    }

    pub(crate) fn read_count(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }
}

impl VersionView for MemoryVersion {
    fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    fn read(
        self: Arc<Self>,
        entry: EntryIndex,
        offset: u64,
        len: usize,
    ) -> BoxFuture<'static, Result<VerifiedPiece, ReadFailure>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        async move {
            let fault = self.faults.lock().get(&entry).copied();
            match fault {
                Some(Fault::Error) => {
                    let path = String::from_utf8_lossy(&self.manifest.path(entry)).into_owned();
                    return Err(ReadFailure(format!("{path}: no holder answers")));
                }
                Some(Fault::Short) => return Ok(Box::new(Vec::new()) as VerifiedPiece),
                Some(Fault::Panic) => panic!("on purpose"),
                Some(Fault::Hang) => {
                    let (keep, never) = oneshot::channel::<()>();
                    self.hung.lock().push(keep);
                    never.await.expect("kept as long as this version");
                }
                None => {}
            }
            let content = &self.contents[&entry];
            let end = (offset + len as u64)
                .min((offset / self.piece + 1) * self.piece)
                .min(content.len() as u64);
            let bytes = content[offset as usize..end as usize].to_vec();
            Ok(Box::new(bytes) as VerifiedPiece)
        }
        .boxed()
    }

    fn cached(&self) -> Cached {
        let bytes = self.manifest.totals().bytes;
        Cached {
            bytes_present: bytes / 4,
            bytes,
        }
    }
}

/// Whether this process can make mounts; says why a test is skipped if not.
pub(crate) fn can_mount() -> bool {
    let way = choose(Findings::of_this_machine());
    match way {
        Ok(Way::Direct) => true,
        Ok(Way::Fusermount) => {
            eprintln!("skipped: needs CAP_SYS_ADMIN to make mounts");
            false
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// Bytes that differ from place to place, so that shifted or repeated data shows.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64: fast, and enough for test data.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Ends a FUSE connection as a dead daemon would: what is under way fails, and what comes later.
pub(crate) fn abort_connection(minor: u32) {
    let folder = tempfile::tempdir().expect("a folder");
    let none = None::<&str>;
    mount(none, folder.path(), Some("fusectl"), MsFlags::empty(), none).expect("mounts fusectl");
    let aborted = std::fs::write(folder.path().join(minor.to_string()).join("abort"), "1");
    umount2(folder.path(), MntFlags::MNT_DETACH).expect("unmounts fusectl");
    aborted.expect("aborts");
}
