//! A version mounted in one of the ways there are, and which way to take.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trackbed_cache::{Digest, Showable};

use crate::driver::error::VolumeError;
use crate::expose::fuse::{Failure, FuseMount};
use crate::expose::mountinfo::Mount;
use crate::expose::native::{self, Choice, NativeMount};
use crate::expose::{ExposeError, VersionView, bind};

/// What serves a staging path.
pub(super) enum Mounted {
    Fuse(FuseMount),
    Native(NativeMount),
}

impl Mounted {
    /// Shows the version at `staging`, an existing directory, natively if it can be.
    pub(super) fn new(
        choice: Choice,
        view: &Arc<dyn VersionView>,
        label: &str,
        staging: &Path,
    ) -> Result<Mounted, VolumeError> {
        let doing = || format!("mounting {label}");
        match (choice, view.showable()) {
            (Choice::Auto | Choice::Native, Showable::Native(tree)) => {
                match NativeMount::new(&tree, view.manifest().digest(), staging) {
                    Ok(mount) => {
                        tracing::info!(dataset = label, "shown natively");
                        return Ok(Mounted::Native(mount));
                    }
                    Err(error) if choice == Choice::Native => {
                        return Err(VolumeError::expose(doing())(error));
                    }
                    Err(error) => tracing::warn!(dataset = label, %error,
                        "the version can't be shown natively here: it is shown by FUSE"),
                }
            }
            (Choice::Native, Showable::Checked(why)) => {
                return Err(VolumeError::Unavailable(format!(
                    "{}: this node shows datasets natively only (--expose native), and this one \
                     can't be yet: {why}: warm it, or run the node with --expose auto",
                    doing()
                )));
            }
            (Choice::Auto, Showable::Checked(why)) => {
                tracing::info!(dataset = label, why, "shown by FUSE");
            }
            (Choice::Fuse, _) => {
                tracing::info!(dataset = label, "shown by FUSE, as the node is told to");
            }
        }
        FuseMount::new(view.clone(), label, staging)
            .map(Mounted::Fuse)
            .map_err(VolumeError::expose(doing()))
    }

    /// What an earlier process shows at `staging` and goes on without it, if that is this version.
    /// `staging` has no symbolic link in it.
    pub(super) fn adopt(
        choice: Choice,
        view: &Arc<dyn VersionView>,
        staging: &Path,
    ) -> io::Result<Option<Mounted>> {
        if choice == Choice::Fuse {
            return Ok(None);
        }
        let adopted = NativeMount::adopt(view.manifest().digest(), staging)?;
        Ok(adopted.map(Mounted::Native))
    }

    pub(super) fn mount_point(&self) -> &Path {
        match self {
            Mounted::Fuse(mount) => mount.mount_point(),
            Mounted::Native(mount) => mount.mount_point(),
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        match self {
            Mounted::Fuse(mount) => mount.is_alive(),
            // The kernel's own.
            Mounted::Native(_) => true,
        }
    }

    pub(super) fn last_failure(&self) -> Option<Failure> {
        match self {
            Mounted::Fuse(mount) => mount.last_failure(),
            Mounted::Native(_) => None,
        }
    }

    /// Whether `mount` shows `view`, as plain files or as this does.
    pub(super) fn shows(&self, view: &Arc<dyn VersionView>, mount: &Mount) -> bool {
        let served = match self {
            Mounted::Fuse(ours) => mount.is_our_fuse() && mount.device == ours.device(),
            Mounted::Native(_) => false,
        };
        served || native::shows(mount, view.manifest().digest())
    }

    /// From what to show the version in one more place: a version that became complete since it
    /// was staged is shown natively from then on.
    pub(super) fn source(&self, choice: Choice, view: &Arc<dyn VersionView>) -> Source {
        let staging = self.mount_point().to_owned();
        let version = view.manifest().digest();
        match (self, choice, view.showable()) {
            (Mounted::Fuse(_), Choice::Auto | Choice::Native, Showable::Native(tree)) => Source {
                staging,
                tree: Some((tree, version)),
            },
            _ => Source {
                staging,
                tree: None,
            },
        }
    }

    pub(super) fn unmount(self) -> Result<(), ExposeError> {
        match self {
            Mounted::Fuse(mount) => mount.unmount(),
            Mounted::Native(mount) => mount.unmount(),
        }
    }

    pub(super) fn leave(self) {
        match self {
            Mounted::Fuse(mount) => mount.leave(),
            Mounted::Native(mount) => mount.leave(),
        }
    }
}

/// What to show in one more place.
pub(super) struct Source {
    staging: PathBuf,
    /// The version's tree, if that is to be shown instead of what is staged.
    tree: Option<(PathBuf, Digest)>,
}

impl Source {
    /// Shows it at `target`, which has no symbolic link in it.
    pub(super) fn bind(&self, target: &Path, no_exec: bool) -> Result<(), ExposeError> {
        if let Some((tree, version)) = &self.tree {
            match native::bind_tree(tree, *version, target, no_exec) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(%error,
                    "the version can't be shown natively here: it is shown as it is staged"),
            }
        }
        bind::bind_read_only(&self.staging, target, no_exec)
    }
}
