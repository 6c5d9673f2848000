//! Memory windows.

use super::*;

#[test]
fn a_window_is_open_to_one_peer_until_it_is_closed() {
    let Some(device) = device() else { return };
    for make in [MemoryWindow::new, MemoryWindow::of_type_1] {
        opens_and_closes(&device, make);
    }
}

type Make = fn(&Arc<ProtectionDomain>) -> Result<MemoryWindow, VerbsError>;

fn opens_and_closes(device: &str, make_window: Make) {
    let rights = RemoteAccess {
        write: true,
        ..RemoteAccess::default()
    };
    for interface in [PostingInterface::Extended, PostingInterface::Classic] {
        let (mut left, mut right) = (Side::new(device), Side::new(device));
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

        let window = make_window(&right.pd).expect("a window");
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
