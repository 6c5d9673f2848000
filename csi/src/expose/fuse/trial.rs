//! Tries out what the kernel does with a FUSE mount, instead of going by its version.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use trackbed_cache::manifest::{EntryIndex, Manifest, Place};
use trackbed_cache::origin::{ListedEntry, ListedKind, ObjectIdentity, Timestamp};

use super::opens::LEAST_MEAN_BYTES;
use super::{FuseMount, FuseOptions};
use crate::expose::{Cached, ExposeError, ReadFailure, VerifiedPiece, VersionView};

const NAME: &str = "file";

/// A version of one file that lies in a folder.
struct Trial {
    manifest: Arc<Manifest>,
    file: PathBuf,
}

impl VersionView for Trial {
    fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    fn read(
        self: Arc<Self>,
        _entry: EntryIndex,
        offset: u64,
        len: usize,
    ) -> BoxFuture<'static, Result<VerifiedPiece, ReadFailure>> {
        let len = LEAST_MEAN_BYTES.saturating_sub(offset).min(len as u64);
        async move { Ok(Box::new(vec![0_u8; len as usize]) as VerifiedPiece) }.boxed()
    }

    fn cached(&self) -> Cached {
        Cached::default()
    }

    fn backing(self: Arc<Self>, _entry: EntryIndex) -> Option<File> {
        File::open(&self.file).ok()
    }
}

/// Mounts a file of a MiB below `directory`, reads it, and takes both away again. Says how it was read, and
/// whether by the kernel itself. The directory is made if it is not there. Takes moments and blocks.
pub fn try_mount(directory: &Path) -> Result<(String, bool), ExposeError> {
    let folder = directory.join(format!("trial-{}", std::process::id()));
    let outcome = try_in(&folder);
    if let Err(error) = fs::remove_dir_all(&folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "a folder that was tried stays");
    }
    outcome
}

fn try_in(folder: &Path) -> Result<(String, bool), ExposeError> {
    let failed = |action| {
        let target = folder.to_owned();
        move |source| ExposeError::Mount {
            action,
            target,
            source,
        }
    };
    let mount_point = folder.join("mount");
    fs::create_dir_all(&mount_point).map_err(failed("make a folder for a trial mount"))?;
    let file = folder.join(NAME);
    let content = vec![0; LEAST_MEAN_BYTES as usize];
    fs::write(&file, &content).map_err(failed("write a file for a trial mount"))?;
    let listed = ListedEntry {
        path: NAME.into(),
        kind: ListedKind::File {
            size: LEAST_MEAN_BYTES,
            identity: ObjectIdentity::Modified(Timestamp::default()),
        },
        mode: 0o644,
        mtime: Timestamp::default(),
    };
    let manifest = Manifest::build(Place::ANY, vec![listed])
        .map_err(|error| failed("describe a trial mount")(io::Error::other(error)))?;
    let view = Arc::new(Trial {
        manifest: Arc::new(manifest),
        file,
    });
    let options = FuseOptions { passthrough: true };
    let mount = FuseMount::with(view, "trial", &mount_point, options)?;
    let read = fs::read(mount_point.join(NAME)).map_err(failed("read from a trial mount"))?;
    if read != content {
        let wrong = io::Error::other("other bytes came than were written");
        return Err(failed("read from a trial mount")(wrong));
    }
    let outcome = (mount.way(), mount.passthrough.is_on());
    mount.unmount()?;
    Ok(outcome)
}
