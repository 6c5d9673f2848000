//! Random blocks of one file in the page cache: our shard and `tokio-uring`.
//!
//! Both have their buffers registered with the kernel, keep as many reads under way, and begin the next
//! one in a buffer when the last has ended. The shard has the file registered as well, which
//! `tokio-uring` can't.

mod ours;
mod tokio_uring;

pub use ours::Ours;
pub use tokio_uring::TokioUring;

use std::{fs::File, path::Path};

use crate::PeersError;

/// Bytes of a read.
pub const BLOCK: usize = 4096;
/// Reads under way.
pub const DEPTH: u16 = 128;

/// A side that reads.
pub trait Blocks {
    /// Reads so many random blocks.
    fn read(&mut self, count: u64) -> Result<(), PeersError>;
}

/// Opens the file; how many blocks it has.
fn open(path: &Path) -> Result<(File, u64), PeersError> {
    let file = File::open(path).map_err(PeersError::of("opening the file to be read"))?;
    let bytes = file
        .metadata()
        .map_err(PeersError::of(
            "asking for the length of the file to be read",
        ))?
        .len();
    let blocks = bytes / BLOCK as u64;
    if blocks == 0 {
        return Err(PeersError::Unavailable(format!(
            "{} has not one block of {BLOCK} bytes",
            path.display()
        )));
    }
    Ok((file, blocks))
}

/// Where the next reads begin: the same random blocks for either side.
#[derive(Debug, Clone)]
struct Places {
    state: u64,
    blocks: u64,
}

impl Places {
    fn of(blocks: u64) -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
            blocks,
        }
    }

    /// A random block's first byte, by xorshift and the upper half of a product.
    #[inline]
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let block = (u128::from(self.state) * u128::from(self.blocks)) >> 64;
        block as u64 * BLOCK as u64
    }
}

/// What a read that brought less than a block is told as.
fn short(bytes: usize) -> PeersError {
    PeersError::Unavailable(format!(
        "a read brought {bytes} bytes of {BLOCK}: the file was changed meanwhile"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), vec![7; bytes]).expect("it can be written to");
        file
    }

    #[test]
    fn places_are_whole_blocks_inside_the_file() {
        let mut places = Places::of(5);
        let mut seen = [false; 5];
        for _ in 0..1000 {
            let at = places.next();
            assert_eq!(at % BLOCK as u64, 0);
            seen[(at / BLOCK as u64) as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
    }

    #[test]
    fn either_side_reads_as_often_as_it_is_told_and_again() {
        let file = file(8 * BLOCK);
        let sides: [Box<dyn Blocks>; 2] = [
            Box::new(Ours::open(file.path()).expect("ours")),
            Box::new(TokioUring::open(file.path()).expect("tokio-uring")),
        ];
        for mut side in sides {
            for count in [1, 127, 1000] {
                side.read(count).expect("reads of a sound file");
            }
        }
    }

    #[test]
    fn a_file_without_a_block_is_refused() {
        let error = Ours::open(file(100).path()).err().expect("too short");
        assert!(error.to_string().contains("not one block"), "{error}");
        assert!(TokioUring::open(file(100).path()).is_err());
    }
}
