//! Shared receive queues: every payload comes back once, whoever took it and whatever died.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Sharing = QueuePair<Piece, SharedReceives>;

/// Several queue pairs on one device that share receives, and their peers.
struct Shared {
    right: Side,
    receives: SharedReceiveQueue<Piece>,
    sharing: Vec<Option<Sharing>>,
    left: Side,
    peers: Vec<Pair>,
}

fn shared(pairs: usize, depth: u32) -> Shared {
    let (left, right) = (side("mock0", 512), side("mock1", 512));
    let mut receives = SharedReceiveQueue::new(&right.pd, depth, 1).expect("a shared queue");
    receives.attach(&right.region).expect("the same domain");
    let (mut sharing, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let port = right
            .context
            .local_port(None, &GidChoice::Automatic)
            .expect("a port");
        let mut b: UnconnectedQueuePair<Piece, SharedReceives> =
            UnconnectedQueuePair::with_shared_receives(
                &right.pd,
                &right.queue,
                port,
                &config(4),
                &receives,
            )
            .expect("a queue pair");
        b.attach(&right.region).expect("the same domain");
        let a = left.unconnected(&config(4));
        let (at_a, at_b) = (a.endpoint(), b.endpoint());
        let options = ConnectOptions::default();
        peers.push(a.connect(&at_b, &options).expect("connected"));
        sharing.push(Some(b.connect(&at_a, &options).expect("connected")));
    }
    Shared {
        right,
        receives,
        sharing,
        left,
        peers,
    }
}

impl Shared {
    fn send(&mut self, pair: usize, byte: u8) -> Result<Completion, CompletionError> {
        let payload = self.left.filled(byte);
        let peer = &mut self.peers[pair];
        let mut batch = peer.batch();
        batch
            .push(payload, &[Work::send(&[Segment::new(0, 64)]).signaled()])
            .expect("room");
        batch.commit().expect("posted");
        let mut outcome = None;
        while let Some(done) = self.left.queue.poll().expect("sound") {
            if done.qp_number() != peer.qp_number() {
                continue;
            }
            let sent = sent(peer.settle(done));
            outcome = Some(*sent.outcome());
            self.left.pieces.extend(sent);
        }
        outcome.expect("a signalled send completes")
    }

    fn settle_next(&mut self) -> Option<SharedReceived<Piece>> {
        let done = self.right.queue.poll().expect("sound")?;
        match self.receives.settle(done) {
            SettledShared::Received(received) => Some(received),
            SettledShared::Other(done) => panic!("no other work: {done:?}"),
            SettledShared::Stale => panic!("nothing comes twice"),
        }
    }
}

#[test]
fn any_queue_pair_takes_from_the_shared_receives() {
    let mut shared = shared(3, 8);
    for byte in 0..6 {
        let piece = shared.right.filled(byte);
        shared.receives.post_receive(piece, &whole()).expect("room");
    }
    assert_eq!(
        (shared.receives.outstanding(), shared.receives.room()),
        (6, 2)
    );
    for (pair, byte) in [(2, 12), (0, 10), (1, 11), (2, 22)] {
        shared.send(pair, byte).expect("a receive is there");
        let number = shared.sharing[pair].as_ref().map(QueuePair::qp_number);
        let got = shared.settle_next().expect("received");
        assert_eq!(Some(got.qp_number), number);
        assert_eq!(got.payload[..64], [byte; 64]);
        assert_eq!(got.outcome.expect("received").bytes, 64);
        shared
            .receives
            .post_receive(got.payload, &whole())
            .expect("room again");
    }
    assert_eq!(shared.receives.outstanding(), 6);
}

#[test]
fn the_limit_is_told_once_when_receives_run_low() {
    let mut shared = shared(1, 8);
    for byte in 0..4 {
        let piece = shared.right.filled(byte);
        shared.receives.post_receive(piece, &whole()).expect("room");
    }
    shared.receives.arm_limit(3).expect("armed");
    let state = SharedReceiveState { depth: 8, limit: 3 };
    assert_eq!(shared.receives.query().expect("asked"), state);
    for round in 0..3 {
        shared.send(0, round).expect("a receive is there");
        let event = shared.right.context.next_event().expect("sound");
        let expected = (round == 1).then_some(AsyncEvent {
            kind: EventKind::SharedReceiveLimit,
            subject: Subject::SharedReceiveQueue(shared.receives.id()),
        });
        assert_eq!(event, expected, "round {round}");
    }
    assert_eq!(shared.receives.query().expect("asked").limit, 0);
    assert!(shared.receives.arm_limit(9).is_err(), "more than its depth");
}

