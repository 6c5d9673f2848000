//! Our side: one shard that reads a file and has the adapter write it into the peer's memory.
//!
//! It does what the fabric does with a chunk that a peer asks for: reads it into a slot of the slab that
//! is both a fixed buffer of the ring and memory of the adapter, writes it from there, and sleeps in the
//! ring's one system call for whichever of the two ends next. A processor that spun would be missing
//! where adapter or disk are software.

use std::{
    fs::{File, OpenOptions},
    future::poll_fn,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::Arc,
    task::Poll,
    time::Instant,
};

use clap::Args;
use futures::executor::block_on;
use trackbed_rdma::{
    shard::{self, Finished, Reads, Shard, ShardConfig},
    slab::{Lease, Slab},
    verbs::{
        Access, CompletionQueue, Completions, ConnectOptions, Context, GidChoice, MemoryRegion,
        Piece, ProtectionDomain, QueuePair, QueuePairConfig, Readiness, RemoteMemory, RemoteWindow,
        Segment, Settled, UnconnectedQueuePair, VerbsError, Watch, Work, WorkCompletion,
    },
};

use super::{BLOCK, DEPTH, FILE_BYTES};
use crate::BenchError;

/// Slots: for the reads under way, and for the writes.
const SLOTS: usize = 2 * DEPTH as usize;

/// What is read, and where it goes.
#[derive(Debug, Args)]
pub struct PumpOptions {
    /// The device that writes.
    #[arg(long)]
    device: String,
    /// The device whose memory is written, on this machine too.
    #[arg(long)]
    peer_device: String,
    /// Index of the GID that both use.
    #[arg(long)]
    gid_index: u8,
    /// The file.
    #[arg(long)]
    file: PathBuf,
    /// How many bytes are read and written; past the file's end it begins anew.
    #[arg(long)]
    bytes: u64,
}

/// Reads and writes that many bytes, compares the last ones, and returns MB/s.
pub fn pump(options: &PumpOptions) -> Result<f64, BenchError> {
    let path = options.file.display();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(&options.file)
        .map_err(BenchError::io(format!("opening {path} with O_DIRECT")))?;
    let slab = Slab::new("bench", BLOCK, SLOTS).map_err(unavailable)?;
    let shard = Shard::start(ShardConfig::new("bench", Arc::clone(&slab))).map_err(unavailable)?;
    let Link {
        pair,
        queue,
        window,
        _peer,
    } = Link::new(options, &slab).map_err(unavailable)?;
    let remote = window.remote();
    let notified = queue.event_fd().map(|fd| fd.try_clone_to_owned());
    let notified = notified
        .transpose()
        .map_err(BenchError::io("watching the completion queue"))?
        .map(Arc::new)
        .expect("the queue was made with events");
    let blocks = options.bytes / BLOCK as u64;
    let free: Vec<Lease> = std::iter::from_fn(|| slab.try_lease()).collect();

    let (seconds, sent) = block_on(shard.with_reads(Arc::new(file), DEPTH, move |reads| {
        let readiness = Watch::new(move || shard::readable(Arc::clone(&notified)));
        Pump {
            reads,
            free,
            pair,
            completions: Completions::new(queue, readiness),
            remote,
            blocks,
            written: 0,
            sent: vec![None; SLOTS],
        }
        .run()
    }))?;
    compare(options, &window, &sent)?;
    Ok((blocks * BLOCK as u64) as f64 / seconds / 1e6)
}

fn unavailable(error: impl std::error::Error) -> BenchError {
    BenchError::Unavailable(error.to_string())
}

/// Both ends of a connection, of which one only lends its memory.
struct Link {
    pair: QueuePair<Lease, Piece>,
    queue: CompletionQueue,
    window: RemoteWindow,
    _peer: (QueuePair<Piece, Piece>, CompletionQueue),
}

impl Link {
    fn new(options: &PumpOptions, slab: &Arc<Slab>) -> Result<Link, VerbsError> {
        let gid = GidChoice::Index(options.gid_index.into());
        let config = QueuePairConfig {
            send_depth: SLOTS as u32,
            receive_depth: 1,
            segments: 1,
            remote_writes: true,
            ..QueuePairConfig::default()
        };
        let context = Context::open(&options.device)?;
        let pd = ProtectionDomain::new(&context)?;
        let queue = CompletionQueue::with_events(&context, SLOTS as u32 + 2)?;
        let port = context.local_port(None, &gid)?;
        let mut ours = UnconnectedQueuePair::new(&pd, &queue, port, &config)?;
        ours.attach(&MemoryRegion::register(
            &pd,
            slab.clone(),
            Access::LocalRead,
        )?)?;

        let context = Context::open(&options.peer_device)?;
        let pd = ProtectionDomain::new(&context)?;
        // It posts nothing, so it needs the smallest there is.
        let config = QueuePairConfig {
            send_depth: 1,
            ..config
        };
        let peer_queue = CompletionQueue::new(&context, 8)?;
        let port = context.local_port(None, &gid)?;
        let peer = UnconnectedQueuePair::new(&pd, &peer_queue, port, &config)?;
        let window = RemoteWindow::new(&pd, SLOTS * BLOCK)?;

        let connect = ConnectOptions::default();
        let (at_ours, at_peer) = (ours.endpoint(), peer.endpoint());
        Ok(Link {
            pair: ours
                .connect(&at_peer, &connect)
                .map_err(|failed| failed.error)?,
            queue,
            window,
            _peer: (
                peer.connect(&at_ours, &connect)
                    .map_err(|failed| failed.error)?,
                peer_queue,
            ),
        })
    }
}

