//! What the nodes must agree on: who the members are, and which version a dataset's name means.
//!
//! Small facts only, never a chunk's state. Kept by Kubernetes, or by files where there is none.

mod file;

use std::fmt;
use std::str::FromStr;

use futures::future::BoxFuture;
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::origin::OriginUrl;

pub use file::FileRegistry;

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

/// What a dataset's name means at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRecord {
    /// The name.
    pub name: DatasetName,
    /// Where its bytes come from. Holds no credentials.
    pub origin: OriginUrl,
    /// The current version.
    pub version: Digest,
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

#[cfg(test)]
mod tests {
    use super::*;

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
