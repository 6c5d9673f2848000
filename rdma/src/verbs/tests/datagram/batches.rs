//! Batches of datagrams, inline ones, and those that are posted unsignalled.

use super::*;

/// A queue pair for datagrams to itself, and its name for that.
fn to_itself(side: &Side, config: &DatagramConfig) -> (DatagramPair, DatagramPeer) {
    let mut made = datagrams(side, config);
    let own = made.address();
    let peer = made.add_peer(handle(side, &own)).expect("added");
    (made, peer)
}

const BOTH: [PostingInterface; 2] = [PostingInterface::Extended, PostingInterface::Classic];

#[test]
fn a_batch_of_datagrams_goes_to_several_peers_and_comes_back_with_one_completion() {
    for interface in BOTH {
        let mut left = side("mock0", 64);
        let config = DatagramConfig {
            send_depth: 8,
            receive_depth: 8,
            interface: Some(interface),
            ..DatagramConfig::default()
        };
        let mut a = datagrams(&left, &config);
        assert_eq!(a.granted().interface, interface);
        let mut others: Vec<(Side, DatagramPair)> = Vec::new();
        let mut peers = Vec::new();
        for _ in 0..3 {
            let mut right = side("mock0", 64);
            let mut b = datagrams(&right, &config);
            let target = right.filled(0xff);
            b.post_receive(target, &[Segment::new(0, 64)])
                .expect("posted");
            peers.push(a.add_peer(handle(&left, &b.address())).expect("added"));
            others.push((right, b));
        }
        let segments = [Segment::new(0, 8)];
        let payloads: Vec<Piece> = (1..=3).map(|byte| left.filled(byte)).collect();
        let mut batch = a.batch();
        for (index, (payload, peer)) in payloads.into_iter().zip(&peers).enumerate() {
            let datagram = DatagramWork::with_immediate(index as u32, &segments);
            let datagram = if index == 2 {
                datagram.signaled()
            } else {
                datagram
            };
            batch.push(payload, *peer, datagram).expect("room");
        }
        assert_eq!(batch.len(), 3);
        assert!(others[0].0.queue.poll().expect("sound").is_none());
        assert_eq!(batch.commit().expect("sent"), 3);
        for (index, (right, b)) in others.iter_mut().enumerate() {
            let got = received(b.settle(right.next()));
            let datagram = got.outcome.expect("received");
            assert_eq!(datagram.immediate, Some(index as u32));
            assert_eq!(got.payload[..8], [index as u8 + 1; 8]);
        }
        assert!(!a.remove_peer(peers[0]), "nobody has said that it is done");
        let SettledDatagram::Sent(sent) = a.settle(left.next()) else {
            panic!("not a sent datagram");
        };
        assert!(sent.outcome().is_ok());
        let back: Vec<u8> = sent.map(|piece| piece[0]).collect();
        assert_eq!(back, [1, 2, 3]);
        assert!(left.queue.poll().expect("sound").is_none());
        assert!(peers.into_iter().all(|peer| a.remove_peer(peer)));
    }
}

#[test]
fn a_queue_of_unsignalled_datagrams_never_fills_up_for_good() {
    for interface in BOTH {
        let mut left = side("mock0", 64);
        let (mut a, peer) = to_itself(
            &left,
            &DatagramConfig {
                send_depth: 4,
                receive_depth: 1,
                interface: Some(interface),
                ..DatagramConfig::default()
            },
        );
        for round in 0..100 {
            let payload = left.pieces.pop().expect("pieces keep coming back");
            let mut batch = a.batch();
            batch
                .push(payload, peer, DatagramWork::new(&[Segment::new(0, 8)]))
                .expect("room");
            batch.commit().expect("sent");
            while let Some(done) = left.queue.poll().expect("sound") {
                if let SettledDatagram::Sent(sent) = a.settle(done) {
                    left.pieces.extend(sent);
                }
            }
            assert!(a.send_room() >= 2, "round {round}");
        }
    }
}

