//! The demo's folder: caches, sockets, registry, certificates and logs. Fresh each time, removed
//! at every end; what a killed supervisor left is removed by the next demo.

use crate::exit::Failure;
use nix::sys::statvfs::statvfs;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PREFIX: &str = "trackbed-demo-";

/// A socket's path has at most 107 bytes: what is left of them for the parent of our folder.
const MAX_PARENT_BYTES: usize = 60;

/// Held locked by the supervisor for as long as the folder is in use.
const LOCK: &str = "in-use";

/// The folder, removed on drop.
pub(crate) struct WorkDir {
    path: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Makes a fresh folder, mode 0700, below `parent`, after removing those that no running demo
    /// holds.
    pub(crate) fn create(parent: &Path) -> Result<WorkDir, Failure> {
        remove_abandoned(parent);
        let parent = parent
            .canonicalize()
            .map_err(|error| refuse(parent, &error))?;
        let length = parent.as_os_str().len();
        if length > MAX_PARENT_BYTES {
            return Err(Failure::usage(format!(
                "the demo's folder would be in {}, a path of {length} bytes; sockets need one of \
                 at most {MAX_PARENT_BYTES}: name a shorter one with --work-dir",
                parent.display()
            )));
        }
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&parent)
            .map_err(|error| refuse(&parent, &error))?;
        let lock = File::create(folder.path().join(LOCK))
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|error| refuse(folder.path(), &error))?;
        Ok(WorkDir {
            path: folder.keep(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // A process that the kernel is still ending may add a file behind our back.
        for _ in 0..20 {
            match std::fs::remove_dir_all(&self.path) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!(
                "trackbed: cannot remove the demo's folder {}: {error}: remove it by hand",
                self.path.display()
            );
        }
    }
}

fn refuse(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!(
        "cannot make the demo's folder in {}: {error}: name a writable folder with --work-dir",
        path.display()
    ))
}

/// Folders of demos that were killed with their supervisor. One that cannot be read or removed is
/// not ours to judge.
fn remove_abandoned(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            tracing::debug!(folder = %entry.path().display(), "removing an abandoned demo's folder");
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Makes a folder with mode 0700, its parents too.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Refuses to start when the file system of `path` has not `needed` bytes free.
pub(crate) fn check_space(path: &Path, needed: u64) -> Result<(), Failure> {
    let stat = statvfs(path).map_err(|error| {
        Failure::failed(format!(
            "cannot ask how much space {} has: {error}",
            path.display()
        ))
    })?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if free >= needed {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Failure::usage(format!(
        "the nodes' caches need up to {} MiB in {} and {} MiB are free: name a roomier folder with \
         --work-dir, or a smaller dataset with --dataset",
        mib(needed),
        path.display(),
        mib(free)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_with_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let work = WorkDir::create(parent.path()).unwrap();
        private_dir(&work.path().join("node-1/cache")).unwrap();
        let path = work.path().to_owned();
        drop(work);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_left_by_a_killed_demo_is_removed_and_one_in_use_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let in_use = WorkDir::create(parent.path()).unwrap();
        let abandoned = parent.path().join("trackbed-demo-abandoned");
        private_dir(&abandoned).unwrap();
        File::create(abandoned.join(LOCK)).unwrap();
        let _next = WorkDir::create(parent.path()).unwrap();
        assert!(!abandoned.exists());
        assert!(in_use.path().exists());
    }

    #[test]
    fn a_parent_too_deep_for_sockets_names_the_remedy() {
        let parent = tempfile::tempdir().unwrap();
        let deep = parent.path().join("d".repeat(MAX_PARENT_BYTES));
        private_dir(&deep).unwrap();
        let refusal = WorkDir::create(&deep).err().unwrap().to_string();
        assert!(refusal.contains("--work-dir"), "{refusal}");
    }

    #[test]
    fn too_little_space_names_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = check_space(folder.path(), u64::MAX)
            .unwrap_err()
            .to_string();
        assert!(refusal.contains("--work-dir"), "{refusal}");
        check_space(folder.path(), 1).unwrap();
    }
}