#[test]
fn closing_one_queue_pair_leaves_the_receives_to_the_others() {
    let mut shared = shared(2, 8);
    for byte in 0..3 {
        let piece = shared.right.filled(byte);
        shared.receives.post_receive(piece, &whole()).expect("room");
    }
    shared.send(0, 7).expect("a receive is there");
    mock::report_port(&shared.right.context, 1, true);
    let closing = shared.sharing[0].take().expect("it is there");
    let number = closing.qp_number();
    let (mut others, mut events) = (Vec::new(), Vec::new());
    let ended = closing.close_shared(
        &mut shared.right.queue,
        Duration::from_secs(60),
        |done| others.push(done),
        |event| events.push(event),
    );
    assert!(ended.expect("closed"), "its last receive was taken");
    assert_eq!(events.len(), 1, "the port's event is not lost: {events:?}");
    let SettledShared::Received(got) = shared.receives.settle(others.pop().expect("one")) else {
        panic!("what it had taken comes back");
    };
    assert_eq!((got.qp_number, got.payload[0]), (number, 7));
    shared.send(1, 8).expect("two receives are left");
    assert_eq!(shared.settle_next().expect("received").payload[0], 8);
}

#[test]
fn a_receive_is_settled_once_and_other_completions_are_handed_on() {
    let mut shared = shared(1, 2);
    let piece = shared.right.filled(0);
    shared.receives.post_receive(piece, &whole()).expect("room");
    shared.send(0, 1).expect("a receive is there");
    let done = shared.right.next();
    let twice = done.duplicate();
    assert!(matches!(
        shared.receives.settle(done),
        SettledShared::Received(_)
    ));
    assert!(matches!(
        shared.receives.settle(twice),
        SettledShared::Stale
    ));
    let mut other: SharedReceiveQueue<Piece> =
        SharedReceiveQueue::new(&shared.right.pd, 2, 1).expect("another");
    other.attach(&shared.right.region).expect("the same domain");
    let piece = shared.right.filled(0);
    shared.receives.post_receive(piece, &whole()).expect("room");
    shared.send(0, 2).expect("a receive is there");
    let done = shared.right.next();
    let SettledShared::Other(done) = other.settle(done) else {
        panic!("not of this queue");
    };
    assert!(matches!(
        shared.receives.settle(done),
        SettledShared::Received(_)
    ));
}

