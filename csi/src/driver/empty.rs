//! What a volume shows that was made without naming a dataset: an empty directory. The conformance
//! suite makes such volumes; a person's is told of in the volume's condition. It lies among the
//! driver's files as a cached version lies on the disk, so it can be shown natively like any other.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use trackbed_cache::Showable;
use trackbed_cache::manifest::{EntryIndex, Manifest};

use super::error::VolumeError;
use crate::expose::{Cached, ReadFailure, VerifiedPiece, VersionView};

/// A version without a single file.
struct EmptyVersion {
    manifest: Arc<Manifest>,
    tree: PathBuf,
}

/// The empty version, whose directory is below `folder`. Waits for the disk.
pub(super) fn version(folder: &Path) -> Result<Arc<dyn VersionView>, VolumeError> {
    let manifest = Manifest::empty()
        .map_err(|error| VolumeError::Unavailable(format!("making an empty version: {error}")))?;
    let version = manifest.digest().to_string();
    let tree = folder.join("versions").join(version).join("tree");
    fs::create_dir_all(&tree).map_err(VolumeError::io(format!(
        "making the directory {}",
        tree.display()
    )))?;
    Ok(Arc::new(EmptyVersion {
        manifest: Arc::new(manifest),
        tree,
    }))
}

impl VersionView for EmptyVersion {
    fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    fn read(
        self: Arc<Self>,
        _entry: EntryIndex,
        _offset: u64,
        _len: usize,
    ) -> BoxFuture<'static, Result<VerifiedPiece, ReadFailure>> {
        async { Err(ReadFailure("an empty version has no files".to_owned())) }.boxed()
    }

    fn cached(&self) -> Cached {
        Cached::default()
    }

    fn showable(&self) -> Showable {
        Showable::Native(self.tree.clone())
    }
}
