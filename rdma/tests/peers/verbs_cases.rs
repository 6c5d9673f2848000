//! What users of the fabric over verbs get, on whatever two devices: the mock provider's, or real.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::join_all;
use trackbed_rdma::fabric::{FabricConfig, FetchError, PeerLink, Refusal, TRAILER_BYTES};
use trackbed_rdma::slab::PAGE_BYTES;
use trackbed_rdma::verbs::{
    Access, CompletionQueue, ConnectOptions, Context, Endpoint, GidChoice, Mapping, MemoryRegion,
    Piece, ProtectionDomain, QueuePair, QueuePairConfig, RemoteAddress, Segment, Settled,
    UnconnectedQueuePair, Work,
};

use super::{
    CAPACITY, GATED, Node, PANICS, REFUSALS, REFUSED, chunk, fetch_all, is_right, length_of,
    wait_until,
};

/// Two devices that reach each other; the same twice will do.
pub(crate) struct Devices {
    pub(crate) client: Arc<Context>,
    pub(crate) server: Arc<Context>,
}

fn config() -> FabricConfig {
    FabricConfig::verbs(None)
}

impl Devices {
    fn client(&self, config: FabricConfig) -> Node {
        Node::on_device("client", 1, &self.client, config)
    }

    fn server(&self, config: FabricConfig) -> Node {
        Node::on_device("server", 16, &self.server, config)
    }

    fn pair(&self) -> (Node, Node) {
        (self.client(config()), self.server(config()))
    }
}

pub(crate) fn chunks_arrive_as_they_are_however_many_are_asked_for_at_once(devices: &Devices) {
    let (client, server) = devices.pair();
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let counts = [1u32, 31, 33, 200];
        for count in counts {
            fetch_all(&link, 0..count).await;
        }
        let asked: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        let bytes: usize = counts
            .iter()
            .flat_map(|&count| 0..count)
            .map(|number| length_of(number) + TRAILER_BYTES)
            .sum();
        wait_until(|| server.fabric.counters().payloads_sent == asked);
        let (ours, theirs) = (client.fabric.counters(), server.fabric.counters());
        assert_eq!(ours.payloads_received, asked);
        assert_eq!(ours.payload_bytes_received, bytes as u64);
        assert_eq!(theirs.payload_bytes_sent, bytes as u64);
        assert!(
            ours.request_frames_sent < asked,
            "requests issued together travel together"
        );
        // What the verbs path itself counts agrees: a write with immediate an answer, one more for
        // data, and behind each trailer a reply of 32 bytes.
        assert!(ours.verbs_immediates_received >= asked);
        assert!(ours.verbs_sends_completed >= ours.request_frames_sent - 8);
        assert!(theirs.verbs_writes_posted >= 2 * asked - counts.len() as u64);
        assert_eq!(
            theirs.verbs_write_bytes_completed,
            bytes as u64 + 32 * asked
        );
        assert_eq!((theirs.intrusions, theirs.verbs_work_failed), (0, 0));
    });
}

pub(crate) fn both_directions_and_several_links_work_at_once(devices: &Devices) {
    let (left, right) = (devices.server(config()), devices.client(config()));
    block_on(async {
        let links = [
            right.link_to(&left).await.unwrap(),
            left.link_to(&right).await.unwrap(),
            right.link_to(&left).await.unwrap(),
        ];
        join_all(links.iter().map(|link| fetch_all(link, 0..40))).await;
    });
}

pub(crate) fn every_refusal_arrives_as_what_it_is_and_the_link_goes_on(devices: &Devices) {
    let (client, server) = devices.pair();
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        for (number, kind) in REFUSALS.into_iter().enumerate() {
            let error = link
                .fetch(chunk(REFUSED + number as u32))
                .await
                .unwrap_err();
            assert_eq!(error, FetchError::Refused(kind));
        }
        let error = link.fetch(chunk(PANICS)).await.unwrap_err();
        assert_eq!(error, FetchError::Refused(Refusal::Failed));
        fetch_all(&link, 0..3).await;
        let [delivered, lost] = &server.source.ended;
        wait_until(|| delivered.load(Ordering::Relaxed) == 3);
        assert_eq!(lost.load(Ordering::Relaxed), 0);
    });
}

