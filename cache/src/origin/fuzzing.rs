//! Keys of objects, indexes of web servers and files of credentials. See [`crate::fuzzing`].

use super::bucket::parse_credentials;
use super::keys::{below, key_of, why_no_path};
use super::web::paths_of_index;
use crate::fuzzing::Target;
use crate::manifest::{Manifest, Place};
use crate::origin::{ListedEntry, ListedKind, ObjectIdentity, Timestamp};

/// A prefix and a key, a line each.
pub(crate) const KEY: Target = Target {
    name: "s3-key",
    seeds: || {
        let keys = [
            "train\ntrain/a b?c=d&e#f%2F",
            "\n..a/b..",
            "a/b\na/b/\u{e4}\u{20ac}",
        ];
        keys.map(|key| key.as_bytes().to_vec()).into()
    },
    check: key,
};

fn key(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).ok();
    let Some((prefix, key)) = text.and_then(|text| text.split_once('\n')) else {
        return;
    };
    let prefix = prefix.trim_matches('/');
    let Some(path) = below(prefix, key) else {
        return;
    };
    if why_no_path(path).is_some() {
        assert!(key_of(prefix, path.as_bytes()).is_none());
        return;
    }
    // What can be listed can be in a version.
    let entry = ListedEntry {
        path: path.into(),
        kind: ListedKind::File {
            size: 1,
            identity: ObjectIdentity::Etag("e".into()),
        },
        mode: 0o644,
        mtime: Timestamp::default(),
    };
    let manifest = Manifest::build(Place::ANY, vec![entry]).expect("a path that a file can have");
    assert!(manifest.find(path.as_bytes()).is_some());
    if let Some(found) = key_of(prefix, path.as_bytes()) {
        assert_eq!(found.as_ref(), key, "another object would be read");
    }
}

/// A file in the form of `~/.aws/credentials`.
pub(crate) const CREDENTIALS: Target = Target {
    name: "s3-credentials",
    seeds: || {
        let text = "# ours\n[default]\naws_access_key_id = A\naws_secret_access_key=s=/+\n\
                    region=eu\n\n[other]\naws_session_token = t\n";
        vec![text.as_bytes().to_vec()]
    },
    check: |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(found) = parse_credentials(text)
        {
            assert!(!found.key_id.is_empty() && !found.secret_key.is_empty());
            assert!(text.contains(&found.key_id) && text.contains(&found.secret_key));
        }
    },
};

/// An index of a web server's folder.
pub(crate) const INDEX: Target = Target {
    name: "web-index",
    seeds: || {
        let texts = ["a.bin\r\n\nsub dir/b?c#d%2F\n", "../a", "a\tb\n/etc"];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    check: |bytes| {
        let Some(paths) = std::str::from_utf8(bytes).ok().map(paths_of_index) else {
            return;
        };
        for path in paths.unwrap_or_default() {
            assert!(why_no_path(path).is_none() && !path.contains(char::is_control));
            let key = key_of("folder", path.as_bytes()).expect("a path that can be asked for");
            assert_eq!(below("folder", key.as_ref()), Some(path));
        }
    },
};
