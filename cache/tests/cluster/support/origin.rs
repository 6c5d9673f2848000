//! An origin in memory that can be made to misbehave.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use trackbed_cache::origin::{
    ListProgress, ListedEntry, ListedKind, Listing, ObjectIdentity, ObjectRef, OpenOrigin, Origin,
    OriginError, Timestamp,
};
use trackbed_cache::{Digest, OriginUrl};

use super::{Files, lock};

/// An origin in memory that can be made to misbehave.
#[derive(Default)]
pub(crate) struct MemoryOrigin {
    files: Files,
    /// Objects that were put there, or in the place of others, since.
    pub(crate) put: Mutex<Files>,
    /// Objects with another content than was listed.
    pub(crate) changed: Mutex<BTreeSet<Vec<u8>>>,
    /// Whether it tells objects by their times alone, which are all the same.
    pub(crate) untold: AtomicBool,
    /// Reads to fail as if the network had hiccups.
    pub(crate) hiccups: AtomicU32,
    pub(crate) reads: AtomicU64,
}

impl MemoryOrigin {
    pub(crate) fn new(files: Files) -> Arc<MemoryOrigin> {
        Arc::new(MemoryOrigin {
            files,
            ..MemoryOrigin::default()
        })
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// What is there now.
    pub(crate) fn now(&self) -> Files {
        let mut files = self.files.clone();
        files.extend(lock(&self.put).clone());
        files
    }

    fn identity(&self, file: &[u8]) -> ObjectIdentity {
        if self.untold.load(Relaxed) {
            return ObjectIdentity::Modified(Timestamp::default());
        }
        ObjectIdentity::Etag(format!("\"{}\"", Digest::of(file).short()).into())
    }

    /// The files of a folder, which ends with a slash.
    pub(crate) fn below(&self, folder: &str) -> Files {
        let inside = |(path, file): (&Vec<u8>, &Vec<u8>)| {
            let path = path.strip_prefix(folder.as_bytes())?;
            Some((path.to_vec(), file.clone()))
        };
        self.files.iter().filter_map(inside).collect()
    }

    pub(crate) fn total(&self) -> u64 {
        self.files.values().map(|file| file.len() as u64).sum()
    }
}

impl Origin for MemoryOrigin {
    fn list<'a>(
        &'a self,
        progress: &'a ListProgress,
    ) -> BoxFuture<'a, Result<Listing, OriginError>> {
        async move {
            let mut listed = Listing::new();
            for (path, file) in &self.now() {
                progress.found(1, file.len() as u64)?;
                let kind = ListedKind::File {
                    size: file.len() as u64,
                    identity: self.identity(file),
                };
                let mtime = Timestamp::default();
                listed.push(&ListedEntry {
                    path: path.clone(),
                    kind,
                    mode: 0o644,
                    mtime,
                });
            }
            Ok(listed)
        }
        .boxed()
    }

    fn read<'a>(
        &'a self,
        object: ObjectRef<'a>,
        offset: u64,
        into: &'a mut [u8],
    ) -> BoxFuture<'a, Result<(), OriginError>> {
        async move {
            self.reads.fetch_add(1, Relaxed);
            // Others get a chance to ask for the same meanwhile.
            futures_timer::Delay::new(std::time::Duration::from_millis(1)).await;
            let (origin, path) = ("memory".to_owned(), object.path.to_vec());
            let name = String::from_utf8_lossy(object.path).into_owned();
            if self
                .hiccups
                .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                .is_ok()
            {
                return Err(OriginError::Read {
                    origin,
                    object: name,
                    offset,
                    length: into.len() as u64,
                    source: std::io::ErrorKind::ConnectionReset.into(),
                    transient: true,
                });
            }
            let put = lock(&self.put).get(&path).cloned();
            let Some(file) = put.as_ref().or(self.files.get(&path)) else {
                return Err(OriginError::Missing {
                    origin,
                    object: name,
                });
            };
            if lock(&self.changed).contains(&path) || *object.identity != self.identity(file) {
                let (listed, found) = (object.identity.to_string(), "ETag other".to_owned());
                return Err(OriginError::Changed {
                    origin,
                    object: name,
                    listed,
                    found,
                });
            }
            let begin = offset as usize;
            into.copy_from_slice(&file[begin..begin + into.len()]);
            Ok(())
        }
        .boxed()
    }
}

pub(super) struct OpenMemory(pub(super) Arc<MemoryOrigin>);

impl OpenOrigin for OpenMemory {
    /// `/memory` is all of it, `/memory/name` the folder of that name.
    fn open<'a>(
        &'a self,
        url: &'a OriginUrl,
    ) -> BoxFuture<'a, Result<Arc<dyn Origin>, OriginError>> {
        let url = url.to_string();
        let folder = url
            .split_once("/memory/")
            .map(|(_, name)| format!("{name}/"));
        let origin: Arc<dyn Origin> = match folder {
            None => Arc::clone(&self.0) as _,
            Some(folder) => Arc::new(MemoryOrigin {
                files: self.0.below(&folder),
                untold: self.0.untold.load(Relaxed).into(),
                ..MemoryOrigin::default()
            }),
        };
        async move { Ok(origin) }.boxed()
    }
}