/// The work of the shard's task.
struct Pump<W> {
    reads: Reads,
    free: Vec<Lease>,
    pair: QueuePair<Lease, Piece>,
    completions: Completions<W>,
    remote: RemoteMemory,
    blocks: u64,
    written: u64,
    /// What was sent last from each slot, by its place in the file.
    sent: Vec<Option<u64>>,
}

impl<W: Readiness> Pump<W> {
    /// Returns the seconds it took, and what was sent last from each slot.
    async fn run(mut self) -> Result<(f64, Vec<Option<u64>>), BenchError> {
        let start = Instant::now();
        let mut begun = 0;
        while self.written < self.blocks {
            begun += self.read_on(begun)?;
            self.send_on()?;
            self.something_ended().await?;
        }
        Ok((start.elapsed().as_secs_f64(), self.sent))
    }

    /// Begins the next reads.
    fn read_on(&mut self, begun: u64) -> Result<u64, BenchError> {
        let mut count = 0;
        while begun + count < self.blocks && self.reads.room() > 0 {
            let Some(lease) = self.free.pop() else { break };
            self.reads
                .push(offset(begun + count), lease, 0, BLOCK)
                .map_err(unavailable)?;
            count += 1;
        }
        Ok(count)
    }

    /// Posts a write for each read that has ended.
    fn send_on(&mut self) -> Result<(), BenchError> {
        let mut batch = self.pair.batch();
        while let Some(Finished {
            lease,
            offset,
            result,
        }) = self.reads.finished()
        {
            let bytes = result.map_err(BenchError::io("reading the file"))?;
            if bytes != BLOCK {
                return Err(BenchError::Unavailable(format!(
                    "the file ends {bytes} bytes after {offset}"
                )));
            }
            let slot = lease.slot() as usize;
            let target = self.remote.at((slot * BLOCK) as u64, BLOCK as u64);
            let target = target.expect("the window has a place for each slot");
            self.sent[slot] = Some(offset);
            let segments = [Segment::new(0, BLOCK as u32)];
            batch
                .push(lease, &[Work::write(target, &segments).signaled()])
                .map_err(|rejected| BenchError::Unavailable(rejected.to_string()))?;
        }
        batch
            .commit()
            .map_err(|error| BenchError::Unavailable(error.to_string()))?;
        Ok(())
    }

    /// Sleeps until a read or a write has ended; takes the slots of writes back.
    async fn something_ended(&mut self) -> Result<(), BenchError> {
        let (reads, completions) = (&mut self.reads, &mut self.completions);
        let mut done = poll_fn(|context| {
            if reads.under_way() > 0 && reads.poll_ended(context).is_ready() {
                return Poll::Ready(Ok(None));
            }
            completions
                .poll_completion(context)
                .map(|done| done.map(Some))
        })
        .await
        .map_err(unavailable)?;
        while let Some(write) = done {
            self.take_back(write)?;
            done = self.completions.queue().poll().map_err(unavailable)?;
        }
        Ok(())
    }

    /// Takes the slots of a completed write, and of those before it, back.
    fn take_back(&mut self, done: WorkCompletion) -> Result<(), BenchError> {
        if let Settled::Sent(sent) = self.pair.settle(done) {
            (*sent.outcome()).map_err(unavailable)?;
            self.written += u64::from(sent.work_requests());
            self.free.extend(sent);
        }
        Ok(())
    }
}

/// Where in the file a block is.
fn offset(block: u64) -> u64 {
    block * BLOCK as u64 % FILE_BYTES
}

/// Whether what was sent last from each slot arrived as it is in the file.
fn compare(
    options: &PumpOptions,
    window: &RemoteWindow,
    sent: &[Option<u64>],
) -> Result<(), BenchError> {
    let file = File::open(&options.file).map_err(BenchError::io("opening the file again"))?;
    let (mut wanted, mut found) = (vec![0; BLOCK], vec![0; BLOCK]);
    for (slot, offset) in sent.iter().enumerate() {
        let Some(offset) = *offset else { continue };
        file.read_exact_at(&mut wanted, offset)
            .map_err(BenchError::io("reading the file again"))?;
        if !window.copy_out(slot * BLOCK, &mut found) || wanted != found {
            return Err(BenchError::Unavailable(format!(
                "the bytes that arrived differ from the file's at {offset}"
            )));
        }
    }
    Ok(())
}
