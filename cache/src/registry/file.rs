//! A registry kept as files in one directory, for machines without Kubernetes.
//!
//! ```text
//! members.json           {"members": [{"name": "node-a", "control": "10.0.0.1:7440", "weight": 100}, …]}
//! datasets/NAME.json     {"name": "NAME", "origin": "file:///data/NAME", "version": "64 hex digits",
//!                         "earlier": ["64 hex digits", …], "namespaces": ["team-a", …]}
//! ```
//!
//! `members.json` is written by an administrator: names are DNS labels, each once; `weight` is a
//! node's share relative to the others' (1 to 1000, or 0 to hold nothing; 100 if left out). The
//! files of datasets are ours. All are replaced whole, so a reader never sees a half of one, and
//! looked at again (one `stat`) whenever they are asked for. A file that went bad is reported, and
//! what it said before goes on being used.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod members;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures::channel::oneshot;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::{DatasetName, DatasetRecord, Member, Registry, RegistryError, unavailable};

/// Far more than ten thousand members take.
const MAX_FILE_BYTES: u64 = 4 << 20;
const FIX_MEMBERS: &str =
    r#"write {"members": [{"name": "node-a", "control": "host:port", "weight": 100}]}"#;
const FIX_DATASET: &str = "put the file right, or delete it and register the dataset again";
const FIX_DIRECTORY: &str = "check that the directory exists and that the agent's user may use it";

/// The registry in a directory, which may be shared by the nodes (NFS) or copied to each.
pub struct FileRegistry {
    directory: PathBuf,
    members: Mutex<Cached<Vec<Member>>>,
    datasets: Mutex<HashMap<DatasetName, Cached<DatasetRecord>>>,
}

/// What a file said when it was last good, and the file it was last read from, good or bad.
struct Cached<T> {
    stamp: Option<Stamp>,
    value: Option<T>,
}

impl<T> Default for Cached<T> {
    fn default() -> Cached<T> {
        Cached {
            stamp: None,
            value: None,
        }
    }
}

/// Tells a file from the one that was read: device, inode, length, modification and change time.
type Stamp = (u64, u64, u64, [i64; 4]);

impl FileRegistry {
    /// Opens the registry in `directory`, which must have a valid `members.json`; makes
    /// `datasets/` if it is not there.
    pub fn open(directory: &Path) -> Result<FileRegistry, RegistryError> {
        let registry = FileRegistry {
            directory: directory.to_owned(),
            members: Mutex::default(),
            datasets: Mutex::default(),
        };
        registry.members()?;
        let datasets = registry.datasets_directory();
        fs::create_dir_all(&datasets)
            .map_err(|e| unavailable("making", &datasets, e, FIX_DIRECTORY))?;
        Ok(registry)
    }

    fn datasets_directory(&self) -> PathBuf {
        self.directory.join("datasets")
    }

    fn dataset_file(&self, name: &DatasetName) -> PathBuf {
        self.datasets_directory().join(format!("{name}.json"))
    }
}

impl Registry for FileRegistry {
    fn members(&self) -> Result<Vec<Member>, RegistryError> {
        let path = self.directory.join("members.json");
        let members = self
            .members
            .lock()
            .get(&path, FIX_MEMBERS, members::parse)?;
        members.ok_or_else(|| unavailable("reading", &path, "it does not exist", FIX_MEMBERS))
    }

    fn dataset(&self, name: &DatasetName) -> Result<Option<DatasetRecord>, RegistryError> {
        let path = self.dataset_file(name);
        let mut datasets = self.datasets.lock();
        let record = datasets
            .entry(name.clone())
            .or_default()
            .get(&path, FIX_DATASET, |text| parse_dataset(name, text));
        // Names that are asked for and do not exist must not pile up.
        if matches!(record, Ok(None)) {
            datasets.remove(name);
        }
        record
    }

    fn datasets(&self) -> Result<Vec<DatasetRecord>, RegistryError> {
        let directory = self.datasets_directory();
        let failed = |e: io::Error| unavailable("reading", &directory, e, FIX_DIRECTORY);
        let mut records = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let file = entry.map_err(failed)?.file_name();
            // Others are not ours, or files that are being written.
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            let Some(Ok(name)) = name.map(str::parse::<DatasetName>) else {
                continue;
            };
            match self.dataset(&name) {
                Ok(record) => records.extend(record),
                // One bad file must not hide the other datasets.
                Err(error) => tracing::warn!(%error, "left a dataset out"),
            }
        }
        Ok(records)
    }

    fn put_dataset<'a>(
        &'a self,
        record: &'a DatasetRecord,
    ) -> BoxFuture<'a, Result<(), RegistryError>> {
        Box::pin(async move {
            let path = self.dataset_file(&record.name);
            let failed = |why: String| unavailable("writing", &path, why, FIX_DIRECTORY);
            let mut text = serde_json::to_vec_pretty(record).map_err(|e| failed(e.to_string()))?;
            text.push(b'\n');
            let (written, result) = oneshot::channel();
            let target = path.clone();
            // Syncing blocks, and the caller's thread may be one that moves data.
            std::thread::Builder::new()
                .name("registry-write".into())
                .spawn(move || {
                    written
                        .send(crate::replace::replace(&target, &text))
                        .is_ok()
                })
                .map_err(|e| failed(e.to_string()))?;
            match result.await {
                Ok(result) => result.map_err(|e| failed(e.to_string())),
                Err(oneshot::Canceled) => Err(failed("the writing thread ended early".into())),
            }
        })
    }
}

impl<T: Clone> Cached<T> {
    /// What the file at `path` says; `None` if there is no file.
    fn get(
        &mut self,
        path: &Path,
        remedy: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, RegistryError> {
        match self.refresh(path, remedy, parse) {
            Ok(()) => Ok(self.value.clone()),
            Err(error) => match &self.value {
                Some(value) => {
                    tracing::warn!(%error, "using what the file said before");
                    Ok(Some(value.clone()))
                }
                None => Err(error),
            },
        }
    }

    fn refresh(
        &mut self,
        path: &Path,
        remedy: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<(), RegistryError> {
        let failed = |e: io::Error| unavailable("reading", path, e, remedy);
        let metadata = match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                *self = Cached::default();
                return Ok(());
            }
            result => result.map_err(failed)?,
        };
        let stamp = (
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            [
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            ],
        );
        if self.stamp == Some(stamp) && self.value.is_some() {
            return Ok(());
        }
        // Set before reading: what changes meanwhile is read again next time. A bad file is
        // reported once, not at every read.
        self.stamp = Some(stamp);
        if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
            let why = "it is not a regular file of at most 4 MiB";
            return Err(unavailable("reading", path, why, remedy));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        self.value = Some(parse(&text).map_err(|why| unavailable("reading", path, why, remedy))?);
        Ok(())
    }
}

fn parse_dataset(name: &DatasetName, text: &str) -> Result<DatasetRecord, String> {
    let record: DatasetRecord = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if record.name != *name {
        return Err(format!("it is about another dataset, {}", record.name));
    }
    Ok(record)
}
