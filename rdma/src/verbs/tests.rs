//! The safe layer on the mock provider: what a healthy device and what a failing one gives.

mod datagram;
mod events;
mod fetching;
mod fork;
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
fn a_wrong_rkey_fails_both_ends_and_flushes_the_rest_in_order() {
    let (mut left, mut a, mut right, mut b) = connected(&config(4));
    b.post_receive(right.pieces.pop().expect("a piece"), &whole())
        .expect("posted");
    mock::hold(a.qp_number());
    let wrong = RemoteAddress {
        address: 4096,
        rkey: 1,
    };
    for byte in 1..=3 {
        let payload = left.filled(byte);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(wrong, &whole()).signaled()])
            .expect("room");
        batch.commit().expect("posted");
    }
    mock::release(a.qp_number());
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let done = left.next();
        let sent = sent(a.settle(done));
        let error = (*sent.outcome()).expect_err("a failure");
        statuses.push(error.status);
        assert_eq!(error.queue, Queue::Send);
        assert!(!error.to_string().is_empty());
        left.pieces.extend(sent);
    }
    assert_eq!(
        statuses,
        [Status::RemoteAccess, Status::Flushed, Status::Flushed]
    );
    assert_eq!(left.pieces.len(), 8);
    let flushed = received(b.settle(right.next()));
    assert_eq!(
        flushed.outcome.expect_err("a failure").status,
        Status::Flushed
    );
    assert_eq!(a.state().expect("asked"), QueuePairState::Error);
    assert_eq!(b.state().expect("asked"), QueuePairState::Error);
}

#[test]
fn a_peer_cannot_write_where_the_queue_pair_or_the_region_forbids_it() {
    for remote_writes in [false, true] {
        let (mut left, mut a, right, _b) = connected(&QueuePairConfig {
            remote_writes,
            ..config(4)
        });
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let mut at = window.remote().at(0, PIECE as u64).expect("inside");
        if remote_writes {
            // The window's key, but an address beyond it.
            at = at.offset(1);
        }
        assert_eq!(right.region.remote(), None);
        let payload = left.filled(1);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(at, &whole()).signaled()])
            .expect("room");
        batch.commit().expect("posted");
        let done = left.next();
        let sent = sent(a.settle(done));
        assert_eq!(
            (*sent.outcome()).expect_err("refused").status,
            Status::RemoteAccess
        );
        assert_eq!(window.byte(0), Some(0));
    }
}

#[test]
fn a_receiver_that_is_not_ready_and_a_peer_that_is_gone_are_told_apart() {
    let (mut left, mut a, _right, b) = connected(&config(4));
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    let done = left.next();
    assert_eq!(
        (*sent(a.settle(done)).outcome())
            .expect_err("not ready")
            .status,
        Status::ReceiverNotReady
    );

    drop((a, b));
    let (mut left, mut a, _right, b) = connected(&config(4));
    drop(b);
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    let done = left.next();
    assert_eq!(
        (*sent(a.settle(done)).outcome()).expect_err("gone").status,
        Status::RetryExceeded
    );
}

#[test]
fn a_full_queue_gives_the_payload_back() {
    let (mut left, mut a, _right, _b) = connected(&config(2));
    mock::hold(a.qp_number());
    let at = RemoteAddress {
        address: 0,
        rkey: 0,
    };
    for _ in 0..2 {
        let payload = left.filled(0);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(at, &whole())])
            .expect("room");
        batch.commit().expect("posted");
    }
    let payload = left.filled(3);
    let mut batch = a.batch();
    let rejected = batch
        .push(payload, &[Work::write(at, &whole())])
        .expect_err("full");
    assert_eq!(rejected.reason, Rejection::QueueFull { room: 0, wanted: 1 });
    assert_eq!(rejected.payload[0], 3);
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
fn a_batch_that_is_dropped_posts_nothing() {
    let (mut left, mut a, _right, _b) = connected(&config(4));
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    assert_eq!(batch.len(), 1);
    drop(batch);
    assert!(left.queue.poll().expect("sound").is_none());
    assert!(a.is_drained());
}

#[test]
fn a_batch_taken_in_part_keeps_what_the_adapter_has_and_returns_the_rest() {
    let (mut left, mut a, right, _b) = connected(&QueuePairConfig {
        interface: Some(PostingInterface::Classic),
        ..config(8)
    });
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    mock::refuse_sends_after(a.qp_number(), 3, libc::EIO);
    let segments = whole();
    let two = [
        Work::write(at, &segments),
        Work::write(at, &segments).signaled(),
    ];
    let payloads: Vec<Piece> = (1..=3).map(|byte| left.filled(byte)).collect();
    let mut batch = a.batch();
    for payload in payloads {
        batch.push(payload, &two).expect("room");
    }
    let error = batch.commit().expect_err("refused in part");
    assert_eq!((error.posted, error.wanted), (3, 6));
    assert_eq!(error.source.raw_os_error(), Some(libc::EIO));
    // Of the second payload one write was posted: only the third is ours again.
    let back: Vec<u8> = error.payloads.iter().map(|piece| piece[0]).collect();
    assert_eq!(back, [3]);
    assert_eq!(a.outstanding().0, 3);
    let done = left.next();
    let first: Vec<u8> = sent(a.settle(done)).map(|piece| piece[0]).collect();
    assert_eq!(first, [1]);
    a.fail().expect("to the error state");
    let done = left.next();
    let second: Vec<u8> = sent(a.settle(done)).map(|piece| piece[0]).collect();
    assert_eq!(second, [2]);
    assert!(a.is_drained());
}

