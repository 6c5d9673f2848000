//! Writing a version as an EROFS image: one file that the kernel mounts read-only, with all names,
//! modes and times of a version, and its files' bytes.
//!
//! A million small files laid out one by one are a million inodes of the disk's file system; as an
//! image they are one. The image is not compressed, and all of it follows from the manifest and the
//! files' bytes: [`Plan`] says where everything lies before a byte is written, and each part can be
//! made by itself, from one chunk, as often as it is wanted. So an image is written in any order and
//! in bounded memory, and a part that the disk has damaged is found by making it again and comparing.
//!
//! The image has, in this order,
//! 1. the superblock, then the inodes of directories, links, empty and large files, with the ends of
//!    directories and the targets of links behind their inodes ([`metadata`]),
//! 2. what is left of directories,
//! 3. for each pack of small files their inodes, with the files' last bytes behind them, and then
//!    their whole blocks ([`region`]), so that a pack's files are read and written in one go,
//! 4. large files.
//!
//! The format is that of Linux's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h, with
//! none of its incompatible features, so any kernel since 5.4 reads it.

mod directory;
mod format;
pub mod metadata;
mod place;
mod plan;
pub mod region;
#[cfg(test)]
mod tests;

pub use plan::{Plan, TooLarge};
