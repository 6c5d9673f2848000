//! The dataset that the cache is measured with, and ways to read it as training does.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
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
    write_small(root)?;
    write_file(&large(root), LARGE_BYTES, &mut Noise(1))
}

/// Writes `small/NNNN.jpg` below `root`.
pub fn write_small(root: &Path) -> Result<(), BenchError> {
    let small = root.join("small");
    std::fs::create_dir_all(&small)
        .map_err(BenchError::io(format!("making {}", small.display())))?;
    let mut noise = Noise(2);
    small_paths(root)
        .iter()
        .try_for_each(|path| write_file(path, SMALL_BYTES as u64, &mut noise))
}

/// Writes so many files of so many bytes below `root`, `large-N.bin`.
pub fn write_large(root: &Path, files: usize, bytes: u64) -> Result<(), BenchError> {
    (0..files).try_for_each(|file| {
        let path = root.join(format!("large-{file}.bin"));
        write_file(&path, bytes, &mut Noise(file as u64))
    })
}

/// Writes one file of so many bytes.
pub fn write_file(path: &Path, bytes: u64, noise: &mut Noise) -> Result<(), BenchError> {
    let attempt = || BenchError::io(format!("writing {}", path.display()));
    let file = File::create(path).map_err(attempt())?;
    let mut buffer = vec![0; (1 << 20).min(bytes as usize)];
    for at in (0..bytes).step_by(buffer.len().max(1)) {
        noise.fill(&mut buffer);
        let piece = &buffer[..buffer.len().min((bytes - at) as usize)];
        file.write_all_at(piece, at).map_err(attempt())?;
    }
    if bytes > SMALL_BYTES as u64 {
        file.sync_all().map_err(attempt())?;
    }
    Ok(())
}

/// Reads each of the files to its end, with so many threads at once. Returns the bytes read.
pub fn read_files(files: &[PathBuf], readers: usize) -> Result<u64, BenchError> {
    let next = AtomicUsize::new(0);
    let reader = || {
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        while let Some(path) = files.get(next.fetch_add(1, Relaxed)) {
            let attempt = || BenchError::io(format!("reading {}", path.display()));
            let mut file = File::open(path).map_err(attempt())?;
            loop {
                match file.read(&mut buffer).map_err(attempt())? {
                    0 => break,
                    read => total += read as u64,
                }
            }
        }
        Ok(total)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..readers).map(|_| scope.spawn(reader)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a reader does not panic"))
            .sum()
    })
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
