//! Giving up what is held of a version.
//!
//! The version's directory is moved out of its place with all its marks, in one step, before anything
//! in it is removed, and one that holds nothing takes the place: a crash leaves everything marked and
//! there, or nothing marked, and the next start ends what it has interrupted. What was held is
//! unlinked, never shortened and never punched: whoever still has a file of it open goes on reading
//! the right bytes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_timer::Delay;

use super::image;
use super::layout::{Layout, failed, read_manifest_in, sync_directory, write_nothing_held};
use super::version::VersionStore;
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::manifest::Manifest;
use crate::replace;
use crate::workers::Workers;

/// What follows a digest in the name of what is being removed.
pub(super) const SET_ASIDE: &str = "evicted";
/// In a version's directory, that it is never evicted.
pub(super) const PINNED: &str = "pinned";
/// In a version's directory; its time is when the version was last used.
pub(super) const USED: &str = "used";

/// How long commits under way may take to end.
const SETTLE: Duration = Duration::from_secs(2);

/// What giving up a version came to.
pub(crate) enum GivenUp {
    /// So many bytes are free.
    Bytes(u64),
    /// Something is using it.
    InUse(Arc<VersionStore>),
}

impl Store {
    /// Gives up all that is held of a version. Nobody may open it meanwhile; `open` is its store, if
    /// it is open. What is `known` can be filled again, as its manifest stays.
    pub(super) async fn give_up(
        &self,
        digest: Digest,
        open: Option<Arc<VersionStore>>,
        known: bool,
        remover: &Workers,
    ) -> Result<GivenUp, StoreError> {
        let kept = self.open.lock().remove(&digest);
        if let Some(mut version) = open.or(kept) {
            let since = Instant::now();
            // A commit under way has it for a moment.
            while let Err(shared) = Arc::try_unwrap(version) {
                if since.elapsed() > SETTLE {
                    self.open.lock().insert(digest, Arc::clone(&shared));
                    return Ok(GivenUp::InUse(shared));
                }
                version = shared;
                Delay::new(Duration::from_millis(10)).await;
            }
        }
        let room = &self.parts.room;
        let Some(holding) = room.holding(&digest) else {
            return Ok(GivenUp::Bytes(0));
        };
        let bytes = holding.bytes();
        self.take_away(digest, known, remover).await?;
        match known {
            true => room.sub(&holding, bytes),
            false => room.discount(&digest),
        }
        Ok(GivenUp::Bytes(bytes))
    }

    /// Removes a version that is not counted: it is used from another disk. Nothing happens to one that
    /// is used from here again.
    pub(super) async fn remove(&self, digest: Digest, remover: &Workers) -> Result<(), StoreError> {
        match self.parts.room.holding(&digest) {
            Some(_) => Ok(()),
            None => self.take_away(digest, false, remover).await,
        }
    }

    /// Moves a version out of its place, see [`Layout::set_aside`], and removes it there.
    async fn take_away(
        &self,
        digest: Digest,
        known: bool,
        remover: &Workers,
    ) -> Result<(), StoreError> {
        let layout = self.layout.clone();
        let removing = move || {
            let aside = layout.set_aside(&digest, known)?;
            if let Err(error) = fs::remove_dir_all(&aside) {
                tracing::error!(path = %aside.display(), %error,
                    "what was evicted can't be removed: it is tried again when the node starts");
            }
            Ok(())
        };
        remover.run(removing).await
    }

    /// Has a version never be evicted, or again at need. Durable once `Ok`.
    pub(super) fn pin(&self, digest: &Digest, pinned: bool) -> Result<(), StoreError> {
        use std::sync::atomic::Ordering::SeqCst;
        let path = self.layout.version_path(digest).join(PINNED);
        let done = match pinned {
            true => replace::replace(&path, b""),
            false => match replace::remove(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            },
        };
        done.map_err(failed("pinning or unpinning by", path))?;
        if let Some(holding) = self.parts.room.holding(digest) {
            holding.pinned.store(pinned, SeqCst);
        }
        Ok(())
    }

    /// Writes down when versions were last used, so that it is known after a restart.
    pub(crate) fn save_uses(&self) {
        for (digest, holding) in self.parts.room.holdings() {
            let Some(used) = holding.to_save() else {
                continue;
            };
            let path = self.layout.version_path(&digest).join(USED);
            let file = File::options().create(true).append(true).open(&path);
            if let Err(error) = file.and_then(|file| file.set_modified(used)) {
                tracing::debug!(path = %path.display(), %error,
                    "when a version was last used is not known after a restart");
            }
        }
    }
}

impl Layout {
    /// Moves what is held of a version out of its place, and puts one of which nothing is held there
    /// if it can be filled again; where the former lies now, to be removed.
    fn set_aside(&self, digest: &Digest, known: bool) -> Result<PathBuf, StoreError> {
        let place = self.version_path(digest);
        let aside = place.with_extension(SET_ASIDE);
        let failed = || failed("evicting", &place);
        if aside.exists() {
            fs::remove_dir_all(&aside).map_err(failed())?;
        }
        fs::rename(&place, &aside)
            .and_then(|()| sync_directory(self.versions()))
            .map_err(failed())?;
        if !known {
            return Ok(aside);
        }
        self.begin_anew(digest, &aside)?;
        Ok(aside)
    }

    /// Puts a version of which nothing is held in the place of one that was set aside. On a full disk
    /// there is no space for it before some of what was held is removed.
    fn begin_anew(&self, digest: &Digest, aside: &Path) -> Result<(), StoreError> {
        match self.put_in_place_of(digest, aside) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {}
            begun => return begun,
        }
        for data in ["tree", "small.pack", image::FILE].map(|name| aside.join(name)) {
            let removed = match data.is_dir() {
                true => fs::remove_dir_all(&data),
                false => fs::remove_file(&data),
            };
            match removed {
                // An earlier attempt has.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(failed("removing", data))?,
            }
        }
        self.put_in_place_of(digest, aside)
    }

    fn put_in_place_of(&self, digest: &Digest, aside: &Path) -> Result<(), StoreError> {
        let Some(encoded) = read_manifest_in(aside)? else {
            return Ok(());
        };
        let Ok(manifest) = Manifest::decode_as(&encoded, *digest) else {
            // Damaged: it is fetched again when it is asked for.
            return Ok(());
        };
        let place = self.version_path(digest);
        let new = place.with_extension("new");
        let make = || -> io::Result<()> {
            if new.exists() {
                fs::remove_dir_all(&new)?;
            }
            write_nothing_held(&new, digest, manifest.chunks())?;
            for name in ["manifest", "origin"] {
                fs::hard_link(aside.join(name), new.join(name))?;
            }
            sync_directory(&new)?;
            fs::rename(&new, &place)?;
            sync_directory(self.versions())
        };
        make().map_err(failed("evicting", &place))
    }

    /// Ends what a crash has interrupted: `aside` is gone then, and its version there, if with nothing
    /// held.
    pub(super) fn finish_evicting(&self, aside: &Path) -> Result<(), StoreError> {
        let digest = aside
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(digest) = digest
            && !self.version_path(&digest).exists()
        {
            self.begin_anew(&digest, aside)?;
        }
        fs::remove_dir_all(aside).map_err(failed("removing", aside))
    }
}
