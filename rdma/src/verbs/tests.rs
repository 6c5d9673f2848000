//! The safe layer on the mock provider: what a healthy device and what a failing one gives.

mod batches;
mod datagram;
mod endings;
mod events;
mod failing;
mod fetching;
mod fork;
mod ports;
mod posting;
mod regions;
mod shared_receive;
mod waiting;
mod windows;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::mock;

const PIECE: usize = 4096;

struct Side {
    context: Arc<Context>,
    pd: Arc<ProtectionDomain>,
    queue: CompletionQueue,
    pieces: Vec<Piece>,
    region: Arc<MemoryRegion>,
}

fn side(device: &str, entries: u32) -> Side {
    let context = mock::open(device).expect("the mock device");
    let pd = ProtectionDomain::new(&context).expect("a protection domain");
    let queue = CompletionQueue::with_events(&context, entries).expect("a completion queue");
    let (mapping, pieces) = Mapping::split(PIECE, 8).expect("memory");
    let region = MemoryRegion::register(&pd, mapping, Access::LocalWrite).expect("a region");
    Side {
        context,
        pd,
        queue,
        pieces,
        region,
    }
}

fn config(depth: u32) -> QueuePairConfig {
    QueuePairConfig {
        send_depth: depth,
        receive_depth: depth,
        remote_writes: true,
        ..QueuePairConfig::default()
    }
}

impl Side {
    fn unconnected(&self, config: &QueuePairConfig) -> UnconnectedQueuePair<Piece, Piece> {
        let port = self
            .context
            .local_port(None, &GidChoice::Automatic)
            .expect("a port");
        let mut made =
            UnconnectedQueuePair::new(&self.pd, &self.queue, port, config).expect("a queue pair");
        made.attach(&self.region)
            .expect("the region is of the same protection domain");
        made
    }

    fn filled(&mut self, byte: u8) -> Piece {
        let mut piece = self.pieces.pop().expect("a piece left");
        piece.fill(byte);
        piece
    }

    fn next(&mut self) -> WorkCompletion {
        self.queue
            .poll()
            .expect("a sound queue")
            .expect("a completion")
    }
}

type Pair = QueuePair<Piece, Piece>;

fn connected(config: &QueuePairConfig) -> (Side, Pair, Side, Pair) {
    let (left, right) = (side("mock0", 64), side("mock1", 64));
    let (a, b) = (left.unconnected(config), right.unconnected(config));
    let (at_a, at_b) = (a.endpoint(), b.endpoint());
    let options = ConnectOptions::default();
    let a = a.connect(&at_b, &options).expect("connected");
    let b = b.connect(&at_a, &options).expect("connected");
    (left, a, right, b)
}

fn whole() -> [Segment; 1] {
    [Segment::new(0, PIECE as u32)]
}

fn sent<'q>(settled: Settled<'q, Piece, Piece>) -> Sent<'q, Piece> {
    match settled {
        Settled::Sent(sent) => sent,
        Settled::Received(_) => panic!("a receive, not a send"),
        Settled::Stale => panic!("a stale completion"),
    }
}

fn received(settled: Settled<'_, Piece, Piece>) -> Received<Piece> {
    match settled {
        Settled::Received(received) => received,
        Settled::Sent(_) => panic!("a send, not a receive"),
        Settled::Stale => panic!("a stale completion"),
    }
}

#[test]
fn a_message_arrives_and_both_buffers_come_back() {
    let (mut left, mut a, mut right, mut b) = connected(&config(4));
    let target = right.pieces.pop().expect("a piece");
    b.post_receive(target, &whole()).expect("posted");
    let message = left.filled(7);
    let mut batch = a.batch();
    batch
        .push(
            message,
            &[Work::send_with_immediate(42, &[Segment::new(0, 100)]).signaled()],
        )
        .expect("room");
    assert_eq!(batch.commit().expect("posted"), 1);

    let done = left.next();
    assert_eq!(done.qp_number(), a.qp_number());
    let mut sent = sent(a.settle(done));
    assert_eq!(
        sent.outcome().map(|outcome| outcome.operation),
        Ok(Operation::Send)
    );
    assert_eq!(sent.next().map(|piece| piece[0]), Some(7));
    drop(sent);

    let got = received(b.settle(right.next()));
    let outcome = got.outcome.expect("received");
    assert_eq!((outcome.bytes, outcome.immediate), (100, Some(42)));
    assert!(got.payload[..100].iter().all(|byte| *byte == 7));
    assert_eq!(got.payload[100], 0);
    assert!(a.is_drained() && b.is_drained());
}

