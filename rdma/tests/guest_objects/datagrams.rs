//! Datagrams.

use super::*;

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
    let SettledDatagram::Sent(mut done) = a.settle(left.next()) else {
        panic!("not a sent datagram");
    };
    let (payload, outcome) = done.next_outcome().expect("its payload");
    drop(done);
    outcome.expect("sent");

    // The answer is as long as a packet can be.
    let peer = b.add_peer(to(&right, &back)).expect("added");
    a.post_receive(payload, &whole()).expect("posted");
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
