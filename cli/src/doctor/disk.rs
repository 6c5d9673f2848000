//! The disks of the cache: writing, reading past the page cache, room.

use nix::libc::O_DIRECT;
use nix::sys::statvfs::statvfs;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use trackbed_rdma::check::Finding;

/// What the cache reads and writes in multiples of.
const BLOCK: usize = 4096;
/// Less than this is no cache.
const LITTLE_BYTES: u64 = 10 << 30;

/// Tries a folder out, which is made if it is not there.
pub(super) fn look(folder: &Path) -> Vec<Finding> {
    const ID: &str = "disk/write";
    let subject = folder.display().to_string();
    let trial = folder.join(format!("trial-{}.direct", std::process::id()));
    let tried = fs::create_dir_all(folder).and_then(|()| alignment(&trial));
    if trial.exists()
        && let Err(error) = fs::remove_file(&trial)
    {
        tracing::warn!(%error, file = %trial.display(), "a trial file stays");
    }
    let mut findings = vec![match tried {
        Ok(alignment) => direct(&subject, alignment),
        Err(error) => {
            return vec![
                Finding::failure(ID, &subject, format!("it can't be written to: {error}"))
                    .expected("a folder on a disk of this machine")
                    .remedy("mount the disk, or name another folder"),
            ];
        }
    }];
    findings.push(room(folder, &subject));
    findings
}

/// The least alignment with which it can be read past the page cache; `None` if it can't.
fn alignment(trial: &Path) -> io::Result<Option<usize>> {
    let content = [0x5a_u8; 2 * BLOCK];
    fs::write(trial, content)?;
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(trial);
    let file = match opened {
        Ok(file) => file,
        // What file systems without O_DIRECT answer.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut memory = vec![0_u8; 3 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let buffer = &mut memory[start..start + BLOCK];
    buffer.fill(0x5a);
    for align in [512, BLOCK] {
        match try_aligned(&file, &mut buffer[..align], align as u64) {
            Ok(()) => return Ok(Some(align)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn try_aligned(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.write_all_at(buffer, offset)?;
    buffer.fill(0);
    file.read_exact_at(buffer, offset)?;
    if buffer.iter().any(|&byte| byte != 0x5a) {
        return Err(io::Error::other("other bytes were read than were written"));
    }
    Ok(())
}

fn direct(subject: &str, alignment: Option<usize>) -> Finding {
    const ID: &str = "disk/direct";
    match alignment {
        Some(bytes) => Finding::ok(
            ID,
            subject,
            format!("O_DIRECT works, in multiples of {bytes} bytes"),
        ),
        None => Finding::warning(ID, subject, "its file system has no O_DIRECT in multiples of 4096 bytes")
            .expected("O_DIRECT: fills and peers' reads go through the page cache without, and take it from pods")
            .remedy("put the cache on ext4 or XFS of a disk"),
    }
}

fn room(folder: &Path, subject: &str) -> Finding {
    const ID: &str = "disk/room";
    let stat = match statvfs(folder) {
        Ok(stat) => stat,
        Err(errno) => {
            return Finding::unknown(ID, subject, format!("statvfs: {errno}"))
                .remedy("see the kernel's log");
        }
    };
    // Of the type of the platform: 32 bits on some.
    let bytes = (stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64);
    let found = format!("{} GiB are free", bytes >> 30);
    if bytes >= LITTLE_BYTES {
        Finding::ok(ID, subject, found)
    } else {
        Finding::warning(ID, subject, found)
            .expected("10 GiB or more")
            .remedy("name a folder on a larger disk, or free some")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trackbed_rdma::check::Severity;

    fn severity(findings: &[Finding], id: &str) -> Option<Severity> {
        let found = findings.iter().find(|finding| finding.id == id);
        found.map(|finding| finding.severity)
    }

    #[test]
    fn a_disk_is_tried_and_nothing_is_left_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("new/cache");
        let findings = look(&cache);
        assert!(severity(&findings, "disk/direct").is_some(), "{findings:?}");
        assert!(severity(&findings, "disk/room").is_some(), "{findings:?}");
        assert_eq!(fs::read_dir(cache).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_can_t_be_is_a_failure_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let findings = look(&file.join("cache"));
        assert_eq!(severity(&findings, "disk/write"), Some(Severity::Failure));
        assert!(findings[0].remedy.is_some());
    }
}
