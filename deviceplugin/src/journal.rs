//! What was given away, on the disk: written before kubelet is told, so that no restart gives it again.
//!
//! A small file for each device, replaced as a whole (written beside, synced, renamed), so that giving one
//! costs the same however many are given. One that can't be read is set aside and said: what pods hold is
//! then what kubelet says.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::allocate::Held;
use crate::config::PoolName;

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// The most files: more than any node has devices.
const MAX_FILES: usize = 1 << 17;
const FORMAT: u32 = 1;
/// Below the plugin's folder.
const FOLDER: &str = "held";
const EXTENSION: &str = "json";

/// The journal can't be used.
#[derive(Debug, Error)]
#[error("cannot {action} {}: {source}: is its disk writable and not full?", .path.display())]
pub struct JournalError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content<H> {
    format: u32,
    held: H,
}

/// The files.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// Opens it in the plugin's folder, which is made if it is not there, and reads what it holds.
    pub fn open(plugin: &Path) -> Result<(Journal, Vec<Held>), JournalError> {
        let folder = plugin.join(FOLDER);
        let mut make = DirBuilder::new();
        make.recursive(true).mode(0o700);
        make.create(&folder).map_err(failed("make", &folder))?;
        let held = read_all(&folder, |path, why| {
            let aside = path.with_extension("damaged");
            tracing::error!(why, file = %aside.display(),
                "a file of the journal of what was given to pods is damaged and is set aside: what they hold \
                 is what kubelet says");
            fs::rename(path, &aside).map_err(failed("set aside", path))
        })?;
        Ok((Journal { folder }, held))
    }

    /// What the journal in a plugin's folder holds, without using it; nothing if there is none.
    pub fn read(plugin: &Path) -> Result<Vec<Held>, JournalError> {
        let damaged = |path: &Path, why| Err(failed("read", path)(io::Error::other(why)));
        read_all(&plugin.join(FOLDER), damaged)
    }

    /// Notes a device; durable once `Ok`. Blocks.
    pub fn put(&self, held: &Held) -> Result<(), JournalError> {
        let path = self.path(&held.pool, &held.offer.id);
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            let format = FORMAT;
            serde_json::to_writer(&mut file, &Content { format, held })?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            self.sync()
        };
        write().map_err(failed("write", &path))
    }

    /// Forgets a device; durable once `Ok`. Blocks.
    pub fn remove(&self, pool: &PoolName, id: &str) -> Result<(), JournalError> {
        let path = self.path(pool, id);
        match fs::remove_file(&path).and_then(|()| self.sync()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Pools' names and devices' ids are fit for file names, and neither has a plus sign.
    fn path(&self, pool: &PoolName, id: &str) -> PathBuf {
        self.folder.join(format!("{pool}+{id}.{EXTENSION}"))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError {
        action,
        path,
        source,
    }
}

fn read_all(
    folder: &Path,
    damaged: impl Fn(&Path, String) -> Result<(), JournalError>,
) -> Result<Vec<Held>, JournalError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", folder)(error)),
    };
    let mut held = Vec::new();
    for entry in entries.take(MAX_FILES) {
        let path = entry.map_err(failed("list", folder))?.path();
        // Others are half written, or set aside.
        if path.extension().is_none_or(|it| it != EXTENSION) {
            continue;
        }
        match read_one(&path) {
            Ok(Ok(one)) => held.push(one),
            Ok(Err(why)) => damaged(&path, why)?,
            Err(error) => return Err(failed("read", &path)(error)),
        }
    }
    Ok(held)
}

/// What a file says, or why it is damaged.
fn read_one(path: &Path) -> io::Result<Result<Held, String>> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE_BYTES {
        return Ok(Err(format!("it has {size} bytes")));
    }
    let content: Content<Held> = match serde_json::from_slice(&fs::read(path)?) {
        Ok(content) => content,
        Err(error) => return Ok(Err(error.to_string())),
    };
    Ok(match content.format {
        FORMAT => Ok(content.held),
        other => Err(format!("it has format {other}")),
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::allocate::{Health, Holder, Marks, Offer, Place};
    use crate::function::PciAddress;

    fn held(id: &str) -> Held {
        let address: PciAddress = "0000:3b:00.1".parse().expect("an address");
        Held {
            pool: PoolName("vf".to_owned()),
            offer: Offer {
                id: id.to_owned(),
                place: Place {
                    address,
                    physical: address,
                    bridges: vec![address],
                    numa_node: Some(1),
                },
                marks: Marks::default(),
                health: Health::Unhealthy("down".to_owned()),
            },
            holder: Some(Holder {
                pod: None,
                since: SystemTime::UNIX_EPOCH,
            }),
        }
    }

    fn open(plugin: &Path) -> (Journal, Vec<Held>) {
        let (journal, mut held) = Journal::open(plugin).expect("opens");
        held.sort_by(|one, other| one.offer.id.cmp(&other.offer.id));
        (journal, held)
    }

    #[test]
    fn what_was_noted_is_read_and_damage_is_set_aside_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let plugin = folder.path().join("new/one");
        assert!(Journal::read(&plugin).expect("there is none").is_empty());
        let (journal, nothing) = open(&plugin);
        assert!(nothing.is_empty());
        for id in ["a", "b", "c"] {
            journal.put(&held(id)).expect("notes");
        }
        journal.remove(&held("b").pool, "b").expect("forgets");
        journal.remove(&held("b").pool, "b").expect("there is none");
        let (journal, found) = open(&plugin);
        assert_eq!(found, [held("a"), held("c")]);

        let path = journal.path(&held("a").pool, "a");
        let whole = fs::read(&path).expect("reads");
        for damaged in [
            &whole[..whole.len() / 2],
            b"",
            b"{\"format\": 2, \"held\": []}",
        ] {
            fs::write(&path, damaged).expect("writes");
            assert!(Journal::read(&plugin).is_err());
            let (_, found) = open(&plugin);
            assert_eq!(found, [held("c")]);
            let aside = fs::read(path.with_extension("damaged")).expect("kept");
            assert_eq!(aside, damaged);
        }
        let left = fs::read_dir(plugin.join(FOLDER)).expect("lists").count();
        assert_eq!(left, 2, "nothing half written is left");
    }
}
