//! The dataset: small files in folders, as image datasets have them, and some large ones.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    BenchError,
    dataset::{Noise, SMALL_BYTES, write_file},
};

/// Folders of small files.
const FOLDERS: usize = 8;
/// Small files of each.
const IN_A_FOLDER: usize = 16;
/// Large files.
const LARGE_FILES: usize = 2;
/// Bytes of each.
const LARGE_BYTES: u64 = 8 << 20;

/// What a reader has to find.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Tree {
    /// All files, in the order of their paths.
    pub(super) files: Vec<Expected>,
}

/// One file of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Expected {
    /// Below the root.
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) crc32c: u32,
}

impl Tree {
    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Writes the dataset below a folder.
pub(super) fn write(root: &Path) -> Result<Tree, BenchError> {
    let small = (0..FOLDERS).flat_map(|folder| {
        (0..IN_A_FOLDER).map(move |file| {
            let path = format!("class-{folder}/{file:04}.jpg");
            (path, SMALL_BYTES as u64)
        })
    });
    let large = (0..LARGE_FILES).map(|file| (format!("shards/{file:02}.tar"), LARGE_BYTES));
    let mut noise = Noise(4);
    let mut files = Vec::new();
    for (path, bytes) in small.chain(large) {
        let full = root.join(&path);
        let attempt = || BenchError::io(format!("writing {}", full.display()));
        let folder = full.parent().unwrap_or(root);
        std::fs::create_dir_all(folder).map_err(attempt())?;
        write_file(&full, bytes, &mut noise)?;
        let written = std::fs::read(&full).map_err(attempt())?;
        files.push(Expected {
            path,
            bytes,
            crc32c: crc32c::crc32c(&written),
        });
    }
    Ok(Tree { files })
}
