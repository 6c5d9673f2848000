//! What goes, in whatever order, and what stays usable or is kept from harm.

use super::*;

#[test]
fn closing_drains_one_queue_pair_and_passes_on_what_is_of_others() {
    let mut left = side("mock0", 64);
    let (first, second) = (left.unconnected(&config(4)), left.unconnected(&config(4)));
    let (at_first, at_second) = (first.endpoint(), second.endpoint());
    let options = ConnectOptions::default();
    let mut first = first.connect(&at_second, &options).expect("connected");
    let mut second = second.connect(&at_first, &options).expect("connected");
    let receive = left.filled(0);
    second.post_receive(receive, &whole()).expect("posted");
    let payload = left.filled(1);
    let mut batch = first.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    let mut others = Vec::new();
    let drained = first
        .close(&mut left.queue, Duration::from_secs(5), |done| {
            others.push(done)
        })
        .expect("closed");
    assert!(drained);
    let done = others.pop().expect("the receive of the other one");
    assert_eq!(received(second.settle(done)).payload[0], 1);
}

#[test]
fn completions_of_a_queue_pair_that_is_gone_touch_nothing() {
    let (mut left, mut a, mut right, mut b) = connected(&config(4));
    let payload = left.filled(1);
    let receive = right.filled(0);
    b.post_receive(receive, &whole()).expect("posted");
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    drop(a);
    let mut other = left
        .unconnected(&config(4))
        .connect(&b.endpoint(), &Default::default());
    let other = other.as_mut().expect("connected");
    assert!(matches!(other.settle(left.next()), Settled::Stale));
}

#[test]
fn buffers_are_leaked_not_freed_when_the_device_refuses_to_let_go() {
    let (mut left, mut a, right, _b) = connected(&config(4));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::write(at, &whole())])
        .expect("room");
    batch.commit().expect("posted");
    mock::refuse_destruction(a.qp_number(), libc::EIO);
    let region = Arc::downgrade(&left.region);
    drop(a);
    drop(left);
    assert!(
        region.upgrade().is_some(),
        "the region outlives what may still use it"
    );
}

#[test]
fn whatever_is_dropped_first_the_rest_keeps_working() {
    let (left, a, _right, _b) = connected(&config(4));
    let Side {
        context,
        pd,
        queue,
        pieces,
        region,
    } = left;
    drop((context, pd, region, pieces));
    drop(queue);
    assert_eq!(a.state().expect("asked"), QueuePairState::ReadyToSend);
}
