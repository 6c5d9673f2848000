//! Keys of objects, and paths of a web server, as paths of files.
//!
//! A key is any text; a path is not. What cannot be a file in a directory (`..`, an empty
//! component, a zero byte, a name or path that is too long) is refused with its name rather than
//! left out: a dataset that silently lacks a sample is worse than none.

use object_store::path::Path;

/// The longest name that Linux's file systems take, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// The longest path that the kernel takes in one call.
const MAX_PATH_BYTES: usize = 4095;

/// Why `path`, below the origin's prefix, cannot be the path of a file; `None` if it can.
pub(super) fn why_no_path(path: &str) -> Option<&'static str> {
    if path.len() > MAX_PATH_BYTES {
        return Some("it is longer than 4095 bytes");
    }
    path.split('/').find_map(|name| match name {
        "" => Some("it has an empty component (a leading, trailing or doubled '/')"),
        "." | ".." => Some("it has '.' or '..' as a component"),
        name if name.contains('\0') => Some("it has a zero byte"),
        name if name.len() > MAX_NAME_BYTES => Some("a component is longer than 255 bytes"),
        _ => None,
    })
}

/// Why `path`, below a folder of a web server, cannot be asked for as the path of a file; `None` if it
/// can. Control characters get lost in URLs (tabs and line ends do by the URL standard): another file would
/// be read.
pub(super) fn why_no_url(path: &str) -> Option<&'static str> {
    why_no_path(path).or_else(|| {
        path.contains(char::is_control)
            .then_some("it has a control character, which URLs do not keep")
    })
}

/// The part of `key` below `prefix` (without slashes at its ends; empty for the whole bucket), if
/// it lies there.
pub(super) fn below<'a>(prefix: &str, key: &'a str) -> Option<&'a str> {
    if prefix.is_empty() {
        return Some(key);
    }
    key.strip_prefix(prefix)?.strip_prefix('/')
}

/// The key of the object at `path` below `prefix`, as the library wants it; `None` if no object
/// can have it.
pub(super) fn key_of(prefix: &str, path: &[u8]) -> Option<Path> {
    let path = std::str::from_utf8(path).ok()?;
    if why_no_path(path).is_some() {
        return None;
    }
    if prefix.is_empty() {
        Path::parse(path).ok()
    } else {
        Path::parse(format!("{prefix}/{path}")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_that_is_no_path_is_refused_with_the_reason() {
        for key in [
            "", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\0b",
        ] {
            assert!(why_no_path(key).is_some(), "{key:?}");
        }
        assert!(why_no_path(&"a".repeat(256)).is_some());
        assert!(why_no_path(&"a/".repeat(2500)).is_some());
        for key in [
            "a",
            "a/b",
            "..a/b..",
            "ä €/…",
            "a b?c=d&e#f%2F",
            &"a".repeat(255),
        ] {
            assert!(why_no_path(key).is_none(), "{key:?}");
        }
    }

    #[test]
    fn what_a_url_would_not_keep_is_not_asked_for() {
        for path in ["a\tb", "a\nb", "a\u{7f}", "../a"] {
            assert!(why_no_url(path).is_some(), "{path:?}");
        }
        assert!(why_no_url("a b?c=d&e#f%2F/\u{e4}").is_none());
    }

    #[test]
    fn a_prefix_ends_at_a_slash() {
        assert_eq!(below("train", "train/a"), Some("a"));
        assert_eq!(below("train", "training/a"), None);
        assert_eq!(below("", "a/b"), Some("a/b"));
    }

    proptest! {
        #[test]
        fn a_key_made_for_a_path_lies_below_the_prefix_and_is_that_path(
            prefix in "([a-z]{1,3}/){0,2}",
            path in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let prefix = prefix.trim_end_matches('/');
            if let Some(key) = key_of(prefix, &path) {
                prop_assert_eq!(below(prefix, key.as_ref()).map(str::as_bytes), Some(path.as_slice()));
            }
        }
    }
}
