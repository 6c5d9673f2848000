//! What a volume shows that was made without naming a dataset: an empty directory. The conformance
//! suite makes such volumes; a person's is told of in the volume's condition.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use trackbed_cache::manifest::{EntryIndex, Manifest};

use super::error::VolumeError;
use crate::expose::{Cached, ReadFailure, VerifiedPiece, VersionView};

/// A version without a single file.
struct EmptyVersion(Arc<Manifest>);

/// The empty version.
pub(super) fn version() -> Result<Arc<dyn VersionView>, VolumeError> {
    match Manifest::empty() {
        Ok(manifest) => Ok(Arc::new(EmptyVersion(Arc::new(manifest)))),
        Err(error) => Err(VolumeError::Unavailable(format!(
            "making an empty version: {error}"
        ))),
    }
}

impl VersionView for EmptyVersion {
    fn manifest(&self) -> &Arc<Manifest> {
        &self.0
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
}
