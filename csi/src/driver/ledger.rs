//! The volumes and snapshots that were created by name, in the registry, so that any node's
//! controller gives the same answers. A volume is a name for a version that stays the same, and a
//! snapshot is another: neither holds data, so making, cloning and deleting take the same time
//! whatever the dataset's size.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use trackbed_cache::registry::{Documents, Key, RegistryError};

use super::error::VolumeError;
use super::spec::VolumeSpec;

/// The longest name of a volume or a snapshot, in bytes: CSI v1.12's general limit for texts.
const MAX_NAME_BYTES: usize = 128;

/// What the ids of created volumes and snapshots begin with. No dataset's name has a colon, so
/// that such an id never means a dataset.
const VOLUME_PREFIX: &str = "volume:";
const SNAPSHOT_PREFIX: &str = "snapshot:";

/// A volume that was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeEntry {
    pub(super) name: String,
    /// The dataset in the version it had then; or nothing at all.
    pub(super) content: VolumeSpec,
    /// Bytes of file data in that version.
    pub(super) bytes: u64,
    /// The size that was agreed on, in bytes. A read-only volume takes none of it.
    pub(super) capacity: u64,
    /// What it was made of, if not of a dataset named.
    pub(super) source: Option<Source>,
    pub(super) created: Created,
}

/// What a volume was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Source {
    /// A snapshot's id.
    Snapshot(String),
    /// A volume's id.
    Volume(String),
}

/// A snapshot that was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotEntry {
    pub(super) name: String,
    /// The id of the volume it is of.
    pub(super) volume: String,
    pub(super) content: VolumeSpec,
    /// Bytes of file data in it.
    pub(super) bytes: u64,
    pub(super) created: Created,
}

/// When something was created: nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Created(pub(super) u64);

impl Created {
    pub(super) fn now() -> Created {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        // A clock before 1970 is wrong anyway; the year 2554 is far.
        let nanos = since.map_or(0, |since| since.as_nanos());
        Created(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Something with a name of its own that is kept in the registry.
pub(super) trait Entry {
    /// What an id of its kind begins with.
    const PREFIX: &'static str;

    fn name(&self) -> &str;
    fn content(&self) -> &VolumeSpec;
    fn created(&self) -> Created;

    fn key(&self) -> Key {
        Key::of(self.name())
    }

    fn id(&self) -> String {
        format!("{}{}", Self::PREFIX, self.key())
    }
}

impl Entry for VolumeEntry {
    const PREFIX: &'static str = VOLUME_PREFIX;

    fn name(&self) -> &str {
        &self.name
    }

    fn content(&self) -> &VolumeSpec {
        &self.content
    }

    fn created(&self) -> Created {
        self.created
    }
}

impl Entry for SnapshotEntry {
    const PREFIX: &'static str = SNAPSHOT_PREFIX;

    fn name(&self) -> &str {
        &self.name
    }

    fn content(&self) -> &VolumeSpec {
        &self.content
    }

    fn created(&self) -> Created {
        self.created
    }
}

/// The key in the id of a created volume; `None` for all other ids.
pub(super) fn volume_key(id: &str) -> Option<Key> {
    Key::parse(id.strip_prefix(VOLUME_PREFIX)?)
}

/// The key in a snapshot's id, if it is one.
pub(super) fn snapshot_key(id: &str) -> Option<Key> {
    Key::parse(id.strip_prefix(SNAPSHOT_PREFIX)?)
}

/// Checks the name of a volume or a snapshot, for which CSI v1.12 allows all characters but those
/// of control that are no white space. `what` is what has it.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), VolumeError> {
    let refuse = |why: String| Err(VolumeError::Invalid(format!("the {what}'s name {why}")));
    if name.is_empty() {
        return refuse("is missing".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return refuse(format!(
            "has {} bytes: at most {MAX_NAME_BYTES} are taken",
            name.len()
        ));
    }
    if name
        .chars()
        .any(|c| c.is_control() && !"\t\n\r".contains(c))
    {
        return refuse(format!("{name:?} has a control character in it"));
    }
    Ok(())
}

/// The two folders in the registry. Each call waits for the disk.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) volumes: Shelf<VolumeEntry>,
    pub(super) snapshots: Shelf<SnapshotEntry>,
}

impl Ledger {
    /// The ledger in the registry's folder.
    pub(super) fn new(registry: &Path) -> Ledger {
        Ledger {
            volumes: Shelf(Documents::new(registry, "volumes")),
            snapshots: Shelf(Documents::new(registry, "snapshots")),
        }
    }
}

/// Entries of one kind.
#[derive(Debug)]
pub(super) struct Shelf<T>(Documents<T>);

impl<T: Entry + Serialize + for<'de> Deserialize<'de>> Shelf<T> {
    pub(super) fn get(&self, key: Key) -> Result<Option<T>, VolumeError> {
        match self.0.get(key).map_err(unavailable)? {
            Some(entry) => check(key, &entry).map(|()| Some(entry)),
            None => Ok(None),
        }
    }

    /// All entries, in the order in which they were created.
    pub(super) fn all(&self) -> Result<Vec<(Key, T)>, VolumeError> {
        let mut all = self.0.all().map_err(unavailable)?;
        all.retain(|(key, entry)| match check(*key, entry) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "left an entry of the registry out");
                false
            }
        });
        all.sort_by_key(|(key, entry)| (entry.created(), *key));
        Ok(all)
    }

    /// Adds an entry, and says whether it did: false if there is one of that name.
    pub(super) fn add(&self, entry: &T) -> Result<bool, VolumeError> {
        self.0.add(entry.key(), entry).map_err(unavailable)
    }

    pub(super) fn replace(&self, entry: &T) -> Result<(), VolumeError> {
        self.0.replace(entry.key(), entry).map_err(unavailable)
    }

    pub(super) fn remove(&self, key: Key) -> Result<(), VolumeError> {
        self.0.remove(key).map_err(unavailable)
    }
}

