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

#[test]
fn datagrams_go_out_in_batches_inline_or_not_with_a_completion_for_the_last() {
    let Some(device) = device() else { return };
    for interface in [PostingInterface::Extended, PostingInterface::Classic] {
        let (mut left, mut right) = (Side::new(&device), Side::new(&device));
        let config = DatagramConfig {
            send_depth: 16,
            receive_depth: 16,
            inline_bytes: 64,
            interface: Some(interface),
            ..DatagramConfig::default()
        };
        let make = |side: &Side| {
            let mut made: DatagramQueuePair<Piece, Piece> =
                DatagramQueuePair::new(&side.pd, &side.queue, side.port, &config).expect("made");
            made.attach(&side.region).expect("the same domain");
            made
        };
        let (mut a, mut b) = (make(&left), make(&right));
        assert_eq!(a.granted().interface, interface);
        assert!(a.granted().inline_bytes >= 64);
        let handle =
            AddressHandle::new(&left.pd, &left.port, &b.address(), &PathOptions::default());
        let peer = a.add_peer(handle.expect("a handle")).expect("added");
        for bytes in [64, 65, 1000] {
            for _ in 0..8 {
                let target = right.filled(0xff);
                b.post_receive(target, &whole()).expect("posted");
            }
            let segments = [Segment::new(0, bytes)];
            let payloads: Vec<Piece> = (1..=8).map(|byte| left.filled(byte)).collect();
            let mut batch = a.batch();
            for (index, payload) in payloads.into_iter().enumerate() {
                let datagram = DatagramWork::with_immediate(index as u32, &segments);
                let datagram = if index == 7 {
                    datagram.signaled()
                } else {
                    datagram
                };
                batch.push(payload, peer, datagram).expect("room");
            }
            assert_eq!(batch.commit().expect("sent"), 8);
            for index in 0..8 {
                let SettledDatagram::Received(got) = b.settle(right.next()) else {
                    panic!("not a received datagram");
                };
                let datagram = got.outcome.expect("received");
                assert_eq!((datagram.bytes, datagram.immediate), (bytes, Some(index)));
                let sent = [index as u8 + 1; 1000];
                assert_eq!(got.payload[..bytes as usize], sent[..bytes as usize]);
                right.pieces.push(got.payload);
            }
            let before = left.pieces.len();
            while left.pieces.len() < before + 8 {
                let SettledDatagram::Sent(sent) = a.settle(left.next()) else {
                    panic!("not a sent datagram");
                };
                assert!(sent.outcome().is_ok());
                left.pieces.extend(sent);
            }
        }
        assert!(a.remove_peer(peer), "all are done");

        // Unsignalled ones come back when the queue pair is failed.
        let handle =
            AddressHandle::new(&left.pd, &left.port, &b.address(), &PathOptions::default());
        let peer = a.add_peer(handle.expect("a handle")).expect("added");
        let mut batch = a.batch();
        for byte in 1..=3 {
            let payload = left.pieces.pop().expect("a piece left");
            let segments = [Segment::new(0, byte)];
            batch
                .push(payload, peer, DatagramWork::new(&segments))
                .expect("room");
        }
        batch.commit().expect("sent");
        a.fail().expect("to the error state");
        while !a.is_drained() {
            if let SettledDatagram::Sent(sent) = a.settle(left.next()) {
                left.pieces.extend(sent);
            }
        }
        assert_eq!(left.pieces.len(), 32);
        assert!(a.remove_peer(peer));
    }
}
