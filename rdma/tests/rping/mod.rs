//! The two ends of what rping speaks: the client tells by SENDs of 16 bytes where its memory is (address,
//! key and length, big endian), the server READs the ping from there, then WRITEs it back to where the
//! client says next, and answers each with a SEND.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use trackbed_rdma::verbs::cm::{
    ConnectError, Connection, Connector, Event, Listener, Options, PrivateData, Step,
};
use trackbed_rdma::verbs::{
    Access, CompletionQueue, ConnectOptions, Context, LocalPort, Mapping, MemoryRegion, Piece,
    ProtectionDomain, QueuePair, QueuePairConfig, RemoteAccess, RemoteAddress, RemoteMemory,
    RemoteWindow, Segment, Settled, UnconnectedQueuePair, Work,
};

const PIECE: usize = 4096;
const MESSAGE: usize = 16;

/// What both ends need to send, receive, read and write.
struct Wire {
    // Dropped in this order: the queue pair before its memory.
    queue_pair: QueuePair<Piece, Piece>,
    queue: CompletionQueue,
    pieces: Vec<Piece>,
    connection: Connection,
    patience: Instant,
}

/// A queue pair with receives posted, and what belongs to it.
struct Made {
    queue_pair: UnconnectedQueuePair<Piece, Piece>,
    queue: CompletionQueue,
    pieces: Vec<Piece>,
    pd: Arc<ProtectionDomain>,
}

fn make(context: &Arc<Context>, port: LocalPort) -> Made {
    let pd = ProtectionDomain::new(context).unwrap();
    let queue = CompletionQueue::with_events(context, 64).unwrap();
    let (mapping, mut pieces) = Mapping::split(PIECE, 12).unwrap();
    let region = MemoryRegion::register(&pd, mapping, Access::LocalWrite).unwrap();
    let config = QueuePairConfig {
        send_depth: 8,
        receive_depth: 8,
        remote_writes: true,
        remote_reads: true,
        ..QueuePairConfig::default()
    };
    let mut queue_pair = UnconnectedQueuePair::new(&pd, &queue, port, &config).unwrap();
    queue_pair.attach(&region).unwrap();
    for _ in 0..4 {
        let segments = [Segment::new(0, MESSAGE as u32)];
        queue_pair
            .post_receive(pieces.pop().unwrap(), &segments)
            .unwrap();
    }
    Made {
        queue_pair,
        queue,
        pieces,
        pd,
    }
}

fn encode(memory: &RemoteMemory) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    message[..8].copy_from_slice(&memory.address.to_be_bytes());
    message[8..12].copy_from_slice(&memory.rkey.to_be_bytes());
    message[12..].copy_from_slice(&(memory.len as u32).to_be_bytes());
    message
}

fn decode(message: &[u8]) -> (RemoteAddress, u32) {
    assert_eq!(message.len(), MESSAGE);
    let word = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
    let address = u64::from(word(0)) << 32 | u64::from(word(4));
    let rkey = word(8);
    (RemoteAddress { address, rkey }, word(12))
}

impl Wire {
    /// Takes completions until a message has come; `None` when the peer has left.
    fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            self.queue.request_notification().unwrap();
            while let Some(done) = self.queue.poll().unwrap() {
                let received = match self.queue_pair.settle(done) {
                    Settled::Received(received) => received,
                    Settled::Sent(sent) => {
                        if sent.outcome().is_err() {
                            return None;
                        }
                        self.pieces.extend(sent);
                        continue;
                    }
                    Settled::Stale => continue,
                };
                let bytes = received.outcome.ok()?.bytes as usize;
                let message = received.payload[..bytes].to_vec();
                let segments = [Segment::new(0, MESSAGE as u32)];
                self.queue_pair
                    .post_receive(received.payload, &segments)
                    .unwrap();
                return Some(message);
            }
            if let Some(Event::Disconnected) = self.connection.next_event().unwrap() {
                return None;
            }
            self.wait();
        }
    }

    /// Waits for a completion or an event.
    fn wait(&mut self) {
        assert!(Instant::now() < self.patience, "rping fell silent");
        let completions = self.queue.event_fd().unwrap();
        let mut both = [
            PollFd::new(completions, PollFlags::POLLIN),
            PollFd::new(self.connection.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut both, PollTimeout::from(1000u16)).unwrap();
        self.queue.drain_events().unwrap();
    }

    /// Posts one piece of work and waits for its payload.
    fn done(&mut self) -> Piece {
        let before = self.pieces.len();
        loop {
            self.queue.request_notification().unwrap();
            while let Some(done) = self.queue.poll().unwrap() {
                match self.queue_pair.settle(done) {
                    Settled::Sent(sent) => {
                        assert!(sent.outcome().is_ok(), "{:?}", sent.outcome());
                        self.pieces.extend(sent);
                    }
                    _ => panic!("rping speaks only when it is asked"),
                }
            }
            if self.pieces.len() > before {
                return self.pieces.pop().unwrap();
            }
            self.wait();
        }
    }

    fn read(&mut self, from: RemoteAddress, len: u32) -> Piece {
        let piece = self.pieces.pop().unwrap();
        let mut batch = self.queue_pair.batch();
        batch
            .push_read(piece, from, &[Segment::new(0, len)])
            .unwrap();
        batch.commit().unwrap();
        self.done()
    }

    fn write(&mut self, piece: Piece, to: RemoteAddress, len: u32) -> Piece {
        let mut batch = self.queue_pair.batch();
        let segments = [Segment::new(0, len)];
        batch
            .push(piece, &[Work::write(to, &segments).signaled()])
            .unwrap();
        batch.commit().unwrap();
        self.done()
    }

    fn send(&mut self, message: &[u8; MESSAGE]) {
        let mut piece = self.pieces.pop().unwrap();
        piece[..MESSAGE].copy_from_slice(message);
        let mut batch = self.queue_pair.batch();
        let segments = [Segment::new(0, MESSAGE as u32)];
        batch
            .push(piece, &[Work::send(&segments).signaled()])
            .unwrap();
        batch.commit().unwrap();
    }
}

