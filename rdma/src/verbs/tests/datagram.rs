//! Datagrams: to several peers, with their senders' addresses, within the MTU, lost without a trace.

mod batches;

use super::*;

type DatagramPair = DatagramQueuePair<Piece, Piece>;

fn datagrams(side: &Side, config: &DatagramConfig) -> DatagramPair {
    let port = side
        .context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    let mut made = DatagramQueuePair::new(&side.pd, &side.queue, port, config).expect("made");
    made.attach(&side.region).expect("the same domain");
    made
}

fn handle(side: &Side, to: &DatagramAddress) -> AddressHandle {
    let port = side
        .context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    AddressHandle::new(&side.pd, &port, to, &PathOptions::default()).expect("a handle")
}

/// A datagram that asked for its completion, alone.
struct Done {
    payload: Piece,
    outcome: Result<(), CompletionError>,
}

fn sent(settled: SettledDatagram<'_, Piece, Piece>) -> Done {
    let SettledDatagram::Sent(mut sent) = settled else {
        panic!("not a sent datagram");
    };
    assert_eq!(sent.work_requests(), 1);
    let (payload, outcome) = sent.next_outcome().expect("its payload");
    Done { payload, outcome }
}

fn received(settled: SettledDatagram<'_, Piece, Piece>) -> ReceivedDatagram<Piece> {
    match settled {
        SettledDatagram::Received(received) => received,
        _ => panic!("not a received datagram"),
    }
}

#[test]
fn a_datagram_arrives_without_its_header_and_can_be_answered() {
    let (mut left, mut right) = (side("mock0", 512), side("mock1", 512));
    let config = DatagramConfig::default();
    let (mut a, mut b) = (datagrams(&left, &config), datagrams(&right, &config));
    let target = right.filled(0xff);
    b.post_receive(target, &[Segment::new(0, 1024)])
        .expect("posted");
    let peer = a.add_peer(handle(&left, &b.address())).expect("added");
    let payload = left.filled(3);
    a.send(payload, peer, &[Segment::new(0, 100)], Some(42))
        .expect("sent");
    let done = sent(a.settle(left.next()));
    assert!(done.outcome.is_ok());
    let got = received(b.settle(right.next()));
    let datagram = got.outcome.expect("received");
    assert_eq!((datagram.bytes, datagram.immediate), (100, Some(42)));
    assert!(got.payload[..100].iter().all(|byte| *byte == 3));
    assert_eq!(got.payload[100], 0xff, "the header lies elsewhere");
    assert_eq!(datagram.sender.qp_number, a.qp_number());
    assert_eq!(datagram.sender.gid, Some(a.address().gid));

    // An answer to the address that the datagram told.
    let back = datagram
        .sender
        .address(config.queue_key)
        .expect("an address");
    assert_eq!(back, a.address());
    a.post_receive(done.payload, &[Segment::new(0, 1024)])
        .expect("posted");
    let peer = b.add_peer(handle(&right, &back)).expect("added");
    b.send(got.payload, peer, &[Segment::new(0, 1)], None)
        .expect("sent");
    assert!(sent(b.settle(right.next())).outcome.is_ok());
    let answer = received(a.settle(left.next())).outcome.expect("received");
    assert_eq!((answer.bytes, answer.immediate), (1, None));
    assert!(a.is_drained() && b.is_drained());
}

#[test]
fn a_datagram_longer_than_the_mtu_is_refused_before_it_is_posted() {
    let mut left = side("mock0", 512);
    let mut a = datagrams(&left, &DatagramConfig::default());
    let own = a.address();
    let peer = a.add_peer(handle(&left, &own)).expect("added");
    assert_eq!(a.max_bytes(), 1024);
    let payload = left.filled(3);
    let rejected = a
        .send(payload, peer, &[Segment::new(0, 1025)], None)
        .expect_err("one byte too many");
    let expected = Rejection::TooLong {
        limit: 1024,
        bytes: 1025,
    };
    assert_eq!(rejected.reason, expected);
    assert_eq!(rejected.payload[0], 3);
    a.send(rejected.payload, peer, &[Segment::new(0, 1024)], None)
        .expect("fits");
}

#[test]
fn a_datagram_with_the_wrong_key_or_without_a_receive_is_lost_and_its_payload_is_not() {
    let (mut left, mut right) = (side("mock0", 512), side("mock1", 512));
    let config = DatagramConfig::default();
    let (mut a, mut b) = (datagrams(&left, &config), datagrams(&right, &config));
    let wrong = DatagramAddress {
        queue_key: 7,
        ..b.address()
    };
    let wrong = a.add_peer(handle(&left, &wrong)).expect("added");
    let peer = a.add_peer(handle(&left, &b.address())).expect("added");
    for (to, posted) in [(wrong, true), (peer, false)] {
        if posted {
            let target = right.filled(0);
            b.post_receive(target, &[Segment::new(0, 64)])
                .expect("posted");
        } else {
            // The one that is posted goes to another datagram.
            let payload = left.filled(2);
            a.send(payload, peer, &[Segment::new(0, 8)], None)
                .expect("sent");
            let done = left.next();
            left.pieces.push(sent(a.settle(done)).payload);
            assert!(received(b.settle(right.next())).outcome.is_ok());
        }
        let payload = left.filled(1);
        a.send(payload, to, &[Segment::new(0, 8)], None)
            .expect("sent");
        let done = sent(a.settle(left.next()));
        assert!(done.outcome.is_ok());
        left.pieces.push(done.payload);
        assert!(right.queue.poll().expect("sound").is_none());
    }
}

