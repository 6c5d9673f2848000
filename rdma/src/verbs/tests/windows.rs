//! Memory windows: open to one peer, one range, until they are closed, and then never again.

use super::*;

const RIGHTS: RemoteAccess = RemoteAccess {
    write: true,
    read: false,
    atomic: false,
};

/// Two connected ends, and pieces on the right that may lie behind windows.
fn with_windows() -> (Side, Pair, Side, Pair, Vec<Piece>) {
    let (left, a, right, mut b) = connected(&config(8));
    let (mapping, pieces) = Mapping::split(PIECE, 4).expect("memory");
    let region = MemoryRegion::register_for_windows(&right.pd, mapping).expect("a region");
    assert_eq!(region.remote(), None, "no peer reaches it without a window");
    b.attach(&region).expect("the same domain");
    (left, a, right, b, pieces)
}

fn write(
    side: &mut Side,
    pair: &mut Pair,
    at: RemoteAddress,
    byte: u8,
    len: u32,
) -> Result<(), Status> {
    let payload = side.filled(byte);
    let mut batch = pair.batch();
    batch
        .push(
            payload,
            &[Work::write(at, &[Segment::new(0, len)]).signaled()],
        )
        .expect("room");
    batch.commit().expect("posted");
    let sent = sent(pair.settle(side.next()));
    let outcome = sent.outcome().map(|_| ()).map_err(|error| error.status);
    side.pieces.extend(sent);
    outcome
}

fn open(right: &Side, b: &mut Pair, payload: Piece) -> OpenWindow<Piece> {
    let window = MemoryWindow::new(&right.pd).expect("a window");
    b.open_window(window, payload, Segment::new(64, 128), RIGHTS)
        .expect("opened")
}

/// As [`open`], with a window of the other type.
fn open_to_all(right: &Side, b: &mut Pair, payload: Piece) -> OpenWindow<Piece> {
    let window = MemoryWindow::of_type_1(&right.pd).expect("a window");
    b.open_window(window, payload, Segment::new(64, 128), RIGHTS)
        .expect("opened")
}

fn settle_all(side: &mut Side, pair: &mut Pair) {
    while let Some(done) = side.queue.poll().expect("sound") {
        drop(sent(pair.settle(done)));
    }
}

#[test]
fn a_window_lets_the_peer_write_its_range_and_gives_it_back_closed() {
    for open in [open, open_to_all] {
        opens_and_closes(open);
    }
}

fn opens_and_closes(open: fn(&Side, &mut Pair, Piece) -> OpenWindow<Piece>) {
    let (mut left, mut a, mut right, mut b, mut pieces) = with_windows();
    let window = open(&right, &mut b, pieces.pop().expect("a piece"));
    let remote = window.remote();
    assert_eq!(remote.len, 128);
    write(
        &mut left,
        &mut a,
        remote.at(0, 128).expect("inside"),
        7,
        128,
    )
    .expect("open");
    let mut seen = [0; 128];
    assert!(window.copy_out(0, &mut seen) && !window.copy_out(1, &mut seen));
    assert_eq!(seen, [7; 128]);

    let closing = b.close_window(window).expect("posted");
    let closing = closing.finish(&b).expect_err("not settled yet");
    settle_all(&mut right, &mut b);
    let closed = closing.finish(&b).expect("settled");
    assert_eq!(
        (closed.payload[63], closed.payload[64], closed.payload[192]),
        (0, 7, 0)
    );
    // Opened again it has another key, and the old one opens nothing.
    let again = closed.window.expect("the queue pair is well");
    let window = b
        .open_window(again, closed.payload, Segment::new(64, 128), RIGHTS)
        .expect("opened again");
    assert_ne!(window.remote().rkey, remote.rkey);
    write(
        &mut left,
        &mut a,
        window.remote().at(0, 8).expect("inside"),
        8,
        8,
    )
    .expect("open");
    let late = write(&mut left, &mut a, remote.at(0, 8).expect("inside"), 9, 8);
    assert_eq!(late, Err(Status::RemoteAccess));
    assert!(window.copy_out(0, &mut seen) && seen[0] == 8);
}

