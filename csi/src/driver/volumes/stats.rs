//! How a volume is: its size and its condition, without looking at a single file of it.

use std::sync::Arc;
use std::time::Duration;

use trackbed_cache::Showable;

use super::{Shown, Volume, Volumes, read_table, resolve};
use crate::driver::controller::NO_DATASET;
use crate::driver::error::VolumeError;
use crate::driver::path::HostPath;
use crate::driver::volume::VolumeId;
use crate::expose::mountinfo::{Mount, MountTable};
use crate::expose::native;

/// How long a failed read makes a volume abnormal.
const FAILURE_COUNTS_FOR: Duration = Duration::from_secs(10 * 60);

/// Size and condition of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::driver) struct Stats {
    /// Bytes and entries of the version; `None` while it cannot be opened.
    pub(in crate::driver) size: Option<(u64, u64)>,
    pub(in crate::driver) abnormal: bool,
    pub(in crate::driver) message: String,
}

impl Volumes {
    /// Size and condition of a volume that is staged or published at `path`. Takes the same time
    /// for a file and for a million, and does not wait for an operation under way.
    pub(in crate::driver) async fn stats(
        self: &Arc<Self>,
        volume: VolumeId,
        path: HostPath,
    ) -> Result<Stats, VolumeError> {
        self.blocking(move |volumes| {
            let mounts = read_table()?;
            let resolved = resolve(path.as_path())?;
            let table = volumes.table.lock();
            let known = table.get(&volume).ok_or_else(|| {
                VolumeError::NotFound(format!("volume {:?} is not staged here", volume.as_str()))
            })?;
            let record = &known.record;
            let is_target = record
                .targets
                .iter()
                .any(|target| target.path == path.as_path());
            if !is_target && record.staging != path.as_path() {
                return Err(VolumeError::NotFound(format!(
                    "volume {:?} is neither staged nor published at {path}",
                    volume.as_str()
                )));
            }
            let top = resolved.as_deref().and_then(|path| mounts.top(path));
            let mut stats = condition(known, &mounts, top);
            if let Some(trouble) = volumes.expose.trouble() {
                stats.abnormal = true;
                stats.message = format!("{}; {trouble}", stats.message);
            }
            Ok(stats)
        })
        .await
    }
}

fn condition(volume: &Volume, mounts: &MountTable, seen_at_path: Option<&Mount>) -> Stats {
    let abnormal = |size, message| Stats {
        size,
        abnormal: true,
        message,
    };
    let dataset = volume.record.spec.to_string();
    let Some(shown) = &volume.shown else {
        let why = volume
            .trouble
            .as_deref()
            .unwrap_or("the driver was restarted");
        return abnormal(None, format!("{dataset} is not mounted: {why}"));
    };
    let manifest = shown.view.manifest();
    let totals = manifest.totals();
    let size = Some((totals.bytes, manifest.len().into()));
    let seen = seen_at_path.filter(|top| shown.is_seen(mounts) && shown.shows(top));
    let Some(seen) = seen else {
        let why = "its mount is dead or was taken away: stage and publish it again";
        return abnormal(size, format!("{dataset}: {why}"));
    };
    let failure = shown.mount.last_failure();
    if let Some(failure) = failure.filter(|failure| failure.at.elapsed() < FAILURE_COUNTS_FOR) {
        return abnormal(size, format!("{dataset}: a read failed: {}", failure.what));
    }
    if let Some(trouble) = shown.view.trouble() {
        return abnormal(size, format!("{dataset}: {trouble}"));
    }
    if volume.record.spec.dataset.is_none() {
        return abnormal(size, NO_DATASET.to_owned());
    }
    let permille = shown.view.cached().permille();
    Stats {
        size,
        abnormal: false,
        message: format!(
            "{dataset}, version {}: {}.{} % of {} bytes are on this node ({})",
            volume.record.pinned.short(),
            permille / 10,
            permille % 10,
            totals.bytes,
            how_shown(shown, seen)
        ),
    }
}

/// In which way a place shows the version, and why not natively if it does not.
fn how_shown(shown: &Shown, seen: &Mount) -> String {
    if let Some(natively) = native::way_of(seen) {
        return natively.to_owned();
    }
    let way = shown.mount.way();
    match shown.view.showable() {
        Showable::Native(_) | Showable::Image(_) => {
            format!("{way}; it can be shown natively where it is published from now on")
        }
        Showable::Checked(why) => format!("{way}; not natively: {why}"),
    }
}
