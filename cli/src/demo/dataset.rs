//! Which dataset the demo uses, and what is in it: read directly, not through any node, to have
//! something to compare with.

mod remote;

use super::progress::Bar;
use super::tree::{self, Entry, Tree, TreeError, Watch};
use crate::exit::Failure;
use std::io;
use std::path::{Path, PathBuf};
use trackbed_cache::OriginUrl;

/// What every machine has.
const DEFAULT: &str = "/usr/share";

/// Set in the emulated guest of `hack/vm`, whose processors are slow: there the default is a part
/// of the above that takes under a minute.
const GUEST_MARK: &str = "TRACKBED_GUEST";

/// What that part may measure, in bytes.
const GUEST_BYTES: std::ops::RangeInclusive<u64> = (20 << 20)..=(80 << 20);

/// And how many files it may have: each costs some milliseconds under emulation.
const GUEST_FILES: u64 = 2_000;

/// Threads that read the origin.
const THREADS: usize = 4;

/// True for a folder of this machine; the rest needs the machine's network.
pub(crate) fn is_local(dataset: Option<&str>) -> bool {
    dataset.is_none_or(|dataset| !dataset.contains("://") || dataset.starts_with("file://"))
}

/// A dataset that was chosen.
pub(crate) enum Chosen {
    /// A folder of this machine.
    Folder(PathBuf),
    /// Something that only an origin's client can read.
    Remote(OriginUrl),
}

impl Chosen {
    /// As it is registered.
    pub(crate) fn url(&self) -> String {
        match self {
            Chosen::Folder(path) => OriginUrl::Directory(path.clone()).to_string(),
            Chosen::Remote(url) => url.to_string(),
        }
    }

    /// As people call it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Chosen::Folder(path) => path.display().to_string(),
            Chosen::Remote(url) => url.to_string(),
        }
    }
}

/// What to use: what is named, or the default of this machine.
pub(crate) fn choose(named: Option<&str>, watch: &dyn Watch) -> Result<Chosen, Failure> {
    let path = match named {
        Some(url) if url.contains("://") => match url.parse::<OriginUrl>() {
            Ok(OriginUrl::Directory(path)) => path,
            Ok(remote) => return Ok(Chosen::Remote(remote)),
            Err(error) => return Err(Failure::usage(format!("dataset {error}"))),
        },
        Some(path) => PathBuf::from(path),
        None if std::env::var_os(GUEST_MARK).is_some() => part_of(Path::new(DEFAULT), watch)?,
        None => PathBuf::from(DEFAULT),
    };
    let refuse = |error: &io::Error| {
        Failure::usage(format!(
            "dataset {}: {error}: name a folder that this user can read with --dataset",
            path.display()
        ))
    };
    let folder = path.canonicalize().map_err(|error| refuse(&error))?;
    if !folder.is_dir() {
        return Err(refuse(&io::Error::from(io::ErrorKind::NotADirectory)));
    }
    Ok(Chosen::Folder(folder))
}

/// The largest folder directly below `root` within the guest's bounds, or all of it.
fn part_of(root: &Path, watch: &dyn Watch) -> Result<PathBuf, Failure> {
    let mut best: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match tree::measure(&entry.path(), watch) {
            Ok((files, bytes)) if files <= GUEST_FILES && GUEST_BYTES.contains(&bytes) => {
                if best.as_ref().is_none_or(|(most, _)| bytes > *most) {
                    best = Some((bytes, entry.path()));
                }
            }
            Err(TreeError::Cancelled) => return Err(Failure::interrupted()),
            _ => {}
        }
    }
    Ok(best.map_or_else(|| root.to_owned(), |(_, path)| path))
}

/// Reads all of it.
pub(crate) fn survey(dataset: &Chosen, bar: &Bar) -> Result<Tree, Failure> {
    let mut tree = match dataset {
        Chosen::Folder(folder) => {
            tree::read(folder, THREADS, bar).map_err(|error| match error {
                TreeError::Cancelled => Failure::interrupted(),
                TreeError::Io { .. } => Failure::usage(format!(
                    "dataset {}: {error}: make it readable for this user, or name another with \
                     --dataset",
                    folder.display()
                )),
            })?
        }
        Chosen::Remote(url) => remote::read(url, bar)?,
    };
    if tree.files == 0 {
        return Err(Failure::usage(format!(
            "dataset {} has no files: name another with --dataset",
            dataset.shown()
        )));
    }
    // An origin leaves these out.
    tree.entries.retain(|_, entry| *entry != Entry::Special);
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::progress::Progress;

    fn refusal(dataset: &str) -> String {
        let bar = Progress::new(false).start("origin");
        choose(Some(dataset), &bar)
            .and_then(|chosen| survey(&chosen, &bar))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_dataset_that_cannot_be_used_is_named_with_the_remedy() {
        let empty = tempfile::tempdir().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [
            "/nowhere/at/all",
            empty.path().to_str().unwrap(),
            file.path().to_str().unwrap(),
        ] {
            let sentence = refusal(path);
            assert!(
                sentence.contains(path) && sentence.contains("--dataset"),
                "{sentence}"
            );
        }
    }

    #[test]
    fn a_file_url_and_a_path_name_the_same_folder() {
        let bar = Progress::new(false).start("origin");
        let chosen = |name| choose(Some(name), &bar).unwrap().url();
        assert_eq!(chosen("file:///usr"), chosen("/usr"));
        assert!(is_local(Some("file:///usr")) && is_local(None));
        assert!(!is_local(Some("s3://bucket/prefix")));
    }
}
