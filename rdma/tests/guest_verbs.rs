//! The safe verbs layer on a real provider: soft-RoCE in the virtual machine of `hack/vm`.
//!
//! These tests make a software device of their own, so they run only where `hack/vm` says that the
//! machine is its guest; elsewhere each prints that it was skipped.

mod soft_roce;

use std::sync::Arc;
use std::time::{Duration, Instant};

use soft_roce::device;
use trackbed_rdma::bench::{self, DeviceChoice, Length, Measure, Plan, Target, Verb};
use trackbed_rdma::devices::Inventory;
use trackbed_rdma::verbs::{
    Access, Completion, CompletionError, CompletionQueue, ConnectOptions, Context, GidChoice,
    GidKind, Mapping, MemoryRegion, Operation, Piece, ProtectionDomain, QueuePair, QueuePairConfig,
    QueuePairState, RemoteAddress, RemoteWindow, Segment, Settled, Status, UnconnectedQueuePair,
    Work,
};

const PIECE: usize = 256 << 10;

/// One end of a connection through the device.
struct End {
    pd: Arc<ProtectionDomain>,
    queue: CompletionQueue,
    pieces: Vec<Piece>,
    pair: QueuePair<Piece, Piece>,
}

/// What a settled completion was about, with its payloads put back.
struct Done {
    outcome: Result<Completion, CompletionError>,
    payloads: Vec<Piece>,
}

impl End {
    fn half(
        context: &Arc<Context>,
    ) -> (
        Arc<ProtectionDomain>,
        CompletionQueue,
        Vec<Piece>,
        UnconnectedQueuePair<Piece, Piece>,
    ) {
        let pd = ProtectionDomain::new(context).expect("a protection domain");
        let queue = CompletionQueue::with_events(context, 64).expect("a completion queue");
        let (mapping, pieces) = Mapping::split(PIECE, 8).expect("memory");
        let region = MemoryRegion::register(&pd, mapping, Access::LocalWrite).expect("a region");
        let port = context
            .local_port(None, &GidChoice::Automatic)
            .expect("an active port");
        let config = QueuePairConfig {
            send_depth: 16,
            receive_depth: 16,
            remote_writes: true,
            ..QueuePairConfig::default()
        };
        let mut pair = UnconnectedQueuePair::new(&pd, &queue, port, &config).expect("a queue pair");
        pair.attach(&region).expect("a region of the same domain");
        (pd, queue, pieces, pair)
    }

    fn filled(&mut self, byte: u8) -> Piece {
        let mut piece = self.pieces.pop().expect("a piece left");
        piece.fill(byte);
        piece
    }