fn unavailable(error: RegistryError) -> VolumeError {
    VolumeError::Unavailable(error.to_string())
}

/// Whether an entry is what its file's name says, and complete.
fn check<T: Entry>(key: Key, entry: &T) -> Result<(), VolumeError> {
    let content = entry.content();
    let whole = content.dataset.is_some() == content.version.is_some();
    if entry.key() == key && whole && check_name("entry", entry.name()).is_ok() {
        Ok(())
    } else {
        Err(VolumeError::Unavailable(format!(
            "what the registry has at {}{key} is damaged: put the file right, or delete it",
            T::PREFIX
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, created: u64) -> VolumeEntry {
        VolumeEntry {
            name: name.to_owned(),
            content: VolumeSpec::EMPTY,
            bytes: 0,
            capacity: 1 << 30,
            source: Some(Source::Volume("cats".to_owned())),
            created: Created(created),
        }
    }

    #[test]
    fn any_node_finds_what_another_created_in_the_order_of_creation() {
        let folder = tempfile::tempdir().expect("a folder");
        let [one, two] = [(); 2].map(|()| Ledger::new(folder.path()));
        for (number, name) in ["c", "a", "b"].iter().enumerate() {
            assert!(one.volumes.add(&volume(name, number as u64)).expect("adds"));
        }
        assert!(!two.volumes.add(&volume("a", 9)).expect("is there"));
        let all = two.volumes.all().expect("lists");
        let names: Vec<_> = all.iter().map(|(_, entry)| entry.name.as_str()).collect();
        assert_eq!(names, ["c", "a", "b"]);
        let id = all[1].1.id();
        assert!(id.len() <= 128, "CSI's limit for a text");
        let key = volume_key(&id).expect("an id");
        assert_eq!(two.volumes.get(key).expect("reads"), Some(volume("a", 1)));
        assert_eq!(snapshot_key(&id), None);
        for id in ["a", "volume:", "volume:../../x", "snapshot:12"] {
            assert_eq!((volume_key(id), snapshot_key(id)), (None, None), "{id}");
        }
    }

    #[test]
    fn an_entry_in_another_s_place_is_refused_and_hides_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::new(folder.path());
        ledger.volumes.add(&volume("good", 0)).expect("adds");
        let good = folder
            .path()
            .join("volumes")
            .join(format!("{}.json", Key::of("good")));
        let moved = folder
            .path()
            .join("volumes")
            .join(format!("{}.json", Key::of("bad")));
        std::fs::copy(good, moved).expect("copies");
        let refused = ledger.volumes.get(Key::of("bad")).expect_err("refused");
        assert!(refused.to_string().contains("damaged"), "{refused}");
        assert_eq!(ledger.volumes.all().expect("lists").len(), 1);
    }

    #[test]
    fn a_name_has_1_to_128_bytes_and_no_control_character() {
        for name in ["", "a\0", "a\x0B", "\u{7f}", "\u{85}", &"x".repeat(129)] {
            check_name("volume", name).expect_err("refused");
        }
        for name in ["a", "pvc-1", "a\n", "ü / \\ ..", &"x".repeat(128)] {
            check_name("volume", name).expect("valid");
        }
    }
}