#[test]
fn a_write_with_immediate_lands_in_the_window_and_says_so() {
    let (mut left, mut a, mut right, mut b) = connected(&config(4));
    let window = RemoteWindow::new(&right.pd, 2 * PIECE).expect("a window");
    b.post_receive(right.pieces.pop().expect("a piece"), &[])
        .expect("posted");
    let remote = window.remote();
    let at = remote.at(0, 2 * PIECE as u64).expect("inside");
    let payload = left.filled(9);
    let mut batch = a.batch();
    let halves = [[Segment::new(0, 2048)], [Segment::new(2048, 2048)]];
    batch
        .push(
            payload,
            &[
                Work::write(at, &halves[0]),
                Work::write_with_immediate(at.offset(PIECE as u64), 5, &halves[1]).signaled(),
            ],
        )
        .expect("room");
    assert_eq!(batch.commit().expect("posted"), 2);

    let got = received(b.settle(right.next()));
    let outcome = got.outcome.expect("received");
    assert_eq!(outcome.operation, Operation::ReceiveWrite);
    assert_eq!((outcome.bytes, outcome.immediate), (2048, Some(5)));
    let mut bytes = vec![0; 2 * PIECE];
    assert!(window.copy_out(0, &mut bytes));
    assert_eq!(
        (bytes[0], bytes[2047], bytes[2048], bytes[PIECE]),
        (9, 9, 0, 9)
    );
    assert!(!window.copy_out(1, &mut bytes));

    let sent = sent(a.settle(left.next()));
    assert_eq!(sent.work_requests(), 2);
    assert_eq!(sent.count(), 1);
}

#[test]
fn unsignalled_payloads_return_with_the_next_signalled_one_in_order() {
    let (mut left, mut a, right, _b) = connected(&config(16));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    for byte in 1..=4 {
        let payload = left.filled(byte);
        let segments = whole();
        let work = Work::write(at, &segments);
        let work = if byte == 4 { work.signaled() } else { work };
        let mut batch = a.batch();
        batch.push(payload, &[work]).expect("room");
        batch.commit().expect("posted");
    }
    let done = left.next();
    assert!(left.queue.poll().expect("sound").is_none());
    let order: Vec<u8> = sent(a.settle(done)).map(|piece| piece[0]).collect();
    assert_eq!(order, [1, 2, 3, 4]);
}

#[test]
fn a_queue_of_unsignalled_sends_never_fills_up_for_good() {
    let (mut left, mut a, right, _b) = connected(&config(4));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    let segments = whole();
    for round in 0..100 {
        let payload = left.pieces.pop().expect("pieces keep coming back");
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(at, &segments)])
            .expect("room");
        batch.commit().expect("posted");
        while let Some(done) = left.queue.poll().expect("sound") {
            left.pieces.extend(sent(a.settle(done)));
        }
        assert!(a.send_room() >= 2, "round {round}");
    }
}

#[test]
fn payloads_outside_attached_memory_and_segments_outside_payloads_are_refused() {
    let (mut left, mut a, _right, _b) = connected(&config(2));
    let (_other, mut strangers) = Mapping::split(PIECE, 1).expect("memory");
    let stranger = strangers.pop().expect("one piece");
    let rejected = a
        .post_receive(stranger, &whole())
        .expect_err("not attached");
    assert_eq!(rejected.reason, Rejection::NotAttached);
    let beyond = [Segment::new(1, PIECE as u32)];
    let rejected = a
        .post_receive(left.filled(0), &beyond)
        .expect_err("past the end");
    assert!(matches!(rejected.reason, Rejection::OutsidePayload { .. }));
    let many = [Segment::new(0, 1); 3];
    let mut batch = a.batch();
    let rejected = batch
        .push(left.filled(0), &[Work::send(&many)])
        .expect_err("three segments");
    assert_eq!(
        rejected.reason,
        Rejection::TooManySegments {
            limit: 2,
            wanted: 3
        }
    );
    let rejected = batch.push(left.filled(0), &[]).expect_err("no work");
    assert_eq!(rejected.reason, Rejection::NoWork);
}

