//! What the nodes must agree on: who the members are, and which version a dataset's name means.
//!
//! Small facts only, never a chunk's state. Kept by Kubernetes, or by files where there is none.

mod documents;
mod file;
mod namespace;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use futures::future::BoxFuture;
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::origin::OriginUrl;

pub use documents::{Documents, Key};
pub use file::FileRegistry;
#[cfg(feature = "fuzzing")]
pub(crate) use file::fuzzing;
pub use namespace::Namespace;

/// The members and datasets as this node knows them. Reading gives the latest known state at once
/// (it is called while data is being read); only writing may wait for others.
pub trait Registry: Send + Sync {
    /// The members of the cache, this node included, in any order.
    fn members(&self) -> Result<Vec<Member>, RegistryError>;

    /// The dataset of this name, if there is one.
    fn dataset(&self, name: &DatasetName) -> Result<Option<DatasetRecord>, RegistryError>;

    /// All datasets, in any order.
    fn datasets(&self) -> Result<Vec<DatasetRecord>, RegistryError>;

    /// Adds a dataset, or points its name to another version or origin. Durable once `Ok`.
    fn put_dataset<'a>(
        &'a self,
        record: &'a DatasetRecord,
    ) -> BoxFuture<'a, Result<(), RegistryError>>;
}

/// A node that takes part in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's name, by which its certificate and its placement go.
    pub name: String,
    /// Where its control interface listens, as `host:port`.
    pub control: String,
    /// Its share of the chunks relative to the others'; 0 owns nothing.
    pub weight: u32,
}

impl Member {
    /// The member in few bits, for messages between nodes: the first four bytes of its name's
    /// digest. Two members may have the same.
    pub(crate) fn tag(&self) -> u32 {
        tag_of(&self.name)
    }
}

/// The [`Member::tag`] of the node of that name.
pub(crate) fn tag_of(node: &str) -> u32 {
    let digest = Digest::of(node.as_bytes());
    let [a, b, c, d, ..] = *digest.as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The most earlier versions of a dataset that are remembered; the oldest are forgotten.
const MAX_EARLIER: usize = 1000;

/// What a dataset's name means at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRecord {
    /// The name.
    pub name: DatasetName,
    /// Where its bytes come from. Holds no credentials.
    pub origin: OriginUrl,
    /// The current version.
    pub version: Digest,
    /// The versions before it, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Digest>,
    /// The namespaces whose pods may read it; all may if there is no such list, none if it is
    /// empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<BTreeSet<Namespace>>,
}

impl DatasetRecord {
    /// A dataset that had no version before, and that pods of all namespaces may read.
    pub fn new(name: DatasetName, origin: OriginUrl, version: Digest) -> DatasetRecord {
        DatasetRecord {
            name,
            origin,
            version,
            earlier: Vec::new(),
            namespaces: None,
        }
    }

    /// This record as the one that follows `before`: it goes on with its history, and its
    /// namespaces stay as they are.
    pub fn following(mut self, before: DatasetRecord) -> DatasetRecord {
        let known = [before.version].into_iter().chain(before.earlier);
        self.earlier = known
            .filter(|version| *version != self.version)
            .take(MAX_EARLIER)
            .collect();
        self.namespaces = before.namespaces;
        self
    }

    /// This record with other readers.
    pub fn for_readers(mut self, readers: Readers) -> DatasetRecord {
        match readers {
            Readers::AsBefore => {}
            Readers::All => self.namespaces = None,
            Readers::Only(namespaces) => self.namespaces = Some(namespaces),
        }
        self
    }

    /// Whether this is a version of the dataset, the current one or an earlier one.
    pub fn has_version(&self, version: Digest) -> bool {
        self.version == version || self.earlier.contains(&version)
    }

