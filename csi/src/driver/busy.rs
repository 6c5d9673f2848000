//! One operation at a time on a volume, and on a path.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::VolumeError;
use super::volume::VolumeId;

/// What is being worked on.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    volumes: HashSet<VolumeId>,
    paths: HashSet<PathBuf>,
}

/// Says that a volume and a path are being worked on, until dropped.
#[derive(Debug)]
pub(super) struct Working {
    busy: Busy,
    volume: VolumeId,
    path: PathBuf,
}

impl Busy {
    /// Takes both, or refuses at once: CSI wants a second call turned away, not queued.
    pub(super) fn take(&self, volume: &VolumeId, path: &Path) -> Result<Working, VolumeError> {
        let mut taken = self.0.lock();
        if taken.volumes.contains(volume) || taken.paths.contains(path) {
            return Err(VolumeError::Busy {
                volume: volume.as_str().to_owned(),
                path: path.to_owned(),
            });
        }
        taken.volumes.insert(volume.clone());
        taken.paths.insert(path.to_owned());
        Ok(Working {
            busy: self.clone(),
            volume: volume.clone(),
            path: path.to_owned(),
        })
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut taken = self.busy.0.lock();
        taken.volumes.remove(&self.volume);
        taken.paths.remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_operation_is_turned_away_until_the_first_ends() {
        let busy = Busy::default();
        let [a, b] = ["a", "b"].map(|id| VolumeId::parse(id).expect("valid"));
        let [one, two] = ["/1", "/2"].map(Path::new);
        let working = busy.take(&a, one).expect("free");
        for (volume, path) in [(&a, one), (&a, two), (&b, one)] {
            let refused = busy.take(volume, path).expect_err("taken");
            assert!(matches!(refused, VolumeError::Busy { .. }));
        }
        busy.take(&b, two).expect("others are free");
        drop(working);
        busy.take(&a, one).expect("free again");
    }
}