#[test]
fn memory_registered_for_sending_never_receives() {
    let right = side("mock0", 64);
    let (mapping, mut pieces) = Mapping::split(PIECE, 1).expect("memory");
    let region = MemoryRegion::register(&right.pd, mapping, Access::LocalRead).expect("a region");
    let mut b = right.unconnected(&config(2));
    b.attach(&region).expect("same protection domain");
    let rejected = b
        .post_receive(pieces.pop().expect("one"), &whole())
        .expect_err("read only");
    assert_eq!(rejected.reason, Rejection::ReadOnly);
}

#[test]
fn a_notification_comes_once_per_request_and_is_acknowledged() {
    let (mut left, mut a, right, _b) = connected(&config(8));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    assert!(left.queue.event_fd().is_some());
    assert_eq!(left.queue.drain_events().expect("none"), 0);
    left.queue.request_notification().expect("armed");
    for _ in 0..3 {
        let payload = left.filled(1);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(at, &whole()).signaled()])
            .expect("room");
        batch.commit().expect("posted");
    }
    assert_eq!(left.queue.drain_events().expect("one"), 1);
    assert_eq!(left.queue.drain_events().expect("none left"), 0);
    assert!(left.queue.arm().expect("asked for"));
    assert!(!left.queue.arm().expect("that one has not come"));
    left.queue.request_notification().expect("once more");
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::write(at, &whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    assert_eq!(left.queue.drain_events().expect("one for both"), 1);
    assert!(left.queue.arm().expect("asked for again"));
    let mut seen = 0;
    while let Some(done) = left.queue.poll().expect("sound") {
        drop(sent(a.settle(done)));
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn a_completion_queue_refuses_queue_pairs_that_could_overrun_it() {
    let left = side("mock0", 12);
    let port = left
        .context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    let make =
        || UnconnectedQueuePair::<Piece, Piece>::new(&left.pd, &left.queue, port, &config(4));
    let first = make().expect("nine of twelve entries");
    let error = make().err().expect("three are left");
    assert!(matches!(
        error,
        VerbsError::CompletionQueueTooSmall {
            capacity: 12,
            reserved: 9,
            wanted: 9
        }
    ));
    drop(first);
    make().expect("room again");
}

#[test]
fn objects_of_different_devices_or_domains_do_not_mix() {
    let (left, right) = (side("mock0", 64), side("mock0", 64));
    let mut a = left.unconnected(&config(2));
    assert!(matches!(
        a.attach(&right.region),
        Err(VerbsError::Foreign { .. })
    ));
    let port = left
        .context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    let mixed = UnconnectedQueuePair::<Piece, Piece>::new(&left.pd, &right.queue, port, &config(2));
    assert!(matches!(mixed.err(), Some(VerbsError::Foreign { .. })));
}

#[test]
fn shared_read_only_payloads_can_be_sent_many_times_at_once() {
    let (left, _a, right, _b) = connected(&config(2));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    let mut queue = CompletionQueue::new(&left.context, 64).expect("a queue");
    assert!(queue.event_fd().is_none());
    let (mapping, mut pieces) = Mapping::split(PIECE, 1).expect("memory");
    let region = MemoryRegion::register(&left.pd, mapping, Access::LocalRead).expect("a region");
    let port = left
        .context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    let mut a: UnconnectedQueuePair<Arc<Piece>, ()> =
        UnconnectedQueuePair::new(&left.pd, &queue, port, &config(8)).expect("a queue pair");
    a.attach(&region).expect("same protection domain");
    let b = right.unconnected(&config(8));
    let at_a = a.endpoint();
    let mut a = a
        .connect(&b.endpoint(), &ConnectOptions::default())
        .expect("connected");
    let _b = b
        .connect(&at_a, &ConnectOptions::default())
        .expect("connected");
    let shared = Arc::new(pieces.pop().expect("one piece"));
    let segments = whole();
    let mut batch = a.batch();
    for _ in 0..4 {
        batch
            .push(Arc::clone(&shared), &[Work::write(at, &segments)])
            .expect("room");
    }
    batch
        .push(
            Arc::clone(&shared),
            &[Work::write(at, &segments).signaled()],
        )
        .expect("room");
    batch.commit().expect("posted");
    assert_eq!(Arc::strong_count(&shared), 6);
    while let Some(done) = queue.poll().expect("sound") {
        assert!(matches!(a.settle(done), Settled::Sent(_)));
    }
    assert_eq!(Arc::strong_count(&shared), 1);
}
