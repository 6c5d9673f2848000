//! The objects of the verbs layer on a real provider, soft-RoCE in the virtual machine of `hack/vm`: every
//! kind of memory, shared receive queues, datagrams, awaited completions, asynchronous events.

mod soft_roce;

use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use soft_roce::device;
use trackbed_rdma::shard::{self, Shard, ShardConfig};
use trackbed_rdma::slab::Slab;
use trackbed_rdma::verbs::*;

const PIECE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything of one end but its queue pairs.
struct Side {
    context: Arc<Context>,
    pd: Arc<ProtectionDomain>,
    queue: CompletionQueue,
    port: LocalPort,
    pieces: Vec<Piece>,
    region: Arc<MemoryRegion>,
}

impl Side {
    fn new(device: &str) -> Side {
        let context = Context::open(device).expect("the device");
        let pd = ProtectionDomain::new(&context).expect("a protection domain");
        let (mapping, pieces) = Mapping::split(PIECE, 32).expect("memory");
        Side {
            queue: CompletionQueue::with_events(&context, 512).expect("a completion queue"),
            port: context
                .local_port(None, &GidChoice::Automatic)
                .expect("an active port"),
            region: MemoryRegion::register(&pd, mapping, Access::LocalWrite).expect("a region"),
            context,
            pd,
            pieces,
        }
    }

    fn unconnected(&self) -> UnconnectedQueuePair<Piece, Piece> {
        let mut pair = UnconnectedQueuePair::new(&self.pd, &self.queue, self.port, &config())
            .expect("a queue pair");
        pair.attach(&self.region).expect("the same domain");
        pair
    }

    fn filled(&mut self, byte: u8) -> Piece {
        let mut piece = self.pieces.pop().expect("a piece left");
        piece.fill(byte);
        piece
    }

    fn next(&mut self) -> WorkCompletion {
        let done = self.queue.wait(PATIENCE).expect("a sound queue");
        done.expect("a completion within a minute")
    }
}

fn config() -> QueuePairConfig {
    QueuePairConfig {
        send_depth: 16,
        receive_depth: 16,
        remote_writes: true,
        remote_reads: true,
        remote_atomics: true,
        ..QueuePairConfig::default()
    }
}

fn options() -> ConnectOptions {
    ConnectOptions {
        timeout: 12,
        retries: 6,
        ..ConnectOptions::default()
    }
}

type Pair = QueuePair<Piece, Piece>;

fn connected(device: &str) -> (Side, Pair, Side, Pair) {
    let (left, right) = (Side::new(device), Side::new(device));
    let (a, b) = (left.unconnected(), right.unconnected());
    let (at_a, at_b) = (a.endpoint(), b.endpoint());
    let a = a.connect(&at_b, &options()).expect("connected");
    let b = b.connect(&at_a, &options()).expect("connected");
    (left, a, right, b)
}

fn send(pair: &mut Pair, payload: Piece, bytes: u32) {
    let mut batch = pair.batch();
    batch
        .push(payload, &[Work::send(&[Segment::new(0, bytes)]).signaled()])
        .expect("room");
    batch.commit().expect("posted");
}

