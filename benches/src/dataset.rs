//! The dataset that the cache is measured with, and ways to read it as training does.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::BenchError;

/// Bytes of the large file.
pub const LARGE_BYTES: u64 = 256 << 20;
/// How many small files there are.
pub const SMALL_FILES: usize = 2000;
/// Bytes of a small file: a JPEG as image datasets have them.
pub const SMALL_BYTES: usize = 100_000;

/// A generator of the same incompressible bytes on every machine (SplitMix64, Steele et al. 2014).
#[derive(Debug, Clone)]
pub struct Noise(pub u64);

impl Noise {
    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Fills a buffer.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            piece.copy_from_slice(&self.draw().to_le_bytes()[..piece.len()]);
        }
    }
}

/// Writes the dataset below `root`: `large.bin` and `small/NNNN.jpg`.
pub fn write(root: &Path) -> Result<(), BenchError> {
    let attempt = || BenchError::io(format!("writing the dataset to {}", root.display()));
    let small = root.join("small");
    std::fs::create_dir_all(&small).map_err(attempt())?;
    let mut noise = Noise(1);
    let mut buffer = vec![0; 1 << 20];
    let large = File::create(large(root)).map_err(attempt())?;
    for at in (0..LARGE_BYTES).step_by(buffer.len()) {
        noise.fill(&mut buffer);
        large.write_all_at(&buffer, at).map_err(attempt())?;
    }
    large.sync_all().map_err(attempt())?;
    for path in small_paths(root) {
        noise.fill(&mut buffer[..SMALL_BYTES]);
        std::fs::write(path, &buffer[..SMALL_BYTES]).map_err(attempt())?;
    }
    Ok(())
}

/// The large file of a dataset.
pub fn large(root: &Path) -> PathBuf {
    root.join("large.bin")
}

/// The small files of a dataset, in an order that is not the one they were written in.
fn small_paths(root: &Path) -> Vec<PathBuf> {
    // 1,237 and 2,000 have no common divisor, so each file comes once.
    (0..SMALL_FILES)
        .map(|index| root.join(format!("small/{:04}.jpg", index * 1237 % SMALL_FILES)))
        .collect()
}

/// How a dataset is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// The large file from end to end, 1 MiB at a time. Figure: MB/s.
    Sequential,
    /// So many bytes at random places of the large file. Figure: reads/s.
    Random(usize),
    /// Each small file opened, read and closed. Figure: files/s.
    SmallFiles,
}

impl Pattern {
    /// Reads the dataset below `root` so and returns the figure.
    pub fn read(self, root: &Path, reads: usize, seed: u64) -> Result<f64, BenchError> {
        let started = Instant::now();
        let done = match self {
            Self::Sequential => sequential(&large(root)),
            Self::Random(bytes) => random(&large(root), bytes, reads, seed),
            Self::SmallFiles => small_files(root),
        }
        .map_err(BenchError::io(format!("reading {}", root.display())))?;
        Ok(done / started.elapsed().as_secs_f64())
    }

    /// Brings what the pattern reads into the page cache.
    pub fn warm(self, root: &Path) -> Result<(), BenchError> {
        match self {
            Self::Sequential | Self::Random(_) => sequential(&large(root)),
            Self::SmallFiles => small_files(root),
        }
        .map(drop)
        .map_err(BenchError::io(format!("reading {}", root.display())))
    }

    /// What the figure counts.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Sequential => "MB/s",
            Self::Random(_) => "reads/s",
            Self::SmallFiles => "files/s",
        }
    }
}

fn sequential(path: &Path) -> io::Result<f64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total as f64 / 1e6),
            read => total += read,
        }
    }
}

fn random(path: &Path, bytes: usize, reads: usize, seed: u64) -> io::Result<f64> {
    let file = File::open(path)?;
    let mut noise = Noise(seed);
    let mut buffer = vec![0; bytes];
    for _ in 0..reads {
        let place = noise.draw() % (LARGE_BYTES / bytes as u64);
        file.read_exact_at(&mut buffer, place * bytes as u64)?;
    }
    Ok(reads as f64)
}

fn small_files(root: &Path) -> io::Result<f64> {
    let mut buffer = vec![0; SMALL_BYTES];
    for path in small_paths(root) {
        File::open(path)?.read_exact(&mut buffer)?;
    }
    Ok(SMALL_FILES as f64)
}