#[test]
fn a_failed_queue_pair_gives_all_buffers_back_even_those_sent_unsignalled() {
    let (mut left, mut a, right, _b) = connected(&config(8));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    for byte in 0..2 {
        let receive = left.filled(byte);
        a.post_receive(receive, &whole()).expect("posted");
        let payload = left.filled(byte);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(at, &whole())])
            .expect("room");
        batch.commit().expect("posted");
    }
    assert!(left.queue.poll().expect("sound").is_none());
    a.fail().expect("to the error state");
    a.fail().expect("again does nothing");
    assert_eq!(a.send_room(), 0);
    while let Some(done) = left.queue.poll().expect("sound") {
        match a.settle(done) {
            Settled::Sent(sent) => left.pieces.extend(sent),
            Settled::Received(received) => left.pieces.push(received.payload),
            Settled::Stale => panic!("nothing stale here"),
        }
    }
    assert!(a.is_drained());
    assert_eq!(left.pieces.len(), 8);
}

#[test]
fn closing_drains_one_queue_pair_and_passes_on_what_is_of_others() {
    let mut left = side("mock0", 64);
    let (first, second) = (left.unconnected(&config(4)), left.unconnected(&config(4)));
    let (at_first, at_second) = (first.endpoint(), second.endpoint());
    let options = ConnectOptions::default();
    let mut first = first.connect(&at_second, &options).expect("connected");
    let mut second = second.connect(&at_first, &options).expect("connected");
    let receive = left.filled(0);
    second.post_receive(receive, &whole()).expect("posted");
    let payload = left.filled(1);
    let mut batch = first.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    let mut others = Vec::new();
    let drained = first
        .close(&mut left.queue, Duration::from_secs(5), |done| {
            others.push(done)
        })
        .expect("closed");
    assert!(drained);
    let done = others.pop().expect("the receive of the other one");
    assert_eq!(received(second.settle(done)).payload[0], 1);
}

#[test]
fn completions_of_a_queue_pair_that_is_gone_touch_nothing() {
    let (mut left, mut a, mut right, mut b) = connected(&config(4));
    let payload = left.filled(1);
    let receive = right.filled(0);
    b.post_receive(receive, &whole()).expect("posted");
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    drop(a);
    let mut other = left
        .unconnected(&config(4))
        .connect(&b.endpoint(), &Default::default());
    let other = other.as_mut().expect("connected");
    assert!(matches!(other.settle(left.next()), Settled::Stale));
}

#[test]
fn buffers_are_leaked_not_freed_when_the_device_refuses_to_let_go() {
    let (mut left, mut a, right, _b) = connected(&config(4));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::write(at, &whole())])
        .expect("room");
    batch.commit().expect("posted");
    mock::refuse_destruction(a.qp_number(), libc::EIO);
    let region = Arc::downgrade(&left.region);
    drop(a);
    drop(left);
    assert!(
        region.upgrade().is_some(),
        "the region outlives what may still use it"
    );
}

#[test]
fn whatever_is_dropped_first_the_rest_keeps_working() {
    let (left, a, _right, _b) = connected(&config(4));
    let Side {
        context,
        pd,
        queue,
        pieces,
        region,
    } = left;
    drop((context, pd, region, pieces));
    drop(queue);
    assert_eq!(a.state().expect("asked"), QueuePairState::ReadyToSend);
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
fn ports_and_gids_are_read_through_the_classic_and_the_extended_table() {
    for device in ["mock0", "mock1"] {
        let context = mock::open(device).expect("the mock device");
        let port = context.port(1).expect("port 1");
        assert_eq!(
            (port.state, port.active_mtu),
            (PortState::Active, Mtu::Bytes1024)
        );
        assert_eq!(port.link_layer, LinkLayer::Ethernet);
        let chosen = context
            .local_port(None, &GidChoice::Automatic)
            .expect("a GID");
        assert_eq!(
            (chosen.gid_index, chosen.gid.ip().to_string().as_str()),
            (3, "10.0.0.1")
        );
        assert!(matches!(
            context.port(2),
            Err(VerbsError::NoPort { ports: 1, .. })
        ));
        let missing = GidChoice::Kind(GidKind::InfiniBand);
        let error = context
            .local_port(Some(1), &missing)
            .expect_err("no such GID");
        assert!(
            error.to_string().contains("10.0.0.1 (rocev2-ipv4)"),
            "{error}"
        );
    }
    let error = mock::open("mlx5_0").expect_err("no such device");
    assert!(error.to_string().contains("mock0, mock1"), "{error}");
}

#[test]
fn ends_that_chose_different_kinds_of_address_are_told_so_before_they_wait_in_vain() {
    let (left, right) = (side("mock0", 64), side("mock0", 64));
    let port = right
        .context
        .local_port(None, &GidChoice::Kind(GidKind::RoceV2Ipv6))
        .expect("the link-local one");
    let b = UnconnectedQueuePair::<Piece, Piece>::new(&right.pd, &right.queue, port, &config(2))
        .expect("a queue pair");
    let a = left.unconnected(&config(2));
    let failed = a
        .connect(&b.endpoint(), &ConnectOptions::default())
        .expect_err("incompatible");
    assert!(
        failed.error.to_string().contains("choose one kind on both"),
        "{failed}"
    );
    let again = failed.queue_pair.connect(
        &left.unconnected(&config(2)).endpoint(),
        &Default::default(),
    );
    assert!(
        again.is_ok(),
        "the queue pair can be used with another peer"
    );
}

#[test]
fn port_events_are_reported_and_taken_once() {
    let context = mock::open("mock0").expect("the mock device");
    assert_eq!(context.next_event().expect("none"), None);
    mock::report_port(&context, 1, false);
    let event = context.next_event().expect("one").expect("one");
    assert_eq!((event.kind, event.port()), (EventKind::PortError, Some(1)));
    assert_eq!(context.next_event().expect("none"), None);
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