    /// Whether pods of a namespace may read it. Where it is not known which one it is, only what
    /// all may read may be read.
    pub fn admits(&self, namespace: Option<&str>) -> bool {
        match (&self.namespaces, namespace) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(list), Some(name)) => list.iter().any(|listed| listed.as_str() == name),
        }
    }
}

/// Who may read a dataset from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Readers {
    /// Who might before; all, if it is new.
    #[default]
    AsBefore,
    /// Pods of all namespaces.
    All,
    /// Pods of these namespaces.
    Only(BTreeSet<Namespace>),
}

/// A dataset's name: 1 to 128 of `a-z 0-9 . _ -`, a letter or digit at both ends. Safe as a file
/// name and in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DatasetName(String);

impl DatasetName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DatasetName {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<DatasetName, RegistryError> {
        let at_end = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = bytes.len() <= 128
            && bytes.first().is_some_and(at_end)
            && bytes.last().is_some_and(at_end)
            && bytes.iter().all(|c| at_end(c) || b"._-".contains(c));
        if valid {
            Ok(DatasetName(text.to_owned()))
        } else {
            Err(RegistryError::Name(text.chars().take(130).collect()))
        }
    }
}

impl<'de> Deserialize<'de> for DatasetName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DatasetName, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Why the registry could not answer.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Not a dataset's name.
    #[error(
        "{0:?} is not a dataset name: use 1 to 128 of a-z 0-9 . _ - with a letter or digit at both ends"
    )]
    Name(String),
    /// It cannot be read or written.
    #[error("{action} {place}: {why}: {remedy}")]
    Unavailable {
        /// What was attempted.
        action: &'static str,
        /// The file or API object.
        place: String,
        /// Why it failed.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
}

fn unavailable(
    action: &'static str,
    path: &Path,
    why: impl ToString,
    remedy: &'static str,
) -> RegistryError {
    RegistryError::Unavailable {
        action,
        place: path.display().to_string(),
        why: why.to_string(),
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: &[u8]) -> DatasetRecord {
        let origin = "file:///data".parse().expect("a URL");
        DatasetRecord::new("cats".parse().expect("a name"), origin, Digest::of(version))
    }

    #[test]
    fn a_new_version_keeps_the_history_and_who_may_read() {
        let mut first = record(b"1");
        first.namespaces = Some([Namespace::parse("team-a").expect("valid")].into());
        let second = record(b"2").following(first);
        let third = record(b"1").following(second.clone());
        assert_eq!(second.earlier, [Digest::of(b"1")]);
        assert_eq!(third.earlier, [Digest::of(b"2")]);
        assert!(third.has_version(Digest::of(b"2")) && !third.has_version(Digest::of(b"3")));
        assert!(third.admits(Some("team-a")));
        assert!(!third.admits(Some("team-b")) && !third.admits(None));
        assert!(record(b"1").admits(None));
        let third = third.for_readers(Readers::AsBefore);
        assert!(third.admits(Some("team-a")) && !third.admits(Some("team-b")));
        assert!(
            third
                .clone()
                .for_readers(Readers::All)
                .admits(Some("team-b"))
        );
        assert!(
            !third
                .for_readers(Readers::Only([].into()))
                .admits(Some("team-a"))
        );
    }

    #[test]
    fn the_history_is_bounded() {
        let mut newest = record(b"0");
        for version in 1..MAX_EARLIER + 10 {
            newest = record(&version.to_le_bytes()).following(newest);
        }
        assert_eq!(newest.earlier.len(), MAX_EARLIER);
    }

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        for text in [
            "",
            ".",
            "..",
            "a/b",
            "-a",
            "a.",
            "A",
            "a b",
            "a\0",
            &"a".repeat(129),
        ] {
            assert!(text.parse::<DatasetName>().is_err(), "{text:?}");
        }
        for text in ["a", "0", "imagenet-1k.v2_b", &"a".repeat(128)] {
            assert_eq!(text.parse::<DatasetName>().expect("valid").as_str(), text);
        }
    }
}