#[test]
fn a_destination_goes_only_when_nothing_is_on_its_way_there() {
    let mut left = side("mock0", 1024);
    let mut a = datagrams(&left, &DatagramConfig::default());
    let own = a.address();
    let peer = a.add_peer(handle(&left, &own)).expect("added");
    mock::hold(a.qp_number());
    let payload = left.filled(1);
    a.send(payload, peer, &[Segment::new(0, 8)], None)
        .expect("sent");
    assert!(!a.remove_peer(peer), "a datagram is under way");
    mock::release(a.qp_number());
    let done = sent(a.settle(left.next()));
    assert!(a.remove_peer(peer));
    assert!(!a.remove_peer(peer), "it is gone");
    let rejected = a
        .send(done.payload, peer, &[Segment::new(0, 8)], None)
        .expect_err("gone");
    assert_eq!(rejected.reason, Rejection::UnknownPeer);
    let again = a.add_peer(handle(&left, &own)).expect("added");
    assert_ne!(again, peer, "an old name doesn't reach the new one");
    let mut other = datagrams(&left, &DatagramConfig::default());
    let rejected = other
        .send(rejected.payload, again, &[Segment::new(0, 8)], None)
        .expect_err("of another queue pair");
    assert_eq!(rejected.reason, Rejection::UnknownPeer);
}

#[test]
fn a_failed_queue_pair_gives_all_its_payloads_back() {
    let mut left = side("mock0", 512);
    let mut a = datagrams(&left, &DatagramConfig::default());
    let own = a.address();
    let peer = a.add_peer(handle(&left, &own)).expect("added");
    mock::hold(a.qp_number());
    for _ in 0..3 {
        let payload = left.filled(1);
        a.send(payload, peer, &[Segment::new(0, 8)], None)
            .expect("sent");
        let target = left.filled(2);
        a.post_receive(target, &[Segment::new(0, 64)])
            .expect("posted");
    }
    a.fail().expect("to the error state");
    while let Some(done) = left.queue.poll().expect("sound") {
        let twice = done.duplicate();
        match a.settle(done) {
            SettledDatagram::Sent(sent) => {
                let status = sent.outcome().expect_err("flushed").status;
                assert_eq!(status, Status::Flushed);
                left.pieces.extend(sent);
            }
            SettledDatagram::Received(got) => {
                assert_eq!(got.outcome.expect_err("flushed").status, Status::Flushed);
                left.pieces.push(got.payload);
            }
            SettledDatagram::Other(_) | SettledDatagram::Stale => panic!("it is ours"),
        }
        assert!(matches!(a.settle(twice), SettledDatagram::Stale));
    }
    assert!(a.is_drained());
    assert_eq!(left.pieces.len(), 8);
}

#[test]
fn a_destination_that_can_not_be_reached_is_refused_with_the_reason() {
    let left = side("mock0", 512);
    let a = datagrams(&left, &DatagramConfig::default());
    let port = left
        .context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    let mut to = a.address();
    to.gid = Gid::from("fe80::1".parse::<std::net::IpAddr>().expect("an address"));
    let mixed = AddressHandle::new(&left.pd, &port, &to, &PathOptions::default());
    let mixed = mixed.expect_err("IPv6 from an IPv4 port").to_string();
    assert!(mixed.contains("choose one kind on both"), "{mixed}");
    to.gid = Gid([0; 16]);
    let nowhere = AddressHandle::new(&left.pd, &port, &to, &PathOptions::default());
    let nowhere = nowhere.expect_err("no address").to_string();
    assert!(nowhere.contains("has no GID"), "{nowhere}");
    let right = side("mock0", 512);
    let mut b = datagrams(&right, &DatagramConfig::default());
    let foreign = b.add_peer(handle(&left, &a.address()));
    assert!(matches!(foreign, Err(VerbsError::Foreign { .. })));
}

#[test]
fn a_queue_pair_for_datagrams_keeps_to_the_devices_limits() {
    let left = side("mock0", 512);
    let port = left
        .context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    let make = |config: DatagramConfig| DatagramPair::new(&left.pd, &left.queue, port, &config);
    let wide = make(DatagramConfig {
        segments: 16,
        ..DatagramConfig::default()
    });
    let wide = wide.expect_err("one more is for the header").to_string();
    assert!(wide.contains("16 segments"), "{wide}");
    let deep = make(DatagramConfig {
        receive_depth: 20_000,
        ..DatagramConfig::default()
    });
    assert!(matches!(
        deep,
        Err(VerbsError::OverLimit { wanted: 20_000, .. })
    ));
}
