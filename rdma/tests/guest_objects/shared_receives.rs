//! Shared receive queues.

use super::events::event_of;
use super::*;

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