pub(crate) fn a_slow_peer_that_says_it_is_at_work_is_waited_for(devices: &Devices) {
    let deadline = Duration::from_millis(1000);
    let client = devices.client(FabricConfig {
        deadline,
        ..config()
    });
    let server = devices.server(config());
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let opener = server.source.gate.0.clone();
        let slow = std::thread::spawn(move || {
            std::thread::sleep(deadline * 3);
            opener.try_send(()).unwrap();
        });
        let payload = link.fetch(chunk(GATED)).await.unwrap();
        assert!(is_right(&chunk(GATED), &payload));
        slow.join().unwrap();
    });
}

pub(crate) fn a_peer_that_is_gone_is_gone_for_all_who_wait_and_can_be_met_again(devices: &Devices) {
    let client = devices.client(FabricConfig {
        deadline: Duration::from_secs(8),
        ..config()
    });
    let server = devices.server(config());
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let mut waiting: Vec<_> = (0..40)
            .map(|number| Box::pin(link.fetch(chunk(GATED + number))))
            .collect();
        for fetch in &mut waiting {
            assert!(fetch.as_mut().now_or_never().is_none());
        }
        wait_until(|| server.fabric.counters().requests_received > 0);
        drop(server);
        for fetch in waiting {
            let error = fetch.await.unwrap_err();
            assert!(matches!(error, FetchError::Gone { .. }), "{error}");
        }
        assert!(!link.is_alive());
        let server = devices.server(config());
        fetch_all(&client.link_to(&server).await.unwrap(), 0..20).await;
    });
}

pub(crate) fn a_requester_that_is_gone_is_noticed(devices: &Devices) {
    let client = devices.client(config());
    let server = devices.server(FabricConfig {
        deadline: Duration::from_secs(1),
        ..config()
    });
    let link = block_on(client.link_to(&server)).unwrap();
    block_on(fetch_all(&link, 0..5));
    drop(link);
    wait_until(|| server.fabric.counters().peers_ended == 1);
}

pub(crate) fn a_dropped_fetch_does_not_disturb_those_after_it(devices: &Devices) {
    let client = devices.client(FabricConfig {
        arena_slots: 2,
        ..config()
    });
    let server = devices.server(config());
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let mut fetch = Box::pin(link.fetch(chunk(GATED)));
        assert!(fetch.as_mut().now_or_never().is_none());
        wait_until(|| server.fabric.counters().requests_received == 1);
        drop(fetch);
        fetch_all(&link, 0..10).await;
        server.source.gate.0.try_send(()).unwrap();
        fetch_all(&link, 0..30).await;
        // And many that are dropped anywhere on their way.
        for round in 0..20u32 {
            let mut fetch = Box::pin(link.fetch(chunk(1)));
            // On a busy machine it may be there already.
            let _ = fetch.as_mut().now_or_never();
            std::thread::sleep(Duration::from_micros(u64::from(round) * 100));
            drop(fetch);
            fetch_all(&link, 0..2).await;
        }
    });
}

pub(crate) fn payloads_that_are_kept_outlive_the_link(devices: &Devices) {
    let (client, server) = devices.pair();
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let kept = join_all((5..8).map(|number| link.fetch(chunk(number)))).await;
        drop(link);
        wait_until(|| client.fabric.counters().links_ended == 1);
        for (number, payload) in (5..8).zip(kept) {
            assert!(is_right(&chunk(number), &payload.unwrap()));
        }
    });
}

// What follows speaks to a fabric over a bare queue pair, as the modules' layout tables say.

type BareQueuePair = QueuePair<Piece, Piece>;

/// A queue pair of our own, to a fabric's.
struct Bare {
    // Dropped in this order.
    queue_pair: BareQueuePair,
    queue: CompletionQueue,
    pieces: Vec<Piece>,
}

