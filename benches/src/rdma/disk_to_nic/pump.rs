//! Our side: one shard that reads a file and has the adapter write it into the peer's memory.

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
    shard::{Finished, Reads, Shard, ShardConfig},
    slab::{Lease, Slab},
    verbs::{
        Access, CompletionQueue, ConnectOptions, Context, GidChoice, MemoryRegion, Piece,
        ProtectionDomain, QueuePair, QueuePairConfig, RemoteMemory, RemoteWindow, Segment, Settled,
        UnconnectedQueuePair, VerbsError, Work,
    },
};

use super::{BLOCK, DEPTH, FILE_BYTES};
use crate::BenchError;

/// Slots: for the reads under way, and for the writes.
const SLOTS: usize = 2 * DEPTH as usize;
/// Turns without anything done before the processor is offered to others, as soft-RoCE needs it.
const SPINS: u32 = 64;

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
    let link = Link::new(options, &slab).map_err(unavailable)?;
    let window = Arc::clone(&link.window);
    let blocks = options.bytes / BLOCK as u64;
    let free: Vec<Lease> = std::iter::from_fn(|| slab.try_lease()).collect();

    let (seconds, sent) = block_on(shard.with_reads(Arc::new(file), DEPTH, move |reads| {
        Pump {
            reads,
            free,
            link,
            blocks,
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
    remote: RemoteMemory,
    window: Arc<RemoteWindow>,
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
        let queue = CompletionQueue::new(&context, SLOTS as u32 + 2)?;
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
            remote: window.remote(),
            window: Arc::new(window),
            _peer: (
                peer.connect(&at_ours, &connect)
                    .map_err(|failed| failed.error)?,
                peer_queue,
            ),
        })
    }
}

/// The work of the shard's task.
struct Pump {
    reads: Reads,
    free: Vec<Lease>,
    link: Link,
    blocks: u64,
    /// What was sent last from each slot, by its place in the file.
    sent: Vec<Option<u64>>,
}

impl Pump {
    /// Returns the seconds it took, and what was sent last from each slot.
    async fn run(mut self) -> Result<(f64, Vec<Option<u64>>), BenchError> {
        let start = Instant::now();
        let (mut begun, mut written, mut idle) = (0, 0, 0u32);
        while written < self.blocks {
            begun += self.read_on(begun)?;
            let sent = self.send_on()?;
            let done = self.take_back()?;
            written += done;
            if sent + done > 0 {
                idle = 0;
            } else {
                idle += 1;
                if idle.is_multiple_of(SPINS) {
                    std::thread::yield_now();
                }
            }
            self.turn().await;
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
    fn send_on(&mut self) -> Result<u64, BenchError> {
        let mut count = 0;
        let mut batch = self.link.pair.batch();
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
            let target = self.link.remote.at((slot * BLOCK) as u64, BLOCK as u64);
            let target = target.expect("the window has a place for each slot");
            self.sent[slot] = Some(offset);
            let segments = [Segment::new(0, BLOCK as u32)];
            batch
                .push(lease, &[Work::write(target, &segments).signaled()])
                .map_err(|rejected| BenchError::Unavailable(rejected.to_string()))?;
            count += 1;
        }
        if count > 0 {
            batch
                .commit()
                .map_err(|error| BenchError::Unavailable(error.to_string()))?;
        }
        Ok(count)
    }

    /// Takes the slots of completed writes back.
    fn take_back(&mut self) -> Result<u64, BenchError> {
        let before = self.free.len();
        while let Some(done) = self.link.queue.poll().map_err(unavailable)? {
            if let Settled::Sent(sent) = self.link.pair.settle(done) {
                (*sent.outcome()).map_err(unavailable)?;
                self.free.extend(sent);
            }
        }
        Ok((self.free.len() - before) as u64)
    }

    /// Lets the ring have its turn: asleep if only the disk has something to do, else at once.
    async fn turn(&mut self) {
        let adapter_idle = self.link.pair.outstanding().0 == 0;
        let mut turned = false;
        poll_fn(|context| {
            if turned {
                return Poll::Ready(());
            }
            turned = true;
            if self.reads.poll_ended(context).is_ready() {
                return Poll::Ready(());
            }
            if !adapter_idle {
                context.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
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