#[test]
fn short_datagrams_are_copied_when_posted() {
    for interface in BOTH {
        let mut left = side("mock0", 64);
        let (mut a, peer) = to_itself(
            &left,
            &DatagramConfig {
                send_depth: 4,
                receive_depth: 4,
                segments: 2,
                inline_bytes: 64,
                interface: Some(interface),
                ..DatagramConfig::default()
            },
        );
        assert_eq!(a.granted().inline_bytes, 64);
        let one = [Segment::new(0, 64)];
        let two = [Segment::new(0, 16), Segment::new(100, 48)];
        let long = [Segment::new(0, 65)];
        for (byte, segments) in [(1, &one[..]), (2, &two[..]), (3, &long[..])] {
            let target = left.filled(0xff);
            a.post_receive(target, &[Segment::new(0, 128)])
                .expect("posted");
            let payload = left.filled(byte);
            a.send(payload, peer, segments, None).expect("sent");
            for _ in 0..2 {
                match a.settle(left.next()) {
                    SettledDatagram::Received(got) => {
                        let bytes = got.outcome.expect("received").bytes as usize;
                        assert_eq!(bytes, if byte == 3 { 65 } else { 64 });
                        assert!(got.payload[..bytes].iter().all(|found| *found == byte));
                        left.pieces.push(got.payload);
                    }
                    SettledDatagram::Sent(sent) => left.pieces.extend(sent),
                    SettledDatagram::Other(_) | SettledDatagram::Stale => panic!("it is ours"),
                }
            }
        }
    }
}

#[test]
fn a_batch_of_datagrams_that_is_refused_or_dropped_or_forgotten_sends_nothing() {
    for interface in BOTH {
        let mut left = side("mock0", 64);
        let (mut a, peer) = to_itself(
            &left,
            &DatagramConfig {
                send_depth: 8,
                receive_depth: 1,
                interface: Some(interface),
                ..DatagramConfig::default()
            },
        );
        let segments = [Segment::new(0, 8)];
        let datagram = DatagramWork::new(&segments);
        let mut batch = a.batch();
        batch.push(left.filled(1), peer, datagram).expect("room");
        drop(batch);
        assert!(a.is_drained());
        assert!(a.remove_peer(peer), "none is on its way");
        let own = a.address();
        let peer = a.add_peer(handle(&left, &own)).expect("added");

        mock::refuse_sends_after(a.qp_number(), 0, libc::EIO);
        let mut batch = a.batch();
        for byte in [2, 3] {
            batch.push(left.filled(byte), peer, datagram).expect("room");
        }
        let error = batch.commit().expect_err("refused");
        let back: Vec<u8> = error.payloads.iter().map(|piece| piece[0]).collect();
        assert_eq!((back.as_slice(), error.posted), ([2, 3].as_slice(), 0));

        let mut batch = a.batch();
        batch.push(left.filled(4), peer, datagram).expect("room");
        std::mem::forget(batch);
        assert!(!a.remove_peer(peer), "it is not known to be done");
        let payload = left.filled(5);
        a.send(payload, peer, &segments, None).expect("sent");
        let SettledDatagram::Sent(sent) = a.settle(left.next()) else {
            panic!("not a sent datagram");
        };
        let back: Vec<u8> = sent.map(|piece| piece[0]).collect();
        assert_eq!(back, [4, 5]);
        assert!(a.remove_peer(peer));
    }
}

#[test]
fn unsignalled_datagrams_come_back_from_a_failed_queue_pair_with_what_became_of_them() {
    for interface in BOTH {
        let mut left = side("mock0", 64);
        let (mut a, peer) = to_itself(
            &left,
            &DatagramConfig {
                send_depth: 16,
                receive_depth: 1,
                interface: Some(interface),
                ..DatagramConfig::default()
            },
        );
        let segments = [Segment::new(0, 8)];
        for byte in 1..=4 {
            if byte == 3 {
                mock::hold(a.qp_number());
            }
            let mut batch = a.batch();
            let payload = left.filled(byte);
            batch
                .push(payload, peer, DatagramWork::new(&segments))
                .expect("room");
            batch.commit().expect("sent");
        }
        a.fail().expect("to the error state");
        assert!(!a.remove_peer(peer));
        let mut back = Vec::new();
        while let Some(done) = left.queue.poll().expect("sound") {
            let SettledDatagram::Sent(mut sent) = a.settle(done) else {
                panic!("not a sent datagram");
            };
            while let Some((piece, outcome)) = sent.next_outcome() {
                back.push((piece[0], outcome.is_ok()));
            }
        }
        assert_eq!(back, [(1, true), (2, true), (3, false), (4, false)]);
        assert!(a.is_drained() && a.remove_peer(peer));
        a.fail().expect("once more");
    }
}