fn sent<R>(settled: Settled<'_, Piece, R>) -> (Result<Completion, CompletionError>, Vec<Piece>) {
    match settled {
        Settled::Sent(sent) => (*sent.outcome(), sent.collect()),
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

fn whole() -> [Segment; 1] {
    [Segment::new(0, PIECE as u32)]
}

#[test]
fn the_device_tells_its_limits_and_is_held_to_them() {
    let Some(device) = device() else { return };
    let side = Side::new(&device);
    let limits = *side.context.limits();
    assert_ne!(limits.atomics, Atomics::None);
    assert!(limits.shared_receive_queues > 0 && limits.windows_of_type_2);
    assert!(limits.address_handles > 0 && limits.capability_flags != 0);
    let error = CompletionQueue::new(&side.context, limits.completion_queue_entries + 1);
    let error = error.expect_err("one too many");
    assert!(matches!(error, VerbsError::OverLimit { .. }), "{error}");
    // What the limit says can be had.
    let config = QueuePairConfig {
        segments: limits.segments,
        ..config()
    };
    UnconnectedQueuePair::<Piece, Piece>::new(&side.pd, &side.queue, side.port, &config)
        .expect("as many segments as it has");
}

/// Sends one message from and into memory of this kind.
fn carries_a_message(device: &str, memory: Arc<dyn Pinned>, mut pieces: Vec<Piece>) {
    let (mut left, mut a, mut right, mut b) = connected(device);
    for (pd, pair) in [(&left.pd, &mut a), (&right.pd, &mut b)] {
        let region = MemoryRegion::register(pd, Arc::clone(&memory), Access::LocalWrite);
        pair.attach(&region.expect("registered"))
            .expect("the same domain");
    }
    b.post_receive(pieces.pop().expect("two"), &whole())
        .expect("posted");
    let mut payload = pieces.pop().expect("two");
    payload.fill(5);
    send(&mut a, payload, PIECE as u32);
    let done = left.next();
    sent(a.settle(done)).0.expect("sent");
    let got = received(b.settle(right.next()));
    assert_eq!(got.outcome.expect("received").bytes, PIECE as u32);
    assert!(got.payload.iter().all(|byte| *byte == 5));
}

#[test]
fn huge_pages_on_a_node_and_files_in_memory_carry_messages() {
    let Some(device) = device() else { return };
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    std::fs::write(pool, "0").expect("root in the guest");
    let huge = MappingOptions {
        pages: Pages::Huge(HugePages {
            size: HugePageSize::TwoMebibytes,
            or_transparent: false,
        }),
        node: None,
    };
    let error = Mapping::split_with(PIECE, 2, &huge).expect_err("none are reserved");
    assert!(
        error.to_string().contains(&format!("write 1 into {pool}")),
        "{error}"
    );
    std::fs::write(pool, "4").expect("root in the guest");
    let (memory, pieces) = Mapping::split_with(PIECE, 2, &huge).expect("four are reserved");
    assert_eq!(memory.backing(), Backing::Huge(HugePageSize::TwoMebibytes));
    carries_a_message(&device, memory, pieces);

    let on_node = MappingOptions {
        node: Some(0),
        ..MappingOptions::default()
    };
    if let Ok((memory, pieces)) = Mapping::split_with(PIECE, 2, &on_node) {
        carries_a_message(&device, memory, pieces);
    }
    let size = Some(HugePageSize::TwoMebibytes);
    for size in [None, size] {
        let (memory, pieces) = FileMapping::in_memory("guest", PIECE, 2, size).expect("a file");
        carries_a_message(&device, memory, pieces);
    }
    let (memory, pieces) = FileMapping::unlinked_in("/tmp".as_ref(), PIECE, 2).expect("tmpfs");
    carries_a_message(&device, memory, pieces);
    std::fs::write(pool, "0").expect("root in the guest");
}

#[test]
fn peers_read_what_may_be_read_and_count_where_they_may_count() {
    let Some(device) = device() else { return };
    let (mut left, mut a, right, _b) = connected(&device);
    let (mapping, mut pieces) = Mapping::split(PIECE, 1).expect("memory");
    pieces[0].fill(6);
    let region = MemoryRegion::register_remote_readable(&right.pd, mapping).expect("a region");
    let at = region.remote().expect("for peers").at(0, PIECE as u64);
    let at = at.expect("inside");
    let target = left.filled(0);
    let mut batch = a.batch();
    batch.push_read(target, at, &whole()).expect("room");
    batch.commit().expect("posted");
    let (outcome, payloads) = sent(a.settle(left.next()));
    assert_eq!(outcome.expect("read").operation, Operation::Read);
    assert_eq!(payloads[0][..], pieces[0][..]);

    let access = RemoteAccess {
        read: true,
        atomic: true,
        write: false,
    };
    let mut window = RemoteWindow::new_with(&right.pd, 64, access).expect("a window");
    assert!(window.set_word(8, 40));
    let counter = window.remote().at(8, 8).expect("inside");
    let target = left.filled(0);
    let mut batch = a.batch();
    batch.push_fetch_add(target, 0, counter, 2).expect("room");
    batch.commit().expect("posted");
    let (outcome, payloads) = sent(a.settle(left.next()));
    outcome.expect("counted");
    assert_eq!(payloads[0][..8], 40u64.to_ne_bytes());
    assert_eq!(window.word(8), Some(42));

    let payload = left.filled(9);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::write(at, &whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    let refused = sent(a.settle(left.next())).0.expect_err("not writable");
    assert_eq!(refused.status, Status::RemoteAccess);
    assert_eq!(pieces[0][0], 6);
}

/// Takes this thread's leave to pin without limit, which root has.
fn forgo_unlimited_pinning() {
    const CAPABILITY: u32 = 1 << 14; // CAP_IPC_LOCK
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: the header and the two sets are as capget(2) takes them, and ours.
    let code = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    assert_eq!(code, 0);
    for set in &mut sets[0] {
        *set &= !CAPABILITY;
    }
    // SAFETY: as above; it only takes rights from this thread.
    let code = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!(code, 0);
}

#[test]
fn exhausted_memlock_names_the_limit_and_the_remedy() {
    let Some(device) = device() else { return };
    let limited = thread::spawn(move || {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let side = Side::new(&device);
        let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).expect("a limit");
        forgo_unlimited_pinning();
        setrlimit(Resource::RLIMIT_MEMLOCK, 1 << 20, hard).expect("a lower limit");
        let (mapping, _pieces) = Mapping::split(1 << 20, 2).expect("memory");
        let refused = MemoryRegion::register(&side.pd, mapping, Access::LocalWrite);
        setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard).expect("the limit as it was");
        refused.expect_err("2 MiB can't be pinned with a limit of 1 MiB")
    });
    let error = limited.join().expect("it ended");
    assert!(
        matches!(&error, VerbsError::CannotPin { bytes: 2097152, lock, .. } if lock.limit == Some(1 << 20)),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("RLIMIT_MEMLOCK is 1048576 bytes"),
        "{error}"
    );
}

const CYCLES: u32 = 10_000;

/// What one completion of a round of ask and answer brings.
enum Step {
    Received(Piece),
    Sent(Vec<Piece>),
}

fn step(pair: &mut Pair, done: WorkCompletion) -> Step {
    match pair.settle(done) {
        Settled::Received(received) => {
            received.outcome.expect("received");
            Step::Received(received.payload)
        }
        Settled::Sent(sent) => {
            sent.outcome().expect("sent");
            Step::Sent(sent.collect())
        }
        Settled::Stale => panic!("a stale completion"),
    }
}

/// Answers each message with one of its own, and so wakes a receiver that may be about to sleep.
fn answers(mut right: Side, mut b: Pair, rounds: u32) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut answered = 0;
        while answered < rounds {
            let done = right.next();
            match step(&mut b, done) {
                Step::Received(piece) => {
                    b.post_receive(piece, &whole()).expect("posted");
                    let answer = right.pieces.pop().expect("a piece");
                    send(&mut b, answer, 8);
                    answered += 1;
                }
                Step::Sent(pieces) => right.pieces.extend(pieces),
            }
        }
        // The last answers are still on their way.
        while b.outstanding().0 > 0 {
            let done = right.next();
            step(&mut b, done);
        }
    })
}

