//! Paths that kubelet sends, checked once.

use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::VolumeError;

/// The longest path the kernel takes, in bytes, its zero included.
const MAX_PATH_BYTES: usize = 4096;

/// An absolute path on this host without `..`, that names something below the root directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct HostPath(PathBuf);

impl HostPath {
    /// Checks a request's field; `field` is its name in errors.
    pub(super) fn parse(field: &'static str, text: &str) -> Result<HostPath, VolumeError> {
        let refuse = |why: &str| VolumeError::Invalid(format!("{field} {why}"));
        if text.is_empty() {
            return Err(refuse("is missing"));
        }
        if text.len() >= MAX_PATH_BYTES {
            return Err(refuse("has 4096 bytes or more, which the kernel refuses"));
        }
        if text.contains('\0') {
            return Err(refuse("has a zero byte in it"));
        }
        let path = Path::new(text);
        if !path.is_absolute() {
            return Err(refuse("is not absolute"));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(refuse("has `..` in it"));
        }
        if path.file_name().is_none() {
            return Err(refuse("is the root directory"));
        }
        Ok(HostPath(path.components().collect()))
    }

    /// A path out of a record, which may have been damaged since it was written.
    pub(super) fn recorded(path: &Path) -> Result<HostPath, VolumeError> {
        let text = path.to_str().unwrap_or_default();
        HostPath::parse("a path in the volume's record", text)
    }

    /// The path as it was sent, redundant slashes left out.
    pub(super) fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path as the mount table shows it: symbolic links in the directories above are followed,
    /// the last name is not looked at, as a dead mount there would not answer. `None` if a
    /// directory above is not there.
    pub(super) fn resolve(&self) -> io::Result<Option<PathBuf>> {
        let (Some(parent), Some(name)) = (self.0.parent(), self.0.file_name()) else {
            return Ok(None);
        };
        match parent.canonicalize() {
            Ok(parent) => Ok(Some(parent.join(name))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_plain_absolute_paths_are_taken() {
        for text in [
            "",
            "a",
            "./a",
            "/",
            "//",
            "/a/../b",
            "/..",
            "/a\0b",
            &format!("/{}", "a".repeat(4095)),
        ] {
            assert!(HostPath::parse("target_path", text).is_err(), "{text:?}");
        }
        let path = HostPath::parse("target_path", "//a/./b//c/").expect("valid");
        assert_eq!(path.as_path(), Path::new("/a/b/c"));
    }

    proptest! {
        #[test]
        fn what_is_taken_stays_below_the_root_and_arbitrary_text_never_panics(text in "\\PC{0,40}") {
            if let Ok(path) = HostPath::parse("target_path", &text) {
                prop_assert!(path.as_path().is_absolute());
                prop_assert!(!path.as_path().components().any(|c| c == Component::ParentDir));
            }
        }
    }
}