const PIECE_BYTES: usize = 4096;

/// A queue pair with receives posted, to be connected.
fn unconnected(
    context: &Arc<Context>,
) -> (
    UnconnectedQueuePair<Piece, Piece>,
    CompletionQueue,
    Vec<Piece>,
) {
    let port = context.local_port(None, &GidChoice::Automatic).unwrap();
    let pd = ProtectionDomain::new(context).unwrap();
    let (mapping, mut pieces) = Mapping::split(PIECE_BYTES, 40).unwrap();
    let region = MemoryRegion::register(&pd, mapping, Access::LocalWrite).unwrap();
    let queue = CompletionQueue::new(context, 128).unwrap();
    let config = QueuePairConfig {
        send_depth: 32,
        receive_depth: 32,
        remote_writes: true,
        ..QueuePairConfig::default()
    };
    let mut queue_pair = UnconnectedQueuePair::new(&pd, &queue, port, &config).unwrap();
    queue_pair.attach(&region).unwrap();
    for _ in 0..24 {
        let piece = pieces.pop().unwrap();
        queue_pair
            .post_receive(piece, &[Segment::new(0, PIECE_BYTES as u32)])
            .unwrap();
    }
    (queue_pair, queue, pieces)
}

/// Puts our queue pair's address in place of a fabric's.
fn forge(greeting: &[u8], endpoint: &Endpoint) -> Vec<u8> {
    let mut forged = greeting.to_vec();
    forged[24..56].copy_from_slice(&endpoint.encode());
    let crc = crc32c::crc32c(&forged[..88]);
    forged[88..].copy_from_slice(&crc.to_le_bytes());
    forged
}

fn endpoint_of(greeting: &[u8]) -> Endpoint {
    Endpoint::decode(&greeting[24..56]).unwrap()
}

impl Bare {
    /// A requester that the server's fabric serves.
    fn requester(devices: &Devices, client: &Node, server: &Node) -> Bare {
        let (queue_pair, queue, pieces) = unconnected(&devices.client);
        let answer = block_on(async {
            let pending = client.fabric.offer("server").await.unwrap();
            let offer = forge(pending.offer_bytes(), &queue_pair.endpoint());
            server.fabric.accept("client", &offer).await.unwrap()
        });
        let queue_pair = queue_pair
            .connect(&endpoint_of(&answer), &ConnectOptions::default())
            .unwrap();
        Bare {
            queue_pair,
            queue,
            pieces,
        }
    }

    /// A server that the client's fabric asks, and the link on which it does.
    fn server(devices: &Devices, client: &Node, server: &Node) -> (Bare, PeerLink) {
        let (queue_pair, queue, pieces) = unconnected(&devices.server);
        block_on(async {
            let pending = client.fabric.offer("server").await.unwrap();
            let theirs = endpoint_of(pending.offer_bytes());
            // An answer of a real server, for all but the address.
            let answer = server
                .fabric
                .accept("client", pending.offer_bytes())
                .await
                .unwrap();
            let answer = forge(&answer, &queue_pair.endpoint());
            let queue_pair = queue_pair
                .connect(&theirs, &ConnectOptions::default())
                .unwrap();
            let link = client.fabric.complete(pending, &answer).await.unwrap();
            (
                Bare {
                    queue_pair,
                    queue,
                    pieces,
                },
                link,
            )
        })
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut piece = self.pieces.pop().unwrap();
        piece[..bytes.len()].copy_from_slice(bytes);
        let mut batch = self.queue_pair.batch();
        let segments = [Segment::new(0, bytes.len() as u32)];
        batch
            .push(piece, &[Work::send(&segments).signaled()])
            .unwrap();
        batch.commit().unwrap();
    }