#[test]
fn only_the_peer_of_its_queue_pair_comes_in_and_only_to_its_range() {
    let (_left, _a, right, mut b, mut pieces) = with_windows();
    let mut other = side("mock0", 64);
    let (strange, own) = (other.unconnected(&config(4)), right.unconnected(&config(4)));
    let (at_strange, at_own) = (strange.endpoint(), own.endpoint());
    let options = ConnectOptions::default();
    let mut strange = strange.connect(&at_own, &options).expect("connected");
    let _own = own.connect(&at_strange, &options).expect("connected");
    let window = open(&right, &mut b, pieces.pop().expect("a piece"));
    let at = window.remote().at(0, 8).expect("inside");
    let refused = write(&mut other, &mut strange, at, 1, 8);
    assert_eq!(
        refused,
        Err(Status::RemoteAccess),
        "the same domain, another queue pair"
    );
    let mut seen = [1; 8];
    assert!(window.copy_out(0, &mut seen) && seen == [0; 8]);

    for beyond in [128 - 7, u64::MAX] {
        let (mut left, mut a, right, mut b, mut pieces) = with_windows();
        let window = open(&right, &mut b, pieces.pop().expect("a piece"));
        let at = window.remote().at(0, 8).expect("inside").offset(beyond);
        let refused = write(&mut left, &mut a, at, 1, 8);
        assert_eq!(
            refused,
            Err(Status::RemoteAccess),
            "{beyond} past its start"
        );
    }
}

#[test]
fn a_failed_queue_pair_gives_the_memory_back_without_the_window() {
    let (_left, _a, mut right, mut b, mut pieces) = with_windows();
    let window = open(&right, &mut b, pieces.pop().expect("a piece"));
    mock::hold(b.qp_number());
    let closing = b.close_window(window).expect("posted");
    b.fail().expect("to the error state");
    settle_all(&mut right, &mut b);
    let closed = closing.finish(&b).expect("destroyed instead");
    assert!(closed.window.is_none());
    assert_eq!(closed.payload.len(), PIECE);
    // One that was open when its queue pair went can be revoked.
    let (_left, _a, right, mut b, mut pieces) = with_windows();
    let window = open(&right, &mut b, pieces.pop().expect("a piece"));
    drop(b);
    assert_eq!(window.revoke().expect("destroyed").len(), PIECE);
}

#[test]
fn a_window_that_is_dropped_is_shut_and_one_that_stays_open_keeps_its_memory() {
    let (mut left, mut a, right, mut b, mut pieces) = with_windows();
    let window = open(&right, &mut b, pieces.pop().expect("a piece"));
    let at = window.remote().at(0, 8).expect("inside");
    drop(window);
    assert_eq!(
        write(&mut left, &mut a, at, 1, 8),
        Err(Status::RemoteAccess)
    );

    let (mut left, mut a, right, mut b, mut pieces) = with_windows();
    let window = open(&right, &mut b, pieces.pop().expect("a piece"));
    let at = window.remote().at(0, 8).expect("inside");
    mock::refuse_window_end(&right.context, libc::EIO);
    let window = window.revoke().expect_err("the device refuses");
    mock::refuse_window_end(&right.context, libc::EIO);
    drop(window);
    drop(pieces);
    // The peer can still write there, so the memory must still be there.
    write(&mut left, &mut a, at, 1, 8).expect("still open");
}

