//! `trackbed-peers`: one side or the other whenever `hack/bench` asks for it.
//!
//! Both sides are made ready at the start. Each line of standard input, `ours` or `peer`, asks for a run
//! of that side, and is answered by a line with its figure.

use std::{
    io::BufRead,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use trackbed_peers::{
    PeersError,
    reads::{self, Blocks},
};

/// How long a run shall take.
const RUN: Duration = Duration::from_millis(500);
/// A run is of about so many pieces, with a look at the clock between them.
const PIECES: u32 = 10;

/// Measures ours or a peer, as lines on standard input say: `ours` or `peer`.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    beside: Beside,
}

#[derive(Debug, Subcommand)]
enum Beside {
    /// Messages on a device of this machine, beside the crate ibverbs: messages a second.
    #[cfg(feature = "ibverbs")]
    Ibverbs(Messages),
    /// Reads of a file in the page cache, beside the crate tokio-uring: reads a second.
    TokioUring {
        /// The file.
        #[arg(long)]
        file: PathBuf,
    },
}

#[cfg(feature = "ibverbs")]
#[derive(Debug, clap::Args)]
struct Messages {
    /// The device.
    #[arg(long)]
    device: String,
    /// Index of the GID that both queue pairs use.
    #[arg(long)]
    gid_index: u8,
    /// Bytes of a message.
    #[arg(long)]
    size: u32,
    /// Messages under way.
    #[arg(long)]
    depth: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let answered = match arguments.beside {
        #[cfg(feature = "ibverbs")]
        Beside::Ibverbs(messages) => messages.answer(),
        Beside::TokioUring { file } => tokio_uring(&file),
    };
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trackbed-peers: {error}");
            ExitCode::from(3)
        }
    }
}

/// Does so many operations.
type Side<'s> = &'s mut dyn FnMut(u64) -> Result<(), PeersError>;

fn tokio_uring(file: &std::path::Path) -> Result<(), PeersError> {
    let (mut ours, mut peer) = (reads::Ours::open(file)?, reads::TokioUring::open(file)?);
    answer(
        u64::from(reads::DEPTH),
        &mut |count| ours.read(count),
        &mut |count| peer.read(count),
    )
}

#[cfg(feature = "ibverbs")]
impl Messages {
    fn answer(self) -> Result<(), PeersError> {
        use trackbed_peers::loopback::{Ibverbs, Messages, Ours, Path, Waiting};
        let path = Path {
            device: self.device,
            gid_index: self.gid_index,
            size: self.size,
            depth: self.depth,
        };
        let (mut ours, mut peer) = (
            Ours::connect(&path, Waiting::Polled)?,
            Ibverbs::connect(&path)?,
        );
        answer(
            u64::from(path.depth),
            &mut |count| ours.send(count),
            &mut |count| peer.send(count),
        )
    }
}

/// Answers until there are no more questions. `least` operations are the fewest that keep a side busy.
fn answer<'s>(least: u64, ours: Side<'s>, peer: Side<'s>) -> Result<(), PeersError> {
    // As many at a time as take a part of a run, found with ours and used for both.
    let mut piece = least;
    loop {
        let start = Instant::now();
        ours(piece)?;
        if start.elapsed() * PIECES >= RUN {
            break;
        }
        piece *= 2;
    }
    peer(piece)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(PeersError::of("reading standard input"))?;
        let side = match line.as_str() {
            "ours" => &mut *ours,
            "peer" => &mut *peer,
            other => {
                return Err(PeersError::Unavailable(format!(
                    "{other:?} is neither ours nor peer"
                )));
            }
        };
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < RUN {
            side(piece)?;
            count += piece;
        }
        println!("{}", count as f64 / start.elapsed().as_secs_f64());
    }
    Ok(())
}