fn asked(left: &mut Side, a: &mut Pair) {
    let payload = left.pieces.pop().expect("a piece");
    send(a, payload, 8);
}

/// Settles one completion; whether it was the answer.
fn settle_one(spare: &mut Vec<Piece>, a: &mut Pair, done: WorkCompletion) -> bool {
    match step(a, done) {
        Step::Received(piece) => {
            a.post_receive(piece, &whole()).expect("posted");
            true
        }
        Step::Sent(pieces) => {
            spare.extend(pieces);
            false
        }
    }
}

fn asking(device: &str) -> (Side, Pair, Side, Pair) {
    let (mut left, mut a, mut right, mut b) = connected(device);
    for (side, pair) in [(&mut left, &mut a), (&mut right, &mut b)] {
        for _ in 0..4 {
            let target = side.filled(0);
            pair.post_receive(target, &whole()).expect("posted");
        }
    }
    (left, a, right, b)
}

#[test]
fn a_thousand_sleeps_in_poll_lose_no_wake_up() {
    let Some(device) = device() else { return };
    let rounds = CYCLES / 10;
    let (mut left, mut a, right, b) = asking(&device);
    let answering = answers(right, b, rounds);
    for round in 0..rounds {
        asked(&mut left, &mut a);
        loop {
            let done = left.queue.wait(PATIENCE).expect("a sound queue");
            let done = done.unwrap_or_else(|| panic!("round {round}: no wake-up"));
            if settle_one(&mut left.pieces, &mut a, done) {
                break;
            }
        }
    }
    answering.join().expect("all answered");
}

