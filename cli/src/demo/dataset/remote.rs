//! Reading an origin that is no folder: with the origin's own client, but none of the cache.

use crate::demo::progress::Bar;
use crate::demo::tree::{Entry, Tree, Watch};
use crate::exit::Failure;
use futures::executor::block_on;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use trackbed_cache::OriginUrl;
use trackbed_cache::origin::{
    ListProgress, ListedEntry, ListedKind, ObjectRef, OpenOrigin, Origin, OriginError, Origins,
};

/// How much of an object is asked for at once, in bytes.
const READ_BYTES: u64 = 4 << 20;

/// The permission bits of a folder that exists only as a part of objects' names.
const IMPLIED_MODE: u32 = 0o755;

/// Lists the origin and reads every object.
pub(super) fn read(url: &OriginUrl, bar: &Bar) -> Result<Tree, Failure> {
    let refuse = |error: OriginError| Failure::usage(format!("dataset {error}"));
    let origins = Origins::default();
    let origin = block_on(origins.open(url)).map_err(refuse)?;
    let listing = block_on(origin.list(&ListProgress::default())).map_err(refuse)?;
    let listed: Vec<ListedEntry> = listing.entries().collect();
    let size = |entry: &ListedEntry| match entry.kind {
        ListedKind::File { size, .. } => size,
        _ => 0,
    };
    bar.listed(listed.iter().map(size).sum());

    let mut tree = Tree::default();
    for entry in &listed {
        let path = PathBuf::from(OsStr::from_bytes(&entry.path));
        for folder in path
            .ancestors()
            .skip(1)
            .filter(|folder| *folder != Path::new(""))
        {
            let implied = || Entry::Directory { mode: IMPLIED_MODE };
            tree.entries
                .entry(folder.to_owned())
                .or_insert_with(implied);
        }
        let mode = entry.mode.into();
        let found = match &entry.kind {
            ListedKind::Directory => Entry::Directory { mode },
            ListedKind::Symlink { target } => Entry::Symlink {
                target: PathBuf::from(OsStr::from_bytes(target)),
            },
            ListedKind::File { size, identity } => {
                let object = ObjectRef {
                    path: &entry.path,
                    size: *size,
                    identity,
                };
                let digest = hash(&*origin, object, bar)?;
                tree.files += 1;
                tree.bytes += size;
                Entry::File {
                    mode,
                    size: *size,
                    digest,
                }
            }
        };
        tree.entries.insert(path, found);
    }
    Ok(tree)
}

fn hash(origin: &dyn Origin, object: ObjectRef<'_>, bar: &Bar) -> Result<blake3::Hash, Failure> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES.min(object.size) as usize];
    let mut offset = 0;
    while offset < object.size {
        if bar.cancelled() {
            return Err(Failure::interrupted());
        }
        let part = &mut buffer[..READ_BYTES.min(object.size - offset) as usize];
        block_on(origin.read(object, offset, part))
            .map_err(|error| Failure::usage(format!("dataset {error}")))?;
        hasher.update(part);
        offset += part.len() as u64;
        bar.read(part.len() as u64);
    }
    Ok(hasher.finalize())
}
