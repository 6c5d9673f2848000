//! Two fabrics in one process, a source that makes chunks up, and a wire that can do harm.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod bulk;
pub(crate) mod verbs_cases;

use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futures::future::join_all;
use trackbed_rdma::fabric::{
    ChunkRequest, ChunkSource, Fabric, FabricConfig, FabricError, Payload, PeerLink, Refusal,
    TRAILER_BYTES, Wait, chunk_capacity, trailer_at,
};
use trackbed_rdma::shard::{Shard, ShardConfig};
use trackbed_rdma::slab::{PAGE_BYTES, Slab};
use trackbed_rdma::verbs::Context;

/// Data bytes of a slot in these tests.
pub(crate) const CAPACITY: usize = 64 * PAGE_BYTES;

/// Chunks from this number on are refused: the number less this is the refusal.
pub(crate) const REFUSED: u32 = 1_000_000;
/// With these, one after the other.
pub(crate) const REFUSALS: [Refusal; 6] = [
    Refusal::NotHere,
    Refusal::UnknownVersion,
    Refusal::Busy,
    Refusal::Failed,
    Refusal::Malformed,
    Refusal::AskInstead(0xfedc_ba98),
];
/// Serving this chunk panics.
pub(crate) const PANICS: u32 = 2_000_000;
/// Serving this chunk or a later one waits for [`Source::gate`].
pub(crate) const GATED: u32 = 3_000_000;
/// This chunk or a later one is not worth serving before [`Source::gate`] lets it through.
pub(crate) const EARLY: u32 = 4_000_000;

/// A chunk's length: 0 and the capacity are among the first.
pub(crate) fn length_of(chunk: u32) -> usize {
    match chunk {
        0 => 0,
        1 => CAPACITY,
        _ => (chunk as usize).wrapping_mul(7919) % CAPACITY,
    }
}

/// Fills with what only that chunk of that version has.
pub(crate) fn fill(request: &ChunkRequest, part: u64, bytes: &mut [u8]) {
    let seed = (u64::from(request.version[0]) << 40) ^ (u64::from(request.chunk) << 8) ^ part;
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for piece in bytes.chunks_mut(8) {
        word = word
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(seed | 1);
        piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
    }
}

/// Whether a payload is that chunk, byte for byte.
pub(crate) fn is_right(request: &ChunkRequest, payload: &Payload) -> bool {
    let mut data = vec![0; length_of(request.chunk)];
    fill(request, 0, &mut data);
    let mut trailer = vec![0; TRAILER_BYTES];
    fill(request, 1, &mut trailer);
    payload.data() == data && payload.trailer() == trailer
}

/// A request for a chunk of the one version these tests have.
pub(crate) fn chunk(chunk: u32) -> ChunkRequest {
    ChunkRequest {
        version: [7; 32],
        chunk,
        flags: 0,
    }
}

/// Makes chunks up.
pub(crate) struct Source {
    slab: Arc<Slab>,
    pub(crate) gate: (async_channel::Sender<()>, async_channel::Receiver<()>),
    pub(crate) serving: Arc<AtomicUsize>,
    pub(crate) most_serving: Arc<AtomicUsize>,
    /// Payloads that were delivered, and that never will be.
    pub(crate) ended: [AtomicUsize; 2],
}

impl Source {
    pub(crate) fn new(slab: Arc<Slab>) -> Arc<Source> {
        Arc::new(Source {
            slab,
            gate: async_channel::unbounded(),
            serving: Arc::default(),
            most_serving: Arc::default(),
            ended: Default::default(),
        })
    }
}

impl ChunkSource for Source {
    fn before(&self, _peer: &str, request: ChunkRequest) -> Option<Wait> {
        (request.chunk >= EARLY).then(|| {
            let gate = self.gate.1.clone();
            Box::pin(async move {
                let _ = gate.recv().await;
            }) as Wait
        })
    }