    fn write(&mut self, payload: Piece, work: &[Work<'_>]) {
        let mut batch = self.pair.batch();
        batch.push(payload, work).expect("room");
        batch.commit().expect("posted");
    }

    /// Sleeps on the completion channel until the next completion.
    fn next(&mut self) -> Done {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            self.queue.request_notification().expect("armed");
            while let Some(done) = self.queue.poll().expect("a sound queue") {
                match self.pair.settle(done) {
                    Settled::Sent(sent) => {
                        let outcome = *sent.outcome();
                        return Done {
                            outcome,
                            payloads: sent.collect(),
                        };
                    }
                    Settled::Received(received) => {
                        let payloads = vec![received.payload];
                        return Done {
                            outcome: received.outcome,
                            payloads,
                        };
                    }
                    Settled::Stale => {}
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no completion for a minute");
            let fd = self.queue.event_fd().expect("made with events");
            let mut wait = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(
                &mut wait,
                nix::poll::PollTimeout::try_from(left).expect("a minute"),
            )
            .expect("polled");
            self.queue.drain_events().expect("drained");
        }
    }
}

/// Two ends on the device, connected, with answers given up soon.
fn ends(device: &str) -> (End, End) {
    let context = Context::open(device).expect("the device");
    let (left, right) = (End::half(&context), End::half(&context));
    let options = ConnectOptions {
        timeout: 10,
        retries: 3,
        ..ConnectOptions::default()
    };
    let (at_left, at_right) = (left.3.endpoint(), right.3.endpoint());
    let connect = |(pd, queue, pieces, pair): (_, _, _, UnconnectedQueuePair<Piece, Piece>),
                   peer| End {
        pd,
        queue,
        pieces,
        pair: pair.connect(peer, &options).expect("connected"),
    };
    (connect(left, &at_right), connect(right, &at_left))
}

fn whole() -> [Segment; 1] {
    [Segment::new(0, PIECE as u32)]
}

#[test]
fn every_byte_of_a_write_arrives_and_the_immediate_comes_after_it() {
    let Some(device) = device() else { return };
    let (mut a, mut b) = ends(&device);
    let window = RemoteWindow::new(&b.pd, 2 * PIECE).expect("a window");
    for round in 0..20u8 {
        b.pair
            .post_receive(b.pieces.pop().expect("a piece"), &[])
            .expect("posted");
        let at = window.remote().at(0, 2 * PIECE as u64).expect("inside");
        let mut payload = a.pieces.pop().expect("a piece");
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte = (index / 7) as u8 ^ round;
        }
        let segments = whole();
        let work = [
            Work::write(at, &segments),
            Work::write_with_immediate(at.offset(PIECE as u64), round.into(), &segments).signaled(),
        ];
        a.write(payload, &work);
        let got = b.next();
        let outcome = got.outcome.expect("received");
        assert_eq!(outcome.operation, Operation::ReceiveWrite);
        assert_eq!(
            (outcome.bytes, outcome.immediate),
            (PIECE as u32, Some(round.into()))
        );
        b.pieces.extend(got.payloads);
        let mut copy = vec![0; 2 * PIECE];
        assert!(window.copy_out(0, &mut copy));
        let wrong = copy
            .iter()
            .enumerate()
            .find(|(index, byte)| **byte != ((index % PIECE) / 7) as u8 ^ round);
        assert_eq!(wrong, None, "round {round}");
        let sent = a.next();
        sent.outcome.expect("sent");
        a.pieces.extend(sent.payloads);
    }
    assert!(a.pair.is_drained() && b.pair.is_drained());
}

#[test]
fn messages_land_in_the_receives_in_order() {
    let Some(device) = device() else { return };
    let (mut a, mut b) = ends(&device);
    for _ in 0..4 {
        b.pair
            .post_receive(b.pieces.pop().expect("a piece"), &whole())
            .expect("posted");
    }
    for byte in 1..=4u8 {
        let payload = a.filled(byte);
        let segments = [Segment::new(0, 3000), Segment::new(8192, 100)];
        a.write(
            payload,
            &[Work::send_with_immediate(byte.into(), &segments).signaled()],
        );
    }
    for byte in 1..=4u8 {
        let got = b.next();
        let outcome = got.outcome.expect("received");
        assert_eq!(
            (outcome.bytes, outcome.immediate),
            (3100, Some(byte.into()))
        );
        assert!(got.payloads[0][..3100].iter().all(|found| *found == byte));
        a.next().outcome.expect("sent");
    }
}

#[test]
fn a_wrong_rkey_is_refused_by_the_peer_and_ends_the_connection() {
    let Some(device) = device() else { return };
    let (mut a, mut b) = ends(&device);
    b.pair
        .post_receive(b.pieces.pop().expect("a piece"), &whole())
        .expect("posted");
    let wrong = RemoteAddress {
        address: 0x10000,
        rkey: 0x00de_ad00,
    };
    for byte in 1..=3 {
        let payload = a.filled(byte);
        a.write(payload, &[Work::write(wrong, &whole()).signaled()]);
    }
    let statuses: Vec<Status> = (0..3)
        .map(|_| a.next().outcome.expect_err("refused").status)
        .collect();
    assert_eq!(
        statuses,
        [Status::RemoteAccess, Status::Flushed, Status::Flushed]
    );
    assert_eq!(
        b.next().outcome.expect_err("flushed").status,
        Status::Flushed
    );
    assert_eq!(a.pair.state().expect("asked"), QueuePairState::Error);
    assert_eq!(b.pair.state().expect("asked"), QueuePairState::Error);
}

#[test]
fn a_write_past_the_end_of_the_window_changes_nothing() {
    let Some(device) = device() else { return };
    let (mut a, b) = ends(&device);
    let window = RemoteWindow::new(&b.pd, PIECE).expect("a window");
    let payload = a.filled(1);
    let past = window
        .remote()
        .at(0, PIECE as u64)
        .expect("inside")
        .offset(PIECE as u64 - 16);
    a.write(
        payload,
        &[Work::write(past, &[Segment::new(0, 32)]).signaled()],
    );
    assert_eq!(
        a.next().outcome.expect_err("refused").status,
        Status::RemoteAccess
    );
    let mut end = [1; 16];
    assert!(window.copy_out(PIECE - 16, &mut end));
    assert_eq!(end, [0; 16]);
}

#[test]
fn another_peers_protection_domain_opens_nothing() {
    let Some(device) = device() else { return };
    let (mut a, _b) = ends(&device);
    let (_c, d) = ends(&device);
    let window = RemoteWindow::new(&d.pd, PIECE).expect("a window of another connection");
    let payload = a.filled(1);
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    a.write(payload, &[Work::write(at, &whole()).signaled()]);
    assert_eq!(
        a.next().outcome.expect_err("refused").status,
        Status::RemoteAccess
    );
    assert_eq!(window.byte(0), Some(0));
}

#[test]
fn a_peer_that_is_gone_is_noticed_and_all_buffers_come_back() {
    let Some(device) = device() else { return };
    let (mut a, b) = ends(&device);
    let window = RemoteWindow::new(&b.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    drop(b);
    for byte in 1..=3 {
        let payload = a.filled(byte);
        a.write(payload, &[Work::write(at, &whole()).signaled()]);
    }
    let first = a.next();
    assert_eq!(
        first.outcome.expect_err("gone").status,
        Status::RetryExceeded
    );
    a.pieces.extend(first.payloads);
    while !a.pair.is_drained() {
        let done = a.next();
        assert_eq!(done.outcome.expect_err("flushed").status, Status::Flushed);
        a.pieces.extend(done.payloads);
    }
    assert_eq!(a.pieces.len(), 8);
}

#[test]
fn a_receiver_that_is_not_ready_is_told_apart_from_one_that_is_gone() {
    let Some(device) = device() else { return };
    let context = Context::open(&device).expect("the device");
    let (left, right) = (End::half(&context), End::half(&context));
    let options = ConnectOptions {
        not_ready_retries: 0,
        ..ConnectOptions::default()
    };
    let (at_left, at_right) = (left.3.endpoint(), right.3.endpoint());
    let (pd, queue, pieces, pair) = left;
    let pair = pair.connect(&at_right, &options).expect("connected");
    let mut a = End {
        pd,
        queue,
        pieces,
        pair,
    };
    let _b = right.3.connect(&at_left, &options).expect("connected");
    let payload = a.filled(1);
    a.write(payload, &[Work::send(&whole()).signaled()]);
    assert_eq!(
        a.next().outcome.expect_err("not ready").status,
        Status::ReceiverNotReady
    );
}

#[test]
fn work_posted_after_a_failure_comes_back_flushed() {
    let Some(device) = device() else { return };
    let (mut a, _b) = ends(&device);
    let segments = whole();
    for byte in 0..2 {
        let receive = a.filled(byte);
        a.pair.post_receive(receive, &segments).expect("posted");
    }
    a.pair.fail().expect("to the error state");
    let receive = a.filled(2);
    a.pair
        .post_receive(receive, &segments)
        .expect("accepted all the same");
    a.pair.fail().expect("in the error state already");
    for byte in 0..3 {
        let done = a.next();
        assert_eq!(done.outcome.expect_err("flushed").status, Status::Flushed);
        assert_eq!(done.payloads[0][0], byte, "in order");
        a.pieces.extend(done.payloads);
    }
    assert!(a.pair.is_drained());
}

#[test]
fn unsignalled_writes_give_their_buffers_back_when_the_queue_pair_is_closed() {
    let Some(device) = device() else { return };
    let (mut a, b) = ends(&device);
    let window = RemoteWindow::new(&b.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    for byte in 1..=5 {
        let payload = a.filled(byte);
        a.write(payload, &[Work::write(at, &whole())]);
    }
    let End {
        pair, mut queue, ..
    } = a;
    let drained = pair.close(&mut queue, Duration::from_secs(30), |_| {
        panic!("no other queue pair")
    });
    assert!(drained.expect("closed"));
}

#[test]
fn a_queue_pair_dropped_in_mid_transfer_leaves_the_device_usable() {
    let Some(device) = device() else { return };
    for _ in 0..5 {
        let (mut a, b) = ends(&device);
        let window = RemoteWindow::new(&b.pd, PIECE).expect("a window");
        let at = window.remote().at(0, PIECE as u64).expect("inside");
        for byte in 0..8 {
            let payload = a.filled(byte);
            a.write(payload, &[Work::write(at, &whole())]);
        }
    }
    let (mut a, b) = ends(&device);
    let window = RemoteWindow::new(&b.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    let payload = a.filled(9);
    a.write(payload, &[Work::write(at, &whole()).signaled()]);
    a.next().outcome.expect("written");
    assert_eq!(window.byte(PIECE - 1), Some(9));
}

#[test]
fn the_device_is_listed_with_its_port_its_addresses_and_its_net_device() {
    let Some(device) = device() else { return };
    let inventory = Inventory::here().expect("an inventory");
    let found = inventory
        .devices
        .iter()
        .find(|found| found.name == device)
        .expect("listed");
    assert!(found.is_virtual);
    let port = &found.ports[0];
    assert_eq!(port.state.as_deref(), Some("ACTIVE"));
    assert_eq!(port.active_mtu, Some(4096));
    assert!(port.net_device.is_some());
    let kinds: Vec<&str> = port
        .gids
        .iter()
        .filter_map(|gid| gid.kind.as_deref())
        .collect();
    assert!(kinds.contains(&"rocev2-ipv4"), "{kinds:?}");
    let context = Context::open(&device).expect("the device");
    let chosen = context
        .local_port(None, &GidChoice::Automatic)
        .expect("a GID");
    let by_kind = GidChoice::Kind(GidKind::RoceV2Ipv4);
    assert_eq!(context.local_port(None, &by_kind).expect("a GID"), chosen);
}

#[test]
fn bandwidth_and_latency_are_measured_and_what_arrived_is_compared() {
    let Some(device) = device() else { return };
    let target = Target {
        device: DeviceChoice::Named(device),
        ..Target::default()
    };
    let bandwidth = Plan {
        sizes: vec![1, 60, 4096, 65536],
        length: Length::Iterations(300),
        warmup: 20,
        ..Plan::new(Verb::Write, Measure::Bandwidth)
    };
    let report = bench::run_local(&target, &target, &bandwidth, &mut |_| {}).expect("measured");
    assert!(report.rows.iter().all(|row| row.messages == 300));
    assert_eq!(report.mtu, 4096);
    let latency = Plan {
        sizes: vec![2, 4096],
        length: Length::Iterations(200),
        warmup: 20,
        ..Plan::new(Verb::Write, Measure::Latency)
    };
    let report = bench::run_local(&target, &target, &latency, &mut |_| {}).expect("measured");
    assert!(report.rows.iter().all(|row| row.latency.is_some()));
}
