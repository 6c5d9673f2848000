//! Which chunks were found to be what their seals say since the machine was started.
//!
//! A chunk counts as verified once this node read it back from the disk and its checksums were
//! right. What was verified is remembered over restarts of the agent in a file
//! beside the chunks that names the boot it is about: after a reboot it is not believed, and all
//! is read again. The file is removed before a verified chunk is given up, so a kill at any moment
//! never leaves it saying too much.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::presence::{Presence, tag};
use crate::digest::Digest;

pub(super) const FILE_NAME: &str = "verified";

const MAGIC: &[u8; 4] = b"tbv\x01";
/// Length of a boot id as text (random(4)).
pub(super) const BOOT_BYTES: usize = 36;
const BITS_AT: usize = 4 + 4 + BOOT_BYTES;

/// The bits, and the file that remembers them.
pub(super) struct Verified {
    bits: Presence,
    path: PathBuf,
    version: u32,
    /// Names the boot; without it nothing is remembered.
    boot: Option<[u8; BOOT_BYTES]>,
    file: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    /// Whether the file is there.
    exists: bool,
    /// How many chunks it names.
    chunks: u32,
}

impl Verified {
    /// What was verified of the chunks that `presence` says are held.
    pub(super) fn load(
        directory: &Path,
        digest: &Digest,
        chunks: u32,
        presence: &Presence,
        chunk_len: impl Fn(u32) -> u32,
    ) -> Verified {
        let verified = Verified {
            bits: Presence::none(chunks),
            path: directory.join(FILE_NAME),
            version: tag(digest),
            boot: boot_id(),
            file: Mutex::default(),
        };
        let Ok(bytes) = fs::read(&verified.path) else {
            return verified;
        };
        let mut remembered = verified.file.lock();
        remembered.exists = true;
        let boot = verified.boot.as_ref();
        let bits = boot.and_then(|boot| decode(&bytes, verified.version, boot, chunks));
        if let Some(bits) = bits {
            for chunk in 0..chunks {
                let marked = bits[chunk as usize / 8] >> (chunk % 8) & 1 == 1;
                if marked && presence.has(chunk) {
                    verified.bits.set(chunk, chunk_len(chunk));
                }
            }
            remembered.chunks = verified.bits.held().0;
        }
        drop(remembered);
        verified
    }

    pub(super) fn has(&self, chunk: u32) -> bool {
        self.bits.has(chunk)
    }

    /// How many chunks were verified.
    pub(super) fn chunks(&self) -> u32 {
        self.bits.held().0
    }

    pub(super) fn set(&self, chunk: u32, len: u32) {
        self.bits.set(chunk, len);
    }

    /// The chunk is to be verified again.
    pub(super) fn clear(&self, chunk: u32, len: u32) {
        if !self.bits.clear(chunk, len) {
            return;
        }
        let mut remembered = self.file.lock();
        if remembered.exists {
            match fs::remove_file(&self.path) {
                Ok(()) => *remembered = Remembered::default(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    *remembered = Remembered::default();
                }
                Err(error) => tracing::error!(path = %self.path.display(), %error,
                    "cannot take back what was verified: after a kill of the agent, damage that was \
                     just found would have to be found again; remove the file by hand"),
            }
        }
    }

    /// Remembers what was verified so far. A crash of the machine may lose it, and does no harm.
    pub(super) fn save(&self) {
        let Some(boot) = &self.boot else { return };
        let mut remembered = self.file.lock();
        let chunks = self.chunks();
        if remembered.chunks == chunks {
            return;
        }
        let bytes = encode(self.version, boot, &self.bits);
        let beside = self.path.with_extension("new");
        match fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, &self.path)) {
            Ok(()) => {
                *remembered = Remembered {
                    exists: true,
                    chunks,
                }
            }
            Err(error) => tracing::warn!(path = %self.path.display(), %error,
                "what was verified is not remembered: it is verified again after the agent's next start"),
        }
    }
}

/// What the file is to hold.
pub(super) fn encode(version: u32, boot: &[u8; BOOT_BYTES], bits: &Presence) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(boot);
    bytes.extend(bits.to_bytes());
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// The bits of a file that is whole, and about that version and that boot.
pub(super) fn decode<'a>(
    bytes: &'a [u8],
    version: u32,
    boot: &[u8; BOOT_BYTES],
    chunks: u32,
) -> Option<&'a [u8]> {
    let bits_end = BITS_AT + Presence::encoded_len(chunks);
    let whole = bytes.len() == bits_end + 4
        && bytes[..4] == *MAGIC
        && bytes[4..8] == version.to_le_bytes()
        && bytes[8..BITS_AT] == *boot
        && bytes[bits_end..] == crc32c::crc32c(&bytes[..bits_end]).to_le_bytes();
    whole.then(|| &bytes[BITS_AT..bits_end])
}

/// What names this boot, if the kernel says.
fn boot_id() -> Option<[u8; BOOT_BYTES]> {
    let text = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    text.get(..BOOT_BYTES)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn held(chunks: u32) -> Presence {
        let presence = Presence::none(chunks);
        for chunk in 0..chunks {
            presence.set(chunk, 1);
        }
        presence
    }

    fn load(directory: &Path, presence: &Presence) -> Verified {
        Verified::load(directory, &Digest::of(b"v"), 100, presence, |_| 1)
    }

    #[test]
    fn what_was_verified_is_remembered_within_a_boot_and_only_for_chunks_still_held() {
        let directory = tempfile::tempdir().expect("a directory");
        let verified = load(directory.path(), &held(100));
        for chunk in [3, 64, 99] {
            verified.set(chunk, 1);
        }
        verified.save();
        let presence = held(100);
        presence.clear(64, 1);
        let again = load(directory.path(), &presence);
        assert!(again.has(3) && again.has(99) && !again.has(64));
        assert_eq!(again.chunks(), 2);
    }

    #[test]
    fn after_a_reboot_nothing_counts_as_verified() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut verified = load(directory.path(), &held(100));
        verified.boot = Some([b'0'; BOOT_BYTES]);
        verified.set(3, 1);
        verified.save();
        assert!(directory.path().join(FILE_NAME).exists());
        assert_eq!(load(directory.path(), &held(100)).chunks(), 0);
    }

    #[test]
    fn a_chunk_given_up_is_not_verified_even_if_the_agent_is_killed_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let verified = load(directory.path(), &held(100));
        (0..100).for_each(|chunk| verified.set(chunk, 1));
        verified.save();
        verified.clear(7, 1);
        // Killed here: nothing else was written.
        assert!(!load(directory.path(), &held(100)).has(7));
    }

    proptest! {
        #[test]
        fn a_damaged_file_verifies_nothing(at: prop::sample::Index, change in 1..=255u8) {
            let directory = tempfile::tempdir().expect("a directory");
            let verified = load(directory.path(), &held(100));
            verified.set(3, 1);
            verified.save();
            let path = directory.path().join(FILE_NAME);
            let mut bytes = fs::read(&path).expect("saved");
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            fs::write(&path, bytes).expect("written");
            prop_assert_eq!(load(directory.path(), &held(100)).chunks(), 0);
        }
    }
}