    fn serve(
        &self,
        _peer: &str,
        request: ChunkRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Payload, Refusal>> + Send>> {
        let slab = Arc::clone(&self.slab);
        let gate = self.gate.1.clone();
        let (serving, most) = (Arc::clone(&self.serving), Arc::clone(&self.most_serving));
        Box::pin(async move {
            match request.chunk {
                PANICS => panic!("on purpose"),
                chunk if (GATED..EARLY).contains(&chunk) => {
                    let _ = gate.recv().await;
                }
                chunk if (REFUSED..GATED).contains(&chunk) => {
                    return Err(REFUSALS[(chunk - REFUSED) as usize % REFUSALS.len()]);
                }
                _ => {}
            }
            let now = serving.fetch_add(1, Ordering::Relaxed) + 1;
            most.fetch_max(now, Ordering::Relaxed);
            let mut lease = slab.lease().await;
            let len = length_of(request.chunk);
            fill(&request, 0, &mut lease[..len]);
            let at = trailer_at(lease.slab());
            fill(&request, 1, &mut lease[at..at + TRAILER_BYTES]);
            serving.fetch_sub(1, Ordering::Relaxed);
            Ok(Payload {
                lease,
                len: len as u32,
            })
        })
    }

    fn ended(&self, _peer: &str, _request: ChunkRequest, delivered: bool) {
        self.ended[usize::from(!delivered)].fetch_add(1, Ordering::Relaxed);
    }
}

/// A node: shard, source and fabric.
pub(crate) struct Node {
    pub(crate) shard: Shard,
    pub(crate) source: Arc<Source>,
    pub(crate) fabric: Fabric,
}

impl Node {
    pub(crate) fn new(name: &str, slots: usize, config: FabricConfig) -> Node {
        Self::with(name, slots, |shard, source| {
            Fabric::new(config, shard, source)
        })
    }

    /// A node over verbs, on that device.
    pub(crate) fn on_device(
        name: &str,
        slots: usize,
        context: &Arc<Context>,
        config: FabricConfig,
    ) -> Node {
        let context = Arc::clone(context);
        Self::with(name, slots, |shard, source| {
            Fabric::on_device(context, config, shard, source)
        })
    }

    pub(crate) fn with(
        name: &str,
        slots: usize,
        make: impl FnOnce(Shard, Arc<Source>) -> Result<Fabric, FabricError>,
    ) -> Node {
        let slab = Slab::new(name, CAPACITY + PAGE_BYTES, slots).expect("slab");
        assert_eq!(chunk_capacity(&slab), CAPACITY);
        let shard = Shard::start(ShardConfig::new(name, Arc::clone(&slab))).expect("shard");
        let source = Source::new(slab);
        let fabric = make(shard.clone(), source.clone()).unwrap_or_else(|error| panic!("{error}"));
        Node {
            shard,
            source,
            fabric,
        }
    }

