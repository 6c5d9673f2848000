//! What the driver remembers of each staged volume, one small file each, so that a restarted
//! driver mounts the same data again and knows what it had published.
//!
//! A file is replaced as a whole (written beside, synced, renamed). What is mounted is not taken
//! from here but from the mount table: the file says only what should be.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use trackbed_cache::Digest;

use super::spec::VolumeSpec;
use super::volume::{Access, VolumeId};

/// No record comes near this many bytes: a larger file is not one of ours.
const MAX_RECORD_BYTES: u64 = 16 << 20;

const SUFFIX: &str = ".volume.json";
/// Of a record that is being written.
const UNFINISHED: &str = ".volume.new";

/// A staged volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) volume: VolumeId,
    /// What was asked for.
    pub(super) spec: VolumeSpec,
    /// The version that was resolved then: the volume shows this one until it is unstaged,
    /// whatever the dataset's name means in the meantime.
    pub(super) pinned: Digest,
    pub(super) access: Access,
    /// Where it is staged: as kubelet named it, or a folder of our own for an inline volume.
    pub(super) staging: PathBuf,
    /// Whether it is part of a pod's own specification: staged by us, and gone with its target.
    #[serde(default)]
    pub(super) inline: bool,
    pub(super) targets: Vec<Target>,
}

/// Where a volume is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Target {
    /// As kubelet named it.
    pub(super) path: PathBuf,
    pub(super) access: Access,
    /// As it was asked for: the mount is read-only in any case.
    pub(super) read_only: bool,
}

/// The folder of records.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
}

impl Records {
    /// Opens the folder, made if needed, only for this user to read.
    pub(super) fn open(folder: &Path) -> io::Result<Records> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        Ok(Records {
            folder: folder.canonicalize()?,
        })
    }

    /// Where they are. The driver's other files have their place in it too.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// All records. One that cannot be read is left out and logged: its volume is staged anew when
    /// kubelet asks for it, other volumes go on.
    pub(super) fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for item in fs::read_dir(&self.folder)? {
            let path = item?.path();
            let name = path.to_string_lossy();
            if name.ends_with(UNFINISHED) {
                // A crash has left it; the record itself is whole.
                fs::remove_file(&path)?;
            }
            if !name.ends_with(SUFFIX) {
                continue;
            }
            match read(&path) {
                Ok(record) => records.push(record),
                Err(error) => tracing::error!(
                    path = %path.display(), %error,
                    "a volume's record cannot be read: its volume has to be staged again"
                ),
            }
        }
        Ok(records)
    }

    /// Replaces a volume's record. Durable once `Ok`.
    pub(super) fn save(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.volume);
        let beside = path.with_extension("new");
        let text = serde_json::to_vec_pretty(record)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        self.sync()
    }

    /// Forgets a volume; one that is not there is fine.
    pub(super) fn remove(&self, volume: &VolumeId) -> io::Result<()> {
        match fs::remove_file(self.path(volume)) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// A volume's id may have any character and be longer than a file's name: its hash is neither.
    fn path(&self, volume: &VolumeId) -> PathBuf {
        let name = blake3::hash(volume.as_str().as_bytes()).to_hex();
        self.folder.join(format!("{name}{SUFFIX}"))
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_RECORD_BYTES)
        .read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trackbed_proto::csi::v1::VolumeCapability;
    use trackbed_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};

    fn record(id: &str) -> Record {
        let capability = VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            access_mode: Some(AccessMode { mode: 3 }),
        };
        let access = Access::parse(Some(&capability)).expect("valid");
        let volume = VolumeId::parse(id).expect("valid");
        Record {
            spec: VolumeSpec {
                dataset: Some("cats".parse().expect("a name")),
                version: None,
            },
            volume,
            pinned: Digest::of(b"cats"),
            access: access.clone(),
            staging: "/var/lib/kubelet/staging".into(),
            inline: false,
            targets: vec![Target {
                path: "/var/lib/kubelet/pods/1".into(),
                access,
                read_only: true,
            }],
        }
    }

    #[test]
    fn what_was_staged_is_known_after_a_restart_whatever_its_id() {
        let folder = tempfile::tempdir().expect("a folder");
        let long = "x".repeat(256);
        let ids = ["a/../../b", "ü \n", long.as_str()];
        {
            let records = Records::open(&folder.path().join("state")).expect("opens");
            for id in ids {
                records.save(&record(id)).expect("saves");
                records.save(&record(id)).expect("saves again");
            }
        }
        let records = Records::open(&folder.path().join("state")).expect("opens");
        let mut loaded = records.load().expect("loads");
        assert_eq!(loaded.len(), 3);
        for id in ids {
            assert!(loaded.contains(&record(id)));
            records.remove(&record(id).volume).expect("removes");
            records.remove(&record(id).volume).expect("removes again");
        }
        loaded = records.load().expect("loads");
        assert!(loaded.is_empty());
    }

    #[test]
    fn a_damaged_record_hides_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let records = Records::open(folder.path()).expect("opens");
        records.save(&record("good")).expect("saves");
        fs::write(folder.path().join(format!("bad{SUFFIX}")), b"{\"volume\":").expect("writes");
        fs::write(folder.path().join("unrelated"), b"x").expect("writes");
        let unfinished = folder.path().join(format!("good{UNFINISHED}"));
        fs::write(&unfinished, b"{").expect("writes");
        assert_eq!(records.load().expect("loads"), [record("good")]);
        assert!(!unfinished.exists());
    }
}
