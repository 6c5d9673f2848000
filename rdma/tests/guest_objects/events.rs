//! Asynchronous events.

use std::process::Command;
use std::thread;
use std::time::Instant;

use super::*;

/// Waits for an event of this kind; others are dropped.
pub(super) fn event_of(context: &Context, kind: EventKind) -> AsyncEvent {
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