    /// A link on which this node asks the other.
    pub(crate) async fn link_to(&self, server: &Node) -> Result<PeerLink, FabricError> {
        let pending = self.fabric.offer("server").await?;
        let answer = server
            .fabric
            .accept("client", pending.offer_bytes())
            .await?;
        self.fabric.complete(pending, &answer).await
    }
}

/// Fetches all of these at once and checks every byte.
pub(crate) async fn fetch_all(link: &PeerLink, chunks: impl Iterator<Item = u32>) {
    join_all(chunks.map(|number| async move {
        let payload = link
            .fetch(chunk(number))
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(is_right(&chunk(number), &payload), "chunk {number} differs");
    }))
    .await;
}

/// Two nodes on loopback.
pub(crate) fn pair() -> (Node, Node) {
    (
        Node::new("client", 1, loopback()),
        Node::new("server", 16, loopback()),
    )
}

/// A configuration for loopback.
pub(crate) fn loopback() -> FabricConfig {
    FabricConfig::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

/// As [`loopback`], but peers are told to connect to where a [`Wire`] is.
pub(crate) fn behind_a_wire() -> FabricConfig {
    FabricConfig {
        advertise: Some(IpAddr::V4(WIRE)),
        ..loopback()
    }
}

const WIRE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// What a wire does to the bytes from the server to the client.
#[derive(Clone, Copy)]
pub(crate) enum Harm {
    None,
    /// Alters the byte at that position of the stream.
    Flip(u64),
    /// Closes both ends after that many bytes.
    Cut(u64),
    /// Forwards nothing more after that many bytes, and keeps the connection, until mended.
    Stall(u64),
    /// As [`Harm::Stall`], but on the first connection only.
    StallFirst(u64),
    /// About once in that many bytes, of all connections: alters a byte, waits a little or closes.
    Weather(u64),
}

/// What the weather has done so far.
#[derive(Default)]
pub(crate) struct Weather {
    next: AtomicU64,
    dice: AtomicU64,
    pub(crate) flips: AtomicU64,
    pub(crate) pauses: AtomicU64,
    pub(crate) cuts: AtomicU64,
}

impl Weather {
    fn roll(&self) -> u64 {
        let last = self.dice.load(Ordering::Relaxed);
        let next = roll(last);
        self.dice.store(next, Ordering::Relaxed);
        next
    }

    /// Whether the connection goes on after these bytes, which are those after `forwarded` others.
    fn strike(&self, every: u64, forwarded: u64, bytes: &mut [u8]) -> bool {
        if forwarded < self.next.load(Ordering::Relaxed) {
            return true;
        }
        let wait = every / 2 + self.roll() % every;
        self.next.store(forwarded + wait, Ordering::Relaxed);
        match self.roll() % 3 {
            0 => {
                let at = self.roll() as usize % bytes.len();
                bytes[at] ^= 1 << (self.roll() % 8);
                self.flips.fetch_add(1, Ordering::Relaxed);
            }
            1 => {
                thread::sleep(Duration::from_millis(5 + self.roll() % 30));
                self.pauses.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                self.cuts.fetch_add(1, Ordering::Relaxed);
                return false;
            }
        }
        true
    }
}

/// The next of a sequence of numbers that looks random, and is the same in every run.
pub(crate) fn roll(last: u64) -> u64 {
    let mut word = last.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^ (word >> 27)
}

/// A proxy before a node's data port.
pub(crate) struct Wire {
    harm: Arc<Mutex<Harm>>,
    pub(crate) forwarded: Arc<AtomicU64>,
    pub(crate) weather: Arc<Weather>,
}

impl Wire {
    /// Stands between clients and that data port, which must be [`behind_a_wire`].
    pub(crate) fn before(fabric: &Fabric, harm: Harm) -> Wire {
        let port = fabric.data_address().expect("tcp").port();
        let listener = TcpListener::bind((WIRE, port)).expect("the wire listens");
        let harm = Arc::new(Mutex::new(harm));
        let forwarded = Arc::new(AtomicU64::new(0));
        let weather = Arc::new(Weather::default());
        let wire = Wire {
            harm: Arc::clone(&harm),
            forwarded: Arc::clone(&forwarded),
            weather: Arc::clone(&weather),
        };
        thread::spawn(move || {
            let mut first = true;
            while let Ok((client, _)) = listener.accept() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
                    continue;
                };
                let (mut from, mut to) = (
                    client.try_clone().expect("clone"),
                    server.try_clone().expect("clone"),
                );
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let (harm, forwarded) = (Arc::clone(&harm), Arc::clone(&forwarded));
                let weather = Arc::clone(&weather);
                let is_first = std::mem::take(&mut first);
                thread::spawn(move || {
                    forward(server, client, &harm, &forwarded, &weather, is_first);
                });
            }
        });
        wire
    }

    pub(crate) fn set(&self, harm: Harm) {
        *self.harm.lock().expect("not poisoned") = harm;
    }
}

fn forward(
    mut from: TcpStream,
    mut to: TcpStream,
    harm: &Mutex<Harm>,
    forwarded: &AtomicU64,
    weather: &Weather,
    is_first: bool,
) {
    let mut buffer = vec![0; 64 << 10];
    let mut position = 0u64;
    'reading: while let Ok(count @ 1..) = from.read(&mut buffer) {
        let end = position + count as u64;
        if let Harm::Weather(every) = *harm.lock().expect("not poisoned")
            && !weather.strike(
                every,
                forwarded.load(Ordering::Relaxed),
                &mut buffer[..count],
            )
        {
            break;
        }
        let mut written = 0;
        while written < count {
            let harm = *harm.lock().expect("not poisoned");
            let mut limit = count;
            match harm {
                Harm::Flip(at) if (position..end).contains(&at) => {
                    buffer[(at - position) as usize] ^= 0x10;
                }
                Harm::Cut(at) | Harm::Stall(at) if at < end => {
                    limit = at.saturating_sub(position) as usize;
                }
                Harm::StallFirst(at) if at < end && is_first => {
                    limit = at.saturating_sub(position) as usize;
                }
                _ => {}
            }
            if written < limit {
                if to.write_all(&buffer[written..limit]).is_err() {
                    break 'reading;
                }
                forwarded.fetch_add((limit - written) as u64, Ordering::Relaxed);
                written = limit;
            } else if matches!(harm, Harm::Cut(_)) {
                break 'reading;
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
        position = end;
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Waits for what another thread is about to do.
pub(crate) fn wait_until(condition: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < patience, "it never came about");
        thread::sleep(Duration::from_millis(2));
    }
}
