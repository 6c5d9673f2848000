//! Posts and polls on the null provider, for counting instructions: our loop, and the one in `loop.c`.
//!
//! `instructions LIBRARY ROUNDS BATCH` runs so many rounds of either loop: 64 requests are posted in
//! batches, then polled. What is counted, and how, says the benchmark that runs this under callgrind.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use trackbed_rdma::mock::null;
use trackbed_rdma::verbs::{
    Access, CompletionQueue, ConnectOptions, GidChoice, Mapping, MemoryRegion, Piece,
    ProtectionDomain, QueuePair, QueuePairConfig, RemoteAddress, Segment, Settled,
    UnconnectedQueuePair, Work,
};

type Error = Box<dyn std::error::Error>;

const DEPTH: u32 = 128;
const REQUESTS: u32 = 64;
const BYTES: u32 = 64;
const BUFFER: usize = 4096;
const REMOTE: RemoteAddress = RemoteAddress {
    address: 0x10_0000,
    rkey: 7,
};

/// What is posted: like the C loop's `struct buffer *`, one pointer to what describes the buffer.
type Payload = Box<Piece>;

struct Ours {
    queue_pair: QueuePair<Payload, ()>,
    queue: CompletionQueue,
    free: Vec<Payload>,
    remote: RemoteAddress,
}

impl Ours {
    fn new() -> Result<Ours, Error> {
        let context = null::open()?;
        let pd = ProtectionDomain::new(&context)?;
        let queue = CompletionQueue::new(&context, 1024)?;
        let (mapping, free) = Mapping::split(BUFFER, DEPTH as usize)?;
        let region = MemoryRegion::register(&pd, mapping, Access::LocalRead)?;
        let port = context.local_port(None, &GidChoice::Automatic)?;
        let config = QueuePairConfig {
            send_depth: DEPTH,
            ..QueuePairConfig::default()
        };
        let mut made: UnconnectedQueuePair<Payload, ()> =
            UnconnectedQueuePair::new(&pd, &queue, port, &config)?;
        made.attach(&region)?;
        let peer = made.endpoint();
        let queue_pair = made
            .connect(&peer, &ConnectOptions::default())
            .map_err(|failed| failed.error)?;
        Ok(Ours {
            queue_pair,
            queue,
            free: free.into_iter().map(Box::new).collect(),
            remote: REMOTE,
        })
    }
}

/// Posts batches of writes until `count` are posted; whether all were.
#[inline(never)]
#[unsafe(no_mangle)]
fn ours_post(ours: &mut Ours, count: u32, batch: u32, len: u32, signaled: bool) -> bool {
    let mut left = count;
    while left > 0 {
        let now = left.min(batch);
        let mut posting = ours.queue_pair.batch();
        for _ in 0..now {
            let Some(payload) = ours.free.pop() else {
                return false;
            };
            let segments = [Segment::new(0, len)];
            let work = Work::write(ours.remote, &segments);
            let work = if signaled { work.signaled() } else { work };
            if let Err(rejected) = posting.push(payload, &[work]) {
                ours.free.push(rejected.payload);
                return false;
            }
        }
        if let Err(error) = posting.commit() {
            ours.free.extend(error.payloads);
            return false;
        }
        left -= now;
    }
    true
}

/// Polls until there is nothing; how many buffers came back, or `None` after a failure.
#[inline(never)]
#[unsafe(no_mangle)]
fn ours_poll(ours: &mut Ours) -> Option<u32> {
    let mut buffers = 0;
    while let Some(done) = ours.queue.poll().ok()? {
        let Settled::Sent(sent) = ours.queue_pair.settle(done) else {
            return None;
        };
        if sent.outcome().is_err() {
            return None;
        }
        for payload in sent {
            ours.free.push(payload);
            buffers += 1;
        }
    }
    Some(buffers)
}

type NewSender = unsafe extern "C" fn(
    *mut c_void,
    *mut c_void,
    u32,
    *mut c_char,
    u32,
    u32,
    u64,
    u32,
) -> *mut c_void;
type Post = unsafe extern "C" fn(*mut c_void, u32, u32, u32, c_uint) -> c_int;
type Poll = unsafe extern "C" fn(*mut c_void) -> c_int;

fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().collect();
    let [_, library, rounds, batch] = words.as_slice() else {
        return Err("usage: instructions LIBRARY ROUNDS BATCH".into());
    };
    let (rounds, batch): (u32, u32) = (rounds.parse()?, batch.parse()?);
    let mut ours = Ours::new()?;
    let foreign = null::ForeignQueuePair::new(DEPTH);
    let (memory, _pieces) = Mapping::split(BUFFER, DEPTH as usize)?;
    let memory: Arc<dyn trackbed_rdma::verbs::Pinned> = memory;
    // SAFETY: the library is `loop.c`'s, whose functions have these signatures; it uses the queue pair
    // and the memory while both live, from this thread.
    unsafe {
        let library = libloading::Library::new(library)?;
        let new: NewSender = *library.get("c_sender")?;
        let post: Post = *library.get("c_post")?;
        let poll: Poll = *library.get("c_poll")?;
        let sender = new(
            foreign.queue_pair(),
            foreign.queue(),
            DEPTH,
            memory.as_ptr().cast(),
            BUFFER as u32,
            1,
            REMOTE.address,
            REMOTE.rkey,
        );
        for _ in 0..rounds {
            // All of them signalled, so that there is one completion for each.
            let signaled = 2;
            if post(sender, REQUESTS, batch, BYTES, signaled) != 0
                || poll(sender) != REQUESTS as c_int
            {
                return Err("the loop in C failed".into());
            }
        }
    }
    for _ in 0..rounds {
        if !ours_post(&mut ours, REQUESTS, batch, BYTES, true)
            || ours_poll(&mut ours) != Some(REQUESTS)
        {
            return Err("our loop failed".into());
        }
    }
    Ok(())
}
