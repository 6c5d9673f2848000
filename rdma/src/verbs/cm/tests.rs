//! The connection manager without a device: every way a connection can go wrong, in an order that the
//! test decides.

mod failing;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use super::*;
use crate::mock;
use crate::mock::cm::Answer;
use crate::sys;
use crate::verbs::{
    Access, CompletionQueue, Context, GidChoice, Mapping, MemoryRegion, Piece, ProtectionDomain,
    QueuePair, QueuePairConfig, Segment, Settled, UnconnectedQueuePair, Work,
};

/// An address that no other test uses.
fn address() -> SocketAddr {
    static PORTS: AtomicU16 = AtomicU16::new(1000);
    SocketAddr::from(([10, 0, 0, 1], PORTS.fetch_add(1, Ordering::Relaxed)))
}

/// Nothing here waits that long, unless a test fails.
fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn event(kind: u32, status: i32) -> Answer {
    Answer::Event {
        kind,
        status,
        private_data: Vec::new(),
    }
}

struct End {
    queue: CompletionQueue,
    pieces: Vec<Piece>,
    _context: Arc<Context>,
}

fn unconnected() -> (End, UnconnectedQueuePair<Piece, Piece>) {
    let context = mock::open("mock0").expect("the mock device");
    let pd = ProtectionDomain::new(&context).expect("a protection domain");
    let queue = CompletionQueue::new(&context, 16).expect("a queue");
    let port = context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    let config = QueuePairConfig {
        send_depth: 4,
        receive_depth: 4,
        ..QueuePairConfig::default()
    };
    let (mapping, pieces) = Mapping::split(4096, 2).expect("memory");
    let region = MemoryRegion::register(&pd, mapping, Access::LocalWrite).expect("a region");
    let mut pair = UnconnectedQueuePair::new(&pd, &queue, port, &config).expect("a queue pair");
    pair.attach(&region).expect("the same domain");
    let end = End {
        queue,
        pieces,
        _context: context,
    };
    (end, pair)
}

fn connector(address: SocketAddr, deadline: Instant) -> Connector {
    mock::cm::connector(address, &Options::default(), deadline).expect("begun")
}

fn routed(address: SocketAddr) -> Route {
    connector(address, later()).wait().expect("a route")
}

fn asked(address: SocketAddr, greeting: &PrivateData) -> (End, Connecting<Piece, Piece>) {
    let (end, pair) = unconnected();
    let asked = routed(address).connect(pair, greeting).expect("asked");
    (end, asked)
}

type Connected = (End, QueuePair<Piece, Piece>, Connection);

/// Both ends of a connection: the one that asked, and the one that accepted.
fn connected(address: SocketAddr) -> (Connected, Connected, Listener) {
    let mut listener = mock::cm::listener(address, 4).expect("listening");
    let (asking, request) = asked(address, &PrivateData::message(b"hello").expect("fits"));
    let incoming = listener.wait(later()).expect("sound").expect("a request");
    assert_eq!(
        incoming.private_data().decode_message(),
        Ok(b"hello".as_slice())
    );
    let (accepting, pair) = unconnected();
    let answer = PrivateData::message(b"welcome").expect("fits");
    let accepted = incoming
        .accept(pair, &ConnectOptions::default(), &answer, later())
        .expect("accepted");
    let (a, at_a) = request.wait().expect("connected");
    let (b, at_b) = accepted.wait().expect("confirmed");
    ((asking, a, at_a), (accepting, b, at_b), listener)
}

#[test]
fn two_ends_meet_greet_move_bytes_and_part() {
    let at = address();
    let ((mut left, mut a, mut at_a), (mut right, mut b, mut at_b), _listener) = connected(at);
    assert_eq!(at_a.peer_address(), at);
    assert_eq!(
        at_a.private_data().decode_message(),
        Ok(b"welcome".as_slice())
    );
    let whole = [Segment::new(0, 4096)];
    let target = right.pieces.pop().expect("a piece");
    b.post_receive(target, &whole).expect("posted");
    let mut payload = left.pieces.pop().expect("a piece");
    payload.fill(7);
    let mut batch = a.batch();
    let work = [Work::send(&whole).signaled()];
    batch.push(payload, &work).expect("room");
    batch.commit().expect("posted");
    let done = right.queue.poll().expect("sound").expect("a completion");
    let Settled::Received(got) = b.settle(done) else {
        panic!("not a receive");
    };
    got.outcome.expect("received");
    assert!(got.payload.iter().all(|byte| *byte == 7));
    at_a.disconnect().expect("told");
    for end in [&mut at_a, &mut at_b] {
        assert_eq!(end.next_event().expect("sound"), Some(Event::Disconnected));
        assert_eq!(end.next_event().expect("sound"), None);
    }
    at_a.disconnect()
        .expect("once more is nothing, as it is over");
    drop((at_a, at_b));
    let _ = left.queue.poll();
}

