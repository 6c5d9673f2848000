//! One at a time gives devices away or changes them: a plugin that runs, or `apply`.

use crate::exit::Failure;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Held locked by whoever uses the folder; says who that is.
const LOCK: &str = "in-use";
/// The most that is read of it.
const MAX_BYTES: u64 = 64;

/// Who uses a plugin's folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum User {
    /// A plugin that runs.
    Plugin,
    /// `trackbed device-plugin apply`.
    Apply,
}

impl User {
    fn name(self) -> &'static str {
        match self {
            User::Plugin => "run",
            User::Apply => "apply",
        }
    }
}

/// Has the folder for `user` for as long as the file is kept. Refused while another one has it: both would
/// give the same devices away, or change what the other one gives away.
pub(super) fn lock(folder: &Path, user: User) -> Result<File, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "--state-dir {}: {error}: name a folder that this user can write to",
            folder.display()
        ))
    };
    let mut make = DirBuilder::new();
    make.recursive(true).mode(0o700);
    make.create(folder).map_err(|error| failed(&error))?;
    let mut open = OpenOptions::new();
    // Another one's name in it stays until the lock is had.
    let open = open.create(true).truncate(false).read(true).write(true);
    let mut file = open
        .open(folder.join(LOCK))
        .map_err(|error| failed(&error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let remedy = match read(&file) == User::Apply.name() {
                true => {
                    "`trackbed device-plugin apply` is changing this node's ports: try again when it has ended"
                }
                false => {
                    "another device plugin runs with it: end that first (in a cluster: take the node out of its DaemonSet)"
                }
            };
            let folder = folder.display();
            return Err(Failure::usage(format!("--state-dir {folder}: {remedy}")));
        }
        Err(TryLockError::Error(error)) => return Err(failed(&error)),
    }
    let named = file
        .set_len(0)
        .and_then(|()| file.write_all(user.name().as_bytes()));
    named.map_err(|error| failed(&error))?;
    Ok(file)
}

/// Whether a plugin runs with this folder.
pub(super) fn is_running(folder: &Path) -> bool {
    let file = File::open(folder.join(LOCK));
    file.is_ok_and(|file| {
        let locked = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        locked && read(&file) != User::Apply.name()
    })
}

/// Who was the last to have it.
fn read(file: &File) -> String {
    let mut name = String::new();
    // One that can't be read is taken for a plugin.
    let _ = file.take(MAX_BYTES).read_to_string(&mut name);
    name
}