    fn write(&mut self, to: RemoteAddress, immediate: u32, bytes: &[u8]) {
        let mut piece = self.pieces.pop().unwrap();
        piece[..bytes.len()].copy_from_slice(bytes);
        let segments = [Segment::new(0, bytes.len() as u32)];
        let segments = if bytes.is_empty() {
            &segments[..0]
        } else {
            &segments[..]
        };
        let mut batch = self.queue_pair.batch();
        let work = Work::write_with_immediate(to, immediate, segments).signaled();
        batch.push(piece, &[work]).unwrap();
        batch.commit().unwrap();
    }

    /// The next message that arrives.
    fn receive(&mut self) -> Vec<u8> {
        let patience = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            assert!(std::time::Instant::now() < patience, "no message came");
            let Some(done) = self.queue.poll().unwrap() else {
                std::thread::yield_now();
                continue;
            };
            if let Settled::Received(received) = self.queue_pair.settle(done) {
                let bytes = received.outcome.unwrap().bytes as usize;
                return received.payload[..bytes].to_vec();
            }
        }
    }
}

fn header(kind: u8, count: u16, body: &[u8], payload: u32, slot: u16, tag: u32) -> Vec<u8> {
    let mut header = vec![0; 32];
    header[..4].copy_from_slice(b"TBF1");
    header[4] = 1;
    header[5] = kind;
    header[6..8].copy_from_slice(&count.to_le_bytes());
    header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[12..16].copy_from_slice(&payload.to_le_bytes());
    header[16..18].copy_from_slice(&slot.to_le_bytes());
    header[20..24].copy_from_slice(&tag.to_le_bytes());
    header[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    let crc = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn requests(entries: &[Vec<u8>]) -> Vec<u8> {
    let body = entries.concat();
    [header(2, entries.len() as u16, &body, 0, 0, 0), body].concat()
}

fn entry(slot: u16, number: u32, to: RemoteAddress) -> Vec<u8> {
    let mut entry = vec![7; 32];
    entry.extend(number.to_le_bytes());
    entry.extend(slot.to_le_bytes());
    entry.extend([0; 2]);
    entry.extend(to.address.to_le_bytes());
    entry.extend(to.rkey.to_le_bytes());
    entry.extend([0; 4]);
    entry
}

const NOWHERE: RemoteAddress = RemoteAddress {
    address: 0x1000,
    rkey: 0xdead,
};

pub(crate) fn a_requester_that_breaks_the_protocol_loses_its_link_and_nobody_else_does(
    devices: &Devices,
) {
    let (client, server) = devices.pair();
    let link = block_on(client.link_to(&server)).unwrap();
    let slots = 16;
    let mut flipped = requests(&[entry(0, GATED, NOWHERE)]);
    flipped[40] ^= 1;
    let breaches = [
        b"no frame".to_vec(),
        vec![0xff; PIECE_BYTES],
        flipped,
        requests(&[entry(slots, GATED, NOWHERE)]),
        requests(&[entry(3, GATED, NOWHERE), entry(3, GATED, NOWHERE)]),
        requests(&[entry(3, GATED, NOWHERE)])[..60].to_vec(),
        header(3, 0, &[], 0, 0, 0),
    ];
    for (number, breach) in breaches.iter().enumerate() {
        let mut bare = Bare::requester(devices, &client, &server);
        bare.send(breach);
        wait_until(|| server.fabric.counters().intrusions == number as u64 + 1);
        wait_until(|| server.fabric.counters().peers_ended == number as u64 + 1);
    }
    block_on(fetch_all(&link, 0..10));
}

pub(crate) fn a_requester_with_a_wrong_key_harms_only_itself(devices: &Devices) {
    let (client, server) = devices.pair();
    let link = block_on(client.link_to(&server)).unwrap();
    let mut bare = Bare::requester(devices, &client, &server);
    bare.send(&requests(&[entry(0, 5, NOWHERE)]));
    wait_until(|| server.fabric.counters().peers_ended == 1);
    assert!(server.fabric.counters().verbs_work_failed > 0);
    block_on(fetch_all(&link, 0..10));
    // Nothing of the server's memory was lost to it.
    wait_until(|| server.shard.slab().free_slots() == server.shard.slab().slots());
}

pub(crate) fn a_server_that_breaks_the_protocol_loses_its_link(devices: &Devices) {
    let (client, server) = devices.pair();
    let trailer = CAPACITY as u64;
    type Breach = fn(&mut Bare, RemoteAddress, u16, u32);
    let breaches: [(&str, Breach); 7] = [
        ("a slot that was not asked for", |bare, to, _, _| {
            bare.write(to, 9 << 16, b"x")
        }),
        ("a slot that does not exist", |bare, to, _, _| {
            bare.write(to, 0xffff << 16, b"x")
        }),
        ("another tag", |bare, to, slot, tag| {
            bare.write(to, u32::from(slot) << 16 | (tag as u8 ^ 1) as u32, b"x");
        }),
        ("an unknown status", |bare, to, slot, tag| {
            bare.write(
                to,
                u32::from(slot) << 16 | 77 << 8 | (tag as u8) as u32,
                b"x",
            );
        }),
        ("no reply frame", |bare, to, slot, tag| {
            bare.write(to, u32::from(slot) << 16 | (tag as u8) as u32, b"x");
        }),
        ("a message", |bare, _, _, _| bare.send(b"")),
        ("too long a payload", |bare, to, slot, tag| {
            let reply = header(3, 0, &[], CAPACITY as u32 + 1, slot, tag);
            let to = to.offset(CAPACITY as u64 + TRAILER_BYTES as u64);
            bare.write(to, u32::from(slot) << 16 | (tag as u8) as u32, &reply);
        }),
    ];
    assert_eq!(trailer as usize % PAGE_BYTES, 0);
    for (what, breach) in breaches {
        let (mut bare, link) = Bare::server(devices, &client, &server);
        let mut fetch = Box::pin(link.fetch(chunk(5)));
        assert!(fetch.as_mut().now_or_never().is_none());
        let frame = bare.receive();
        let word = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap());
        let slot = u16::from_le_bytes(frame[68..70].try_into().unwrap());
        let address = u64::from_le_bytes(frame[72..80].try_into().unwrap());
        let to = RemoteAddress {
            address,
            rkey: word(80),
        };
        breach(&mut bare, to, slot, word(84));
        let error = block_on(fetch).unwrap_err();
        assert!(
            matches!(error, FetchError::Malformed { .. }),
            "{what}: {error}"
        );
        assert!(!link.is_alive());
    }
}

pub(crate) fn a_silent_server_times_out(devices: &Devices) {
    let client = devices.client(FabricConfig {
        deadline: Duration::from_secs(1),
        ..config()
    });
    let server = devices.server(config());
    let (_bare, link) = Bare::server(devices, &client, &server);
    let error = block_on(link.fetch(chunk(5))).unwrap_err();
    assert!(matches!(error, FetchError::Timeout { .. }), "{error}");
}

/// Makes a test of each case.
#[macro_export]
macro_rules! verbs_cases {
    ($devices:expr) => {
        $crate::verbs_cases!(
            $devices;
            chunks_arrive_as_they_are_however_many_are_asked_for_at_once,
            both_directions_and_several_links_work_at_once,
            every_refusal_arrives_as_what_it_is_and_the_link_goes_on,
            a_slow_peer_that_says_it_is_at_work_is_waited_for,
            a_peer_that_is_gone_is_gone_for_all_who_wait_and_can_be_met_again,
            a_requester_that_is_gone_is_noticed,
            a_dropped_fetch_does_not_disturb_those_after_it,
            payloads_that_are_kept_outlive_the_link,
            a_requester_that_breaks_the_protocol_loses_its_link_and_nobody_else_does,
            a_requester_with_a_wrong_key_harms_only_itself,
            a_server_that_breaks_the_protocol_loses_its_link,
            a_silent_server_times_out,
        );
    };
    ($devices:expr; $($case:ident),* $(,)?) => {
        $(
            #[test]
            fn $case() {
                if let Some(devices) = $devices {
                    peers::verbs_cases::$case(&devices);
                }
            }
        )*
    };
}