/// `rping -c`.
pub(crate) struct Pinger {
    wire: Wire,
    source: RemoteWindow,
    sink: RemoteWindow,
}

impl Pinger {
    pub(crate) fn connect(address: SocketAddr, patience: Instant) -> Result<Pinger, ConnectError> {
        let route = Connector::new(address, &Options::default(), patience)?.wait()?;
        let context = route.open()?;
        let made = make(&context, route.local_port(&context)?);
        let window = |read, write| {
            let access = RemoteAccess {
                read,
                write,
                ..RemoteAccess::default()
            };
            RemoteWindow::new_with(&made.pd, 64, access).unwrap()
        };
        let (source, sink) = (window(true, false), window(false, true));
        let Made {
            queue_pair,
            queue,
            pieces,
            ..
        } = made;
        let connecting = route.connect(queue_pair, &PrivateData::default())?;
        let (queue_pair, connection) = connecting.wait()?;
        Ok(Pinger {
            wire: Wire {
                queue_pair,
                queue,
                pieces,
                connection,
                patience,
            },
            source,
            sink,
        })
    }

    /// Has 64 bytes fetched and brought back, and compares them.
    pub(crate) fn ping(&mut self, number: u8) {
        // It writes back as much as it finds before a zero, and that.
        let mut bytes = [0; 64];
        for (at, byte) in bytes[..63].iter_mut().enumerate() {
            *byte = b'A' + ((usize::from(number) + at) % 50) as u8;
        }
        assert!(self.source.copy_in(0, &bytes));
        self.wire.send(&encode(&self.source.remote()));
        self.wire.receive().expect("the server has read");
        self.wire.send(&encode(&self.sink.remote()));
        self.wire.receive().expect("the server has written");
        let mut back = [0; 64];
        assert!(self.sink.copy_out(0, &mut back));
        assert_eq!(back, bytes);
    }
}

/// `rping -s`.
pub(crate) struct PongServer {
    wire: Wire,
}

impl PongServer {
    pub(crate) fn accept(listener: &mut Listener, patience: Instant) -> PongServer {
        let incoming = listener.wait(patience).unwrap().expect("rping asks");
        let context = incoming.open().unwrap();
        let made = make(&context, incoming.local_port(&context).unwrap());
        let path = ConnectOptions::default();
        let accepting = incoming
            .accept(made.queue_pair, &path, &PrivateData::default(), patience)
            .unwrap();
        let (queue_pair, connection) = accepting.wait().unwrap();
        PongServer {
            wire: Wire {
                queue_pair,
                queue: made.queue,
                pieces: made.pieces,
                connection,
                patience,
            },
        }
    }

    /// Answers pings until the client disconnects; how many there were.
    pub(crate) fn answer_until_it_leaves(&mut self) -> usize {
        let mut answered = 0;
        while let Some(message) = self.wire.receive() {
            let (from, len) = decode(&message);
            let ping = self.wire.read(from, len);
            let start = format!("rdma-ping-{answered}: ");
            assert_eq!(ping[..start.len()].escape_ascii().to_string(), start);
            self.wire.send(&[0; MESSAGE]);
            let message = self.wire.receive().expect("where the ping goes back to");
            let (to, len) = decode(&message);
            let piece = self.wire.write(ping, to, len);
            self.wire.pieces.push(piece);
            self.wire.send(&[0; MESSAGE]);
            answered += 1;
        }
        answered
    }
}
