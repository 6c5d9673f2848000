//! Small facts as JSON documents in one folder of the registry, which any node may add, replace
//! and remove. What is in them is up to whoever keeps them there.
//!
//! A document is written whole, so a reader never sees a half of one; adding one is exclusive, on
//! this node and between nodes that share the folder. Nothing is kept in memory: what one node has
//! written, the next question on any other finds. All of it waits for the disk.

use std::fs::{self, File};
use std::io::{self, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{RegistryError, unavailable};
use crate::digest::Digest;
use crate::replace;

/// No document comes near this many bytes: a larger file is not one of ours.
const MAX_DOCUMENT_BYTES: u64 = 64 << 10;

const SUFFIX: &str = ".json";
const FIX_FOLDER: &str =
    "check that the registry's folder is there and that the agent's user may write to it";
const FIX_DOCUMENT: &str = "put the file right, or delete it";

/// What a document is found by: the digest of its name, so that any text may be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Digest);

impl Key {
    /// The key of a name.
    pub fn of(name: &str) -> Key {
        Key(Digest::of(name.as_bytes()))
    }

    /// The key that [`Key`]'s `Display` shows, if it is one.
    pub fn parse(text: &str) -> Option<Key> {
        let key = Key(text.parse().ok()?);
        // Upper case would be a second spelling of the same key.
        (key.to_string() == text).then_some(key)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A folder of documents of one kind.
#[derive(Debug)]
pub struct Documents<T> {
    folder: PathBuf,
    kind: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Documents<T> {
    /// The folder of this name in the registry at `registry`; made when the first document is.
    pub fn new(registry: &Path, folder: &str) -> Documents<T> {
        Documents {
            folder: registry.join(folder),
            kind: PhantomData,
        }
    }

    /// The document, if there is one.
    pub fn get(&self, key: Key) -> Result<Option<T>, RegistryError> {
        let path = self.path(key);
        match read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|why| unavailable("reading", &path, why, FIX_DOCUMENT)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unavailable("reading", &path, error, FIX_DOCUMENT)),
        }
    }

    /// All documents, in any order. One that cannot be read is left out and logged.
    pub fn all(&self) -> Result<Vec<(Key, T)>, RegistryError> {
        let failed = |error: io::Error| unavailable("reading", &self.folder, error, FIX_FOLDER);
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut documents = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed)?.file_name();
            // Others are not ours, or files that are being written.
            let name = file.to_str().and_then(|file| file.strip_suffix(SUFFIX));
            let Some(key) = name.and_then(Key::parse) else {
                continue;
            };
            match self.get(key) {
                Ok(Some(document)) => documents.push((key, document)),
                // Removed meanwhile.
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "left a document of the registry out"),
            }
        }
        Ok(documents)
    }

    /// Adds a document, durably, and says whether it did: false if there is one of this key.
    pub fn add(&self, key: Key, document: &T) -> Result<bool, RegistryError> {
        let path = self.path(key);
        fs::create_dir_all(&self.folder)
            .map_err(|error| unavailable("making", &self.folder, error, FIX_FOLDER))?;
        match replace::create(&path, &self.encode(&path, document)?) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(unavailable("writing", &path, error, FIX_FOLDER)),
        }
    }

    /// Puts a document in the place of the one there, durably.
    pub fn replace(&self, key: Key, document: &T) -> Result<(), RegistryError> {
        let path = self.path(key);
        replace::replace(&path, &self.encode(&path, document)?)
            .map_err(|error| unavailable("writing", &path, error, FIX_FOLDER))
    }

    /// Removes a document, durably; one that is not there is fine.
    pub fn remove(&self, key: Key) -> Result<(), RegistryError> {
        let path = self.path(key);
        match replace::remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(unavailable("removing", &path, error, FIX_FOLDER))
            }
            _ => Ok(()),
        }
    }

    fn encode(&self, path: &Path, document: &T) -> Result<Vec<u8>, RegistryError> {
        let mut text = serde_json::to_vec_pretty(document)
            .map_err(|error| unavailable("writing", path, error, FIX_DOCUMENT))?;
        text.push(b'\n');
        Ok(text)
    }

    fn path(&self, key: Key) -> PathBuf {
        self.folder.join(format!("{key}{SUFFIX}"))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_DOCUMENT_BYTES + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(io::Error::other("it has more than 64 KiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_one_node_writes_the_others_find_whatever_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let [one, two] = [(); 2].map(|()| Documents::<String>::new(folder.path(), "notes"));
        assert!(one.all().expect("empty").is_empty());
        for name in ["../../a", "\n", &"x".repeat(5000)] {
            let key = Key::of(name);
            assert!(one.add(key, &name.to_owned()).expect("adds"));
            assert!(!two.add(key, &"other".to_owned()).expect("is there"));
            assert_eq!(two.get(key).expect("reads").as_deref(), Some(name));
        }
        let key = Key::of("\n");
        two.replace(key, &"new".to_owned()).expect("replaces");
        assert_eq!(one.get(key).expect("reads").as_deref(), Some("new"));
        assert_eq!(one.all().expect("lists").len(), 3);
        for _ in 0..2 {
            two.remove(key).expect("removes");
        }
        assert_eq!(one.get(key).expect("reads"), None);
        assert_eq!(one.all().expect("lists").len(), 2);
        let files = fs::read_dir(folder.path().join("notes")).expect("lists");
        assert_eq!(files.count(), 2, "nothing half-written stays");
    }

    #[test]
    fn of_many_that_add_at_a_time_one_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let documents = Arc::new(Documents::<usize>::new(folder.path(), "notes"));
        let added: Vec<bool> = std::thread::scope(|scope| {
            let adding = (0..8).map(|number| {
                let documents = documents.clone();
                scope.spawn(move || documents.add(Key::of("a"), &number).expect("answers"))
            });
            let adding: Vec<_> = adding.collect();
            adding
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        assert_eq!(added.iter().filter(|added| **added).count(), 1);
        let kept = documents.get(Key::of("a")).expect("reads").expect("there");
        assert!(added[kept]);
    }

    #[test]
    fn a_bad_document_is_named_and_hides_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let documents = Documents::<String>::new(folder.path(), "notes");
        documents
            .add(Key::of("good"), &"good".to_owned())
            .expect("adds");
        let bad = [b"\"half".to_vec(), vec![b' '; 70_000], vec![0xFF; 10]];
        for (number, text) in bad.iter().enumerate() {
            let key = Key::of(&number.to_string());
            let path = folder.path().join("notes").join(format!("{key}.json"));
            fs::write(path, text).expect("writes");
            let error = documents.get(key).expect_err("refused").to_string();
            assert!(error.contains(&key.to_string()), "{error}");
        }
        fs::write(folder.path().join("notes/README"), "x").expect("writes");
        assert_eq!(documents.all().expect("lists").len(), 1);
    }
}