#[test]
fn payloads_stay_until_the_last_queue_pair_that_may_write_them_is_gone() {
    let mut shared = shared(2, 4);
    for byte in 0..4 {
        let piece = shared.right.filled(byte);
        shared.receives.post_receive(piece, &whole()).expect("room");
    }
    let region = Arc::downgrade(&shared.right.region);
    let Shared {
        right,
        receives,
        sharing,
        mut left,
        mut peers,
    } = shared;
    drop(receives);
    drop((right.region, right.pieces));
    // A message still lands in memory that exists.
    let payload = left.filled(5);
    let mut batch = peers[1].batch();
    batch
        .push(payload, &[Work::send(&[Segment::new(0, 8)]).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    assert!(sent(peers[1].settle(left.next())).outcome().is_ok());
    assert!(region.upgrade().is_some());
    drop(sharing);
    assert!(region.upgrade().is_none(), "freed with the last queue pair");
}

#[test]
fn what_the_device_can_not_do_is_refused_before_it_is_asked() {
    let right = side("mock0", 64);
    let deep = SharedReceiveQueue::<Piece>::new(&right.pd, 16385, 1).expect_err("too deep");
    assert!(
        matches!(
            deep,
            VerbsError::OverLimit {
                limit: 16384,
                wanted: 16385,
                ..
            }
        ),
        "{deep}"
    );
    let wide = SharedReceiveQueue::<Piece>::new(&right.pd, 1, 17).expect_err("too wide");
    assert!(wide.to_string().contains("16 segments"), "{wide}");
    let entries = CompletionQueue::new(&right.context, 1 << 20).expect_err("too many");
    assert!(entries.to_string().contains("65536 entries"), "{entries}");
    let receives = SharedReceiveQueue::<Piece>::new(&right.pd, 60, 1).expect("a shared queue");
    let port = right
        .context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    let make = || {
        UnconnectedQueuePair::<Piece, SharedReceives>::with_shared_receives(
            &right.pd,
            &right.queue,
            port,
            &config(4),
            &receives,
        )
    };
    let small = make()
        .err()
        .expect("the completions of 60 receives don't fit");
    assert!(matches!(
        small,
        VerbsError::CompletionQueueTooSmall { wanted: 60, .. }
    ));
    let other = side("mock0", 64);
    let foreign = UnconnectedQueuePair::<Piece, SharedReceives>::with_shared_receives(
        &other.pd,
        &other.queue,
        port,
        &config(4),
        &receives,
    );
    assert!(matches!(foreign.err(), Some(VerbsError::Foreign { .. })));
}

#[test]
fn refused_receives_come_back() {
    let mut shared = shared(1, 1);
    let first = shared.right.filled(1);
    shared.receives.post_receive(first, &whole()).expect("room");
    let second = shared.right.filled(2);
    let rejected = shared
        .receives
        .post_receive(second, &whole())
        .expect_err("full");
    assert_eq!(rejected.reason, Rejection::QueueFull { room: 0, wanted: 1 });
    assert_eq!(rejected.payload[0], 2);
    let (_memory, mut strangers) = Mapping::split(PIECE, 1).expect("memory");
    let mut empty: SharedReceiveQueue<Piece> =
        SharedReceiveQueue::new(&shared.right.pd, 1, 1).expect("a shared queue");
    let rejected = empty
        .post_receive(strangers.pop().expect("one"), &whole())
        .expect_err("its region isn't attached");
    assert_eq!(rejected.reason, Rejection::NotAttached);
}

#[derive(Debug, Clone)]
enum Step {
    Post,
    Send(usize),
    Settle,
    Kill(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Post),
        4 => (0usize..3).prop_map(Step::Send),
        4 => Just(Step::Settle),
        1 => (0usize..3).prop_map(Step::Kill),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Pieces are told apart by their address; each is posted, in hand or lost for good never twice.
    #[test]
    fn every_payload_comes_back_exactly_once_whoever_dies(steps in steps()) {
        let mut shared = shared(3, 6);
        let all: BTreeMap<usize, ()> =
            shared.right.pieces.iter().map(|piece| (piece.as_ptr() as usize, ())).collect();
        let mut posted = 0u32;
        for step in steps {
            match step {
                Step::Post => {
                    if let Some(piece) = shared.right.pieces.pop() {
                        match shared.receives.post_receive(piece, &whole()) {
                            Ok(()) => posted += 1,
                            Err(rejected) => {
                                prop_assert_eq!(shared.receives.room(), 0);
                                shared.right.pieces.push(rejected.payload);
                            }
                        }
                    }
                }
                Step::Send(pair) => {
                    let alive = shared.sharing[pair].is_some()
                        && shared.peers[pair].state().expect("asked") == QueuePairState::ReadyToSend;
                    if alive && shared.send(pair, 9).is_err() {
                        // No receive was left: the sender's side failed.
                        shared.sharing[pair] = None;
                    }
                }
                Step::Settle => {
                    if let Some(received) = shared.settle_next() {
                        posted -= 1;
                        shared.right.pieces.push(received.payload);
                    }
                }
                Step::Kill(pair) => shared.sharing[pair] = None,
            }
            prop_assert_eq!(shared.receives.outstanding(), posted);
            while shared.right.context.next_event().expect("sound").is_some() {}
        }
        while let Some(received) = shared.settle_next() {
            shared.right.pieces.push(received.payload);
        }
        let mut back: Vec<usize> =
            shared.right.pieces.iter().map(|piece| piece.as_ptr() as usize).collect();
        back.sort_unstable();
        back.dedup();
        prop_assert_eq!(back.len(), shared.right.pieces.len(), "none twice");
        prop_assert!(back.iter().all(|piece| all.contains_key(piece)));
        prop_assert_eq!(back.len() + shared.receives.outstanding() as usize, all.len(), "none lost");
    }
}
