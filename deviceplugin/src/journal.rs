//! What was given away, on the disk: written before kubelet is told, so that no restart gives it again.
//!
//! One small file, replaced as a whole (written beside, synced, renamed). One that can't be read is set
//! aside and said: what pods hold is then what kubelet says.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::allocate::Held;

/// The largest file that is read, in bytes: more than any node's devices take.
const MAX_FILE_BYTES: u64 = 16 << 20;
const FORMAT: u32 = 1;
const NAME: &str = "allocations.json";

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
struct Content {
    format: u32,
    held: Vec<Held>,
}

/// The file.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// Opens it in a folder, which is made if it is not there, and reads what it holds.
    pub fn open(folder: &Path) -> Result<(Journal, Vec<Held>), JournalError> {
        let journal = Journal {
            folder: folder.to_owned(),
        };
        let mut make = DirBuilder::new();
        make.recursive(true).mode(0o700);
        make.create(folder)
            .map_err(journal.failed("make", folder))?;
        let path = journal.path();
        let held = match read(&path) {
            Ok(held) => held,
            Err(Unread::Missing) => Vec::new(),
            Err(Unread::Io(source)) => return Err(journal.failed("read", &path)(source)),
            Err(Unread::Damaged(why)) => {
                let aside = path.with_extension("damaged");
                fs::rename(&path, &aside).map_err(journal.failed("set aside", &path))?;
                tracing::error!(why, journal = %aside.display(),
                    "the journal of what was given to pods is damaged and was set aside: what they hold is \
                     what kubelet says");
                Vec::new()
            }
        };
        Ok((journal, held))
    }

    /// What the journal in a folder holds, without using it; nothing if there is none.
    pub fn read(folder: &Path) -> Result<Vec<Held>, JournalError> {
        let journal = Journal {
            folder: folder.to_owned(),
        };
        let path = journal.path();
        match read(&path) {
            Ok(held) => Ok(held),
            Err(Unread::Missing) => Ok(Vec::new()),
            Err(Unread::Io(source)) => Err(journal.failed("read", &path)(source)),
            Err(Unread::Damaged(why)) => Err(journal.failed("read", &path)(io::Error::other(why))),
        }
    }

    /// Replaces what it holds; durable once `Ok`. Blocks.
    pub fn save(&self, held: Vec<Held>) -> Result<(), JournalError> {
        let path = self.path();
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            let content = Content {
                format: FORMAT,
                held,
            };
            serde_json::to_writer(&mut file, &content)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(self.failed("write", &path))
    }

    fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    fn failed(&self, action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
        let path = path.to_owned();
        move |source| JournalError {
            action,
            path,
            source,
        }
    }
}

enum Unread {
    Missing,
    Damaged(String),
    Io(io::Error),
}

fn read(path: &Path) -> Result<Vec<Held>, Unread> {
    let size = match fs::metadata(path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unread::Missing),
        Err(error) => return Err(Unread::Io(error)),
    };
    if size > MAX_FILE_BYTES {
        return Err(Unread::Damaged(format!("it has {size} bytes")));
    }
    let bytes = fs::read(path).map_err(Unread::Io)?;
    let content: Content =
        serde_json::from_slice(&bytes).map_err(|error| Unread::Damaged(error.to_string()))?;
    match content.format {
        FORMAT => Ok(content.held),
        other => Err(Unread::Damaged(format!("it has format {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::allocate::{Health, Holder, Marks, Offer, Place};
    use crate::config::PoolName;
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

    #[test]
    fn what_was_saved_is_read_and_damage_is_set_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("new/one");
        let (journal, nothing) = Journal::open(&folder).expect("opens");
        assert!(nothing.is_empty());
        journal.save(vec![held("a"), held("b")]).expect("saves");
        let (journal, found) = Journal::open(&folder).expect("opens");
        assert_eq!(found, [held("a"), held("b")]);
        journal.save(vec![held("c")]).expect("saves");

        let path = folder.join(NAME);
        let whole = fs::read(&path).expect("reads");
        for damaged in [
            &whole[..whole.len() / 2],
            b"",
            b"{\"format\": 2, \"held\": []}",
        ] {
            fs::write(&path, damaged).expect("writes");
            let (_, found) = Journal::open(&folder).expect("opens");
            assert!(found.is_empty());
            let aside = fs::read(path.with_extension("damaged")).expect("kept");
            assert_eq!(aside, damaged);
        }
        let left = fs::read_dir(&folder).expect("lists").count();
        assert_eq!(left, 1, "only what was set aside");
    }
}