/// How the steps up to a route end when a call has this answer.
fn no_route(call: &'static str, answer: Answer) -> ConnectError {
    let at = address();
    mock::cm::answer(call, at, answer);
    let begun = mock::cm::connector(at, &Options::default(), later());
    let error = begun
        .and_then(Connector::wait)
        .map(drop)
        .expect_err("no route");
    assert_eq!(mock::cm::identifiers(at), 0, "nothing is left of it");
    assert!(error.to_string().contains(&at.to_string()), "{error}");
    error
}

/// How a request ends that has this answer.
fn no_answer(answer: Answer) -> ConnectError {
    let at = address();
    let _listener = mock::cm::listener(at, 4).expect("listening");
    mock::cm::answer("rdma_connect", at, answer);
    let (_end, request) = asked(at, &PrivateData::default());
    let error = request.wait().map(drop).expect_err("not connected");
    assert_eq!(mock::cm::identifiers(at), 1, "the listener only");
    error
}

#[test]
fn what_fails_on_the_way_to_a_route_is_told_apart() {
    let resolve = "rdma_resolve_addr";
    let gone = event(sys::RDMA_CM_EVENT_ADDR_ERROR, -libc::EHOSTUNREACH);
    let error = no_route(resolve, gone);
    assert!(matches!(error, ConnectError::Address { .. }), "{error}");
    assert!(error.to_string().contains("ping"), "{error}");
    let none = event(sys::RDMA_CM_EVENT_ROUTE_ERROR, -libc::EINVAL);
    let error = no_route("rdma_resolve_route", none);
    assert!(
        matches!(&error, ConnectError::Route { device, .. } if device == "mock0"),
        "{error}"
    );
    let late = event(sys::RDMA_CM_EVENT_ROUTE_ERROR, -libc::ETIMEDOUT);
    let error = no_route("rdma_resolve_route", late);
    assert!(
        matches!(
            error,
            ConnectError::TimedOut {
                phase: Phase::Route,
                ..
            }
        ),
        "{error}"
    );
    let error = no_route(resolve, Answer::Refused(libc::ENODEV));
    assert!(error.to_string().contains("rdma_ucm"), "{error}");
    let error = no_route("rdma_resolve_route", Answer::Refused(libc::ENETUNREACH));
    assert!(error.to_string().contains("ip route get"), "{error}");
    // Without a reason, and with one that is no errno.
    for status in [0, 1, i32::MIN, i32::MAX] {
        let error = no_route(resolve, event(sys::RDMA_CM_EVENT_ADDR_ERROR, status));
        assert!(matches!(error, ConnectError::Address { .. }), "{error}");
    }
}

#[test]
fn a_neighbour_that_is_slow_is_asked_again_until_the_deadline() {
    let at = address();
    let late = event(sys::RDMA_CM_EVENT_ADDR_ERROR, -libc::ETIMEDOUT);
    for _ in 0..5 {
        mock::cm::answer("rdma_resolve_addr", at, late.clone());
    }
    routed(at);
    // One that never answers.
    let at = address();
    mock::cm::answer("rdma_resolve_addr", at, Answer::Silence);
    let error = connector(at, Instant::now() + Duration::from_millis(20)).wait();
    let error = error.map(drop).expect_err("nobody answers");
    assert!(
        matches!(
            error,
            ConnectError::TimedOut {
                phase: Phase::Address,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("did not answer"), "{error}");
}

#[test]
fn every_step_that_hears_nothing_times_out_and_says_which_it_was() {
    let soon = || Instant::now() + Duration::from_millis(20);
    let phase = |error| match error {
        ConnectError::TimedOut { phase, .. } => phase,
        other => panic!("{other}"),
    };
    let at = address();
    mock::cm::answer("rdma_resolve_route", at, Answer::Silence);
    let error = connector(at, soon()).wait().map(drop);
    assert_eq!(phase(error.expect_err("late")), Phase::Route);

    let at = address();
    let _listener = mock::cm::listener(at, 1).expect("listening");
    mock::cm::answer("rdma_connect", at, Answer::Silence);
    let route = connector(at, soon()).wait().expect("a route");
    let (_end, pair) = unconnected();
    let asked = route.connect(pair, &PrivateData::default()).expect("asked");
    let error = asked.wait().map(drop);
    assert_eq!(phase(error.expect_err("late")), Phase::Answer);

    let at = address();
    let mut listener = mock::cm::listener(at, 1).expect("listening");
    mock::cm::answer("rdma_establish", at, Answer::Silence);
    let (_end, request) = asked_of(at);
    let incoming = listener.next_request().expect("sound").expect("a request");
    let (_other, pair) = unconnected();
    let options = ConnectOptions::default();
    let accepted = incoming.accept(pair, &options, &PrivateData::default(), soon());
    let _believes = request.wait().expect("connected, it thinks");
    let error = accepted.expect("accepted").wait().map(drop);
    assert_eq!(phase(error.expect_err("late")), Phase::Confirmation);
    assert!(listener.wait(soon()).expect("sound").is_none());
}

fn asked_of(at: SocketAddr) -> (End, Connecting<Piece, Piece>) {
    asked(at, &PrivateData::default())
}