#[test]
fn ten_thousand_awaits_on_a_shard_lose_no_wake_up() {
    let Some(device) = device() else { return };
    let (mut left, mut a, right, b) = asking(&device);
    let answering = answers(right, b, CYCLES);
    let slab = Slab::new("waiting", PIECE, 1).expect("a slab");
    let shard = Shard::start(ShardConfig::new("waiting", slab)).expect("a shard");
    let all = shard.on_shard(move || async move {
        let fd = left.queue.event_fd().expect("made with events");
        let fd = Arc::new(fd.try_clone_to_owned().expect("a copy"));
        let readiness = Watch::new(move || shard::readable(Arc::clone(&fd)));
        let mut completions = Completions::new(left.queue, readiness);
        let mut rounds = 0;
        for _ in 0..CYCLES {
            let payload = left.pieces.pop().expect("a piece");
            send(&mut a, payload, 8);
            while !settle_one(
                &mut left.pieces,
                &mut a,
                completions.completion().await.expect("a sound queue"),
            ) {}
            rounds += 1;
        }
        rounds
    });
    assert_eq!(block_on(all), CYCLES);
    answering.join().expect("all answered");
}

/// Waits for an event of this kind; others are dropped.
fn event_of(context: &Context, kind: EventKind) -> AsyncEvent {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match context.next_event().expect("a sound device") {
            Some(event) if event.kind == kind => return event,
            Some(_) => {}
            None => {
                assert!(Instant::now() < deadline, "no {kind:?} for a minute");
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

#[test]
fn queue_pairs_share_receives_and_closing_one_loses_none() {
    let Some(device) = device() else { return };
    let (mut left, mut right) = (Side::new(&device), Side::new(&device));
    let mut receives: SharedReceiveQueue<Piece> =
        SharedReceiveQueue::new(&right.pd, 16, 1).expect("a shared queue");
    receives.attach(&right.region).expect("the same domain");
    let (mut peers, mut sharing) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let b: UnconnectedQueuePair<Piece, SharedReceives> =
            UnconnectedQueuePair::with_shared_receives(
                &right.pd,
                &right.queue,
                right.port,
                &config(),
                &receives,
            )
            .expect("a queue pair");
        let a = left.unconnected();
        let (at_a, at_b) = (a.endpoint(), b.endpoint());
        peers.push(a.connect(&at_b, &options()).expect("connected"));
        sharing.push(b.connect(&at_a, &options()).expect("connected"));
    }
    for _ in 0..8 {
        let piece = right.filled(0);
        receives.post_receive(piece, &whole()).expect("room");
    }
    receives.arm_limit(6).expect("armed");
    assert_eq!(receives.query().expect("asked").limit, 6);
    for (pair, byte) in [(2, 1), (0, 2), (1, 3), (2, 4)] {
        let payload = left.filled(byte);
        send(&mut peers[pair], payload, 100);
        let done = left.next();
        sent(peers[pair].settle(done)).0.expect("sent");
        let SettledShared::Received(got) = receives.settle(right.next()) else {
            panic!("not of the shared queue");
        };
        assert_eq!(got.qp_number, sharing[pair].qp_number());
        assert_eq!(got.outcome.expect("received").bytes, 100);
        assert!(got.payload[..100].iter().all(|found| *found == byte));
        right.pieces.push(got.payload);
    }
    let event = event_of(&right.context, EventKind::SharedReceiveLimit);
    assert_eq!(event.subject, Subject::SharedReceiveQueue(receives.id()));

    // One message arrives and isn't looked at before its queue pair is closed.
    let payload = left.filled(7);
    send(&mut peers[0], payload, 100);
    let done = left.next();
    sent(peers[0].settle(done)).0.expect("sent");
    let closing = sharing.remove(0);
    let mut back = Vec::new();
    let ended = closing.close_shared(
        &mut right.queue,
        PATIENCE,
        |done| back.push(receives.settle(done)),
        drop,
    );
    assert!(ended.expect("closed"), "its last receive was taken");
    assert!(matches!(
        back.pop(),
        Some(SettledShared::Received(got)) if got.payload[0] == 7 && got.outcome.is_ok()
    ));
    assert_eq!(receives.outstanding(), 3);
    // The others go on.
    let payload = left.filled(8);
    send(&mut peers[1], payload, 100);
    let done = left.next();
    sent(peers[1].settle(done)).0.expect("sent");
    assert!(matches!(
        receives.settle(right.next()),
        SettledShared::Received(got) if got.payload[0] == 8
    ));
    drop((receives, sharing));
}

#[test]
fn datagrams_arrive_with_their_senders_address_and_are_answered() {
    let Some(device) = device() else { return };
    let (mut left, mut right) = (Side::new(&device), Side::new(&device));
    let config = DatagramConfig {
        queue_key: 0x1234,
        ..DatagramConfig::default()
    };
    let make = |side: &Side| {
        let mut made: DatagramQueuePair<Piece, Piece> =
            DatagramQueuePair::new(&side.pd, &side.queue, side.port, &config).expect("made");
        made.attach(&side.region).expect("the same domain");
        made
    };
    let (mut a, mut b) = (make(&left), make(&right));
    let to = |side: &Side, address: &DatagramAddress| {
        AddressHandle::new(&side.pd, &side.port, address, &PathOptions::default())
            .expect("a handle")
    };
    let peer = a.add_peer(to(&left, &b.address())).expect("added");
    let target = right.filled(0xff);
    b.post_receive(target, &whole()).expect("posted");
    let payload = left.filled(3);
    a.send(payload, peer, &[Segment::new(0, 1000)], Some(42))
        .expect("sent");
    let SettledDatagram::Received(got) = b.settle(right.next()) else {
        panic!("not a received datagram");
    };
    let datagram = got.outcome.expect("received");
    assert_eq!((datagram.bytes, datagram.immediate), (1000, Some(42)));
    assert!(got.payload[..1000].iter().all(|byte| *byte == 3));
    assert_eq!(got.payload[1000], 0xff);
    let back = datagram.sender.address(0x1234).expect("an address");
    assert_eq!(back, a.address());
    let SettledDatagram::Sent(done) = a.settle(left.next()) else {
        panic!("not a sent datagram");
    };
    done.outcome.expect("sent");

    // The answer is as long as a packet can be.
    let peer = b.add_peer(to(&right, &back)).expect("added");
    a.post_receive(done.payload, &whole()).expect("posted");
    let longest = [Segment::new(0, b.max_bytes())];
    b.send(got.payload, peer, &longest, None).expect("sent");
    let SettledDatagram::Received(answer) = a.settle(left.next()) else {
        panic!("not a received datagram");
    };
    assert_eq!(answer.outcome.expect("received").bytes, b.max_bytes());
    a.post_receive(answer.payload, &whole()).expect("posted");
    a.fail().expect("to the error state");
    while !a.is_drained() {
        let SettledDatagram::Received(flushed) = a.settle(left.next()) else {
            panic!("only a receive is left");
        };
        assert_eq!(
            flushed.outcome.expect_err("flushed").status,
            Status::Flushed
        );
    }
}

fn link(state: &str) {
    let net_device = format!("tv{}", std::process::id());
    let set = Command::new("ip")
        .args(["link", "set", &net_device, state])
        .status();
    assert!(set.expect("ip").success());
}

#[test]
fn a_port_that_goes_down_and_comes_back_is_reported() {
    let Some(device) = device() else { return };
    let side = Side::new(&device);
    link("down");
    let down = event_of(&side.context, EventKind::PortError);
    link("up");
    let up = event_of(&side.context, EventKind::PortActive);
    assert_eq!((down.port(), up.port()), (Some(1), Some(1)));
    // The addresses come back a moment later; the next test needs them.
    let deadline = Instant::now() + PATIENCE;
    let kind = GidChoice::Kind(GidKind::RoceV2Ipv4);
    while side.context.local_port(None, &kind).is_err() {
        assert!(Instant::now() < deadline, "the GID doesn't come back");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn objects_with_events_outstanding_go_without_waiting() {
    let Some(device) = device() else { return };
    let going = thread::spawn(move || {
        for taken in [false, true] {
            let (mut left, mut a, mut right, b) = connected(&device);
            left.queue.request_notification().expect("armed");
            right.queue.request_notification().expect("armed");
            // The peer refuses this, which some devices report as an event too.
            let wrong = RemoteAddress {
                address: 4096,
                rkey: 1,
            };
            let payload = left.filled(1);
            let mut batch = a.batch();
            batch
                .push(payload, &[Work::write(wrong, &whole()).signaled()])
                .expect("room");
            batch.commit().expect("posted");
            let done = left.next();
            sent(a.settle(done)).0.expect_err("refused");
            if taken {
                left.queue.drain_events().expect("drained");
                while left.context.next_event().expect("sound").is_some() {}
            }
            drop((a, b));
            drop((left, right));
        }
    });
    let deadline = Instant::now() + PATIENCE;
    while !going.is_finished() {
        assert!(Instant::now() < deadline, "dropping waits for ever");
        thread::sleep(Duration::from_millis(10));
    }
    going.join().expect("it ended");
}

#[test]
fn a_window_is_open_to_one_peer_until_it_is_closed() {
    let Some(device) = device() else { return };
    let rights = RemoteAccess {
        write: true,
        ..RemoteAccess::default()
    };
    for interface in [PostingInterface::Extended, PostingInterface::Classic] {
        let (mut left, mut right) = (Side::new(&device), Side::new(&device));
        let config = QueuePairConfig {
            interface: Some(interface),
            ..config()
        };
        let make = |side: &Side| {
            let mut pair: UnconnectedQueuePair<Piece, Piece> =
                UnconnectedQueuePair::new(&side.pd, &side.queue, side.port, &config)
                    .expect("a queue pair");
            pair.attach(&side.region).expect("the same domain");
            pair
        };
        let (a, b) = (make(&left), make(&right));
        let (at_a, at_b) = (a.endpoint(), b.endpoint());
        let mut a = a.connect(&at_b, &options()).expect("connected");
        let mut b = b.connect(&at_a, &options()).expect("connected");
        let (mapping, mut pieces) = Mapping::split(PIECE, 1).expect("memory");
        let region = MemoryRegion::register_for_windows(&right.pd, mapping).expect("a region");
        b.attach(&region).expect("the same domain");

        let window = MemoryWindow::new(&right.pd).expect("a window");
        let piece = pieces.pop().expect("a piece");
        let open = b
            .open_window(window, piece, Segment::new(64, 128), rights)
            .expect("opened");
        sent(b.settle(right.next())).0.expect("bound");
        let remote = open.remote();
        let mut write = |at: RemoteAddress, byte: u8| {
            let payload = left.filled(byte);
            let mut batch = a.batch();
            let segments = [Segment::new(0, 128)];
            batch
                .push(payload, &[Work::write(at, &segments).signaled()])
                .expect("room");
            batch.commit().expect("posted");
            let (outcome, _) = sent(a.settle(left.next()));
            outcome.map(drop).map_err(|error| error.status)
        };
        let at = remote.at(0, 128).expect("inside");
        write(at, 7).expect("open");
        let closing = b.close_window(open).expect("posted");
        sent(b.settle(right.next())).0.expect("invalidated");
        let closed = closing.finish(&b).expect("settled");
        assert_eq!(closed.payload[64..192], [7; 128]);
        assert_eq!((closed.payload[63], closed.payload[192]), (0, 0));

        let again = closed.window.expect("the queue pair is well");
        let open = b
            .open_window(again, closed.payload, Segment::new(64, 128), rights)
            .expect("opened again");
        sent(b.settle(right.next())).0.expect("bound");
        write(open.remote().at(0, 128).expect("inside"), 8).expect("open");
        assert_eq!(write(at, 9), Err(Status::RemoteAccess), "the old key");
        let payload = open.revoke().expect("destroyed");
        assert_eq!(payload[64..192], [8; 128]);
    }
}

/// Forks; the child runs `work` and ends with 0 if that is true, once `go` is closed.
fn child(go: [i32; 2], done: [i32; 2], work: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: the child runs `work`, which needs no lock of another thread's but the allocator's, which
    // glibc makes usable after a fork, and then ends without running anything else.
    match unsafe { libc::fork() } {
        0 => {
            let held = work();
            let mut byte = [0u8];
            // SAFETY: descriptors of this process and one byte of ours; then the end of the child.
            unsafe {
                libc::write(done[1], byte.as_ptr().cast(), 1);
                libc::close(go[1]);
                libc::read(go[0], byte.as_mut_ptr().cast(), 1);
                libc::_exit(i32::from(!held))
            }
        }
        child => child,
    }
}

fn pipe() -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    ends
}

#[test]
fn after_a_fork_the_parent_sees_its_data_and_the_child_can_do_no_harm() {
    let Some(device) = device() else { return };
    let support = fork_support().expect("the library");
    assert_eq!(
        support,
        ForkSupport::Unneeded,
        "this kernel copies pinned pages"
    );
    assert_eq!(prepare_fork().expect("nothing to do"), support);
    let (mut left, mut a, mut right, mut b) = connected(&device);
    let target = right.filled(0);
    b.post_receive(target, &whole())
        .expect("posted before the fork");
    let mut payload = left.filled(1);
    let (go, done) = (pipe(), pipe());
    let mut inherited = Some((left, a));
    let pid = child(go, done, || {
        let Some((left, a)) = inherited.take() else {
            return false;
        };
        let refused = matches!(a.state(), Err(VerbsError::Forked { .. }))
            && matches!(
                ProtectionDomain::new(&left.context),
                Err(VerbsError::Forked { .. })
            );
        drop((a, left));
        refused
    });
    let mut byte = [0u8];
    // SAFETY: a descriptor and a byte of ours: waits until the child has dropped everything.
    let said = unsafe { libc::read(done[0], byte.as_mut_ptr().cast(), 1) };
    assert_eq!(said, 1);
    (left, a) = inherited.expect("the parent has it");
    // Written while the child lives and shares the page: the adapter must see the parent's.
    payload.fill(9);
    send(&mut a, payload, PIECE as u32);
    let completion = left.next();
    sent(a.settle(completion)).0.expect("sent");
    let got = received(b.settle(right.next()));
    got.outcome.expect("received");
    assert!(
        got.payload.iter().all(|byte| *byte == 9),
        "what was written after the fork"
    );
    // SAFETY: lets the child end, and waits for it.
    let status = unsafe {
        let mut status = 0;
        libc::close(go[1]);
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    };
    assert_eq!(status, 0, "the child was refused everything");
    // Also with the child gone.
    b.post_receive(got.payload, &whole()).expect("posted");
    let payload = left.filled(5);
    send(&mut a, payload, 8);
    let got = received(b.settle(right.next()));
    assert!(got.outcome.is_ok() && got.payload[0] == 5);
}