#[test]
fn what_does_not_go_together_is_refused_and_comes_back() {
    let (_left, mut a, right, mut b, mut pieces) = with_windows();
    let window = MemoryWindow::new(&right.pd).expect("a window");
    let plain = right.pieces.into_iter().next().expect("a piece");
    let failed = b
        .open_window(window, plain, Segment::new(0, 8), RIGHTS)
        .expect_err("not registered for windows");
    assert_eq!(failed.reason, Rejection::NoWindows);
    let piece = pieces.pop().expect("a piece");
    for part in [Segment::new(0, PIECE as u32 + 1), Segment::new(8, 0)] {
        let window = MemoryWindow::new(&right.pd).expect("a window");
        let piece = pieces.pop().expect("a piece");
        let failed = b
            .open_window(window, piece, part, RIGHTS)
            .expect_err("no such part");
        assert!(matches!(failed.reason, Rejection::OutsidePayload { .. }));
    }
    let open = b
        .open_window(failed.window, piece, Segment::new(0, 8), RIGHTS)
        .expect("opened");
    let failed = a.close_window(open).expect_err("of another queue pair");
    assert_eq!(failed.reason, Rejection::NoWindows);
    mock::refuse_sends_after(b.qp_number(), 0, libc::EIO);
    let failed = b
        .close_window(failed.open)
        .expect_err("the provider refuses");
    assert_eq!(failed.reason, Rejection::SendRefused { errno: libc::EIO });
    b.close_window(failed.open).expect("posted");
}

#[test]
fn a_window_of_type_1_is_open_to_its_domain_until_it_is_closed_or_its_queue_pair_fails() {
    let (_left, _a, mut right, mut b, mut pieces) = with_windows();
    let mut other = side("mock0", 64);
    let connect = |other: &Side, own: &Side| {
        let (there, own) = (other.unconnected(&config(4)), own.unconnected(&config(4)));
        let (at_there, at_own) = (there.endpoint(), own.endpoint());
        let options = ConnectOptions::default();
        let there = there.connect(&at_own, &options).expect("connected");
        (there, own.connect(&at_there, &options).expect("connected"))
    };
    let (mut second, _own) = connect(&other, &right);
    let window = open_to_all(&right, &mut b, pieces.pop().expect("a piece"));
    let remote = window.remote();
    let at = remote.at(0, 8).expect("inside");
    write(&mut other, &mut second, at, 5, 8).expect("another queue pair, the same domain");
    let mut seen = [0; 8];
    assert!(window.copy_out(0, &mut seen) && seen == [5; 8]);
    let stranger = side("mock0", 64);
    let (mut third, _apart) = connect(&other, &stranger);
    let refused = write(&mut other, &mut third, at, 6, 8);
    assert_eq!(refused, Err(Status::RemoteAccess), "another domain");

    mock::refuse_sends_after(b.qp_number(), 0, libc::ENOMEM);
    let failed = b.close_window(window).expect_err("the provider refuses");
    let errno = libc::ENOMEM;
    assert_eq!(failed.reason, Rejection::SendRefused { errno });
    let closing = b.close_window(failed.open).expect("posted");
    settle_all(&mut right, &mut b);
    let closed = closing.finish(&b).expect("settled");
    let refused = write(&mut other, &mut second, at, 7, 8);
    assert_eq!(refused, Err(Status::RemoteAccess), "closed");
    assert_eq!(closed.payload[64..72], [5; 8]);

    let again = closed.window.expect("the queue pair is well");
    let part = Segment::new(64, 128);
    let open = b
        .open_window(again, closed.payload, part, RIGHTS)
        .expect("opened again");
    assert_ne!(open.remote().rkey, remote.rkey);
    mock::hold(b.qp_number());
    let closing = b.close_window(open).expect("posted");
    b.fail().expect("to the error state");
    settle_all(&mut right, &mut b);
    let closed = closing.finish(&b).expect("destroyed instead");
    assert!(closed.window.is_none());

    let plain = side("mock2", 64);
    let error = MemoryWindow::of_type_1(&plain.pd).expect_err("it has none");
    let text = error.to_string();
    assert!(text.contains("memory windows of type 1"), "{text}");
}
