//! Asynchronous events, and objects that go while events of them are under way.

use std::sync::mpsc;
use std::thread;

use super::*;
use crate::sys;

#[test]
fn every_kind_of_event_names_its_object() {
    let (left, a, _right, _b) = connected(&config(2));
    let context = &left.context;
    let ports = [
        (sys::IBV_EVENT_PORT_ACTIVE, EventKind::PortActive),
        (sys::IBV_EVENT_PORT_ERR, EventKind::PortError),
        (sys::IBV_EVENT_LID_CHANGE, EventKind::LidChanged),
        (sys::IBV_EVENT_PKEY_CHANGE, EventKind::PartitionKeyChanged),
        (sys::IBV_EVENT_SM_CHANGE, EventKind::SubnetManagerChanged),
        (
            sys::IBV_EVENT_CLIENT_REREGISTER,
            EventKind::ClientReregister,
        ),
        (sys::IBV_EVENT_GID_CHANGE, EventKind::GidChanged),
    ];
    let pairs = [
        (sys::IBV_EVENT_QP_FATAL, EventKind::QueuePairFatal),
        (sys::IBV_EVENT_QP_REQ_ERR, EventKind::QueuePairRequestError),
        (
            sys::IBV_EVENT_QP_ACCESS_ERR,
            EventKind::QueuePairAccessError,
        ),
        (sys::IBV_EVENT_COMM_EST, EventKind::CommunicationEstablished),
        (sys::IBV_EVENT_SQ_DRAINED, EventKind::SendQueueDrained),
        (sys::IBV_EVENT_PATH_MIG, EventKind::PathMigrated),
        (sys::IBV_EVENT_PATH_MIG_ERR, EventKind::PathMigrationError),
        (
            sys::IBV_EVENT_QP_LAST_WQE_REACHED,
            EventKind::LastReceiveTaken,
        ),
    ];
    let mut expected = Vec::new();
    for (raw, kind) in ports {
        mock::report(context, 1, raw);
        expected.push((kind, Subject::Port(1)));
    }
    for (raw, kind) in pairs {
        mock::report_queue_pair(a.qp_number(), raw);
        expected.push((kind, Subject::QueuePair(a.qp_number())));
    }
    mock::report(context, 0, sys::IBV_EVENT_DEVICE_FATAL);
    expected.push((EventKind::DeviceFatal, Subject::Device));
    let mut found = Vec::new();
    while let Some(event) = context.next_event().expect("a sound device") {
        assert!(!event.to_string().contains("unknown"), "{event}");
        found.push((event.kind, event.subject));
    }
    assert_eq!(found, expected);
}

#[test]
fn a_completion_queue_that_overran_is_named() {
    let (left, mut a, mut right, b) = connected(&config(4));
    let mut small = CompletionQueue::new(&right.context, 1).expect("a queue");
    assert_eq!(small.capacity(), 1);
    // A queue pair can't overrun its queue; so let the mock's queue lose entries by itself.
    mock::overrun_queue(&small);
    let event = right.context.next_event().expect("sound").expect("one");
    assert_eq!(event.kind, EventKind::CompletionQueueError);
    assert_eq!(event.subject, Subject::CompletionQueue(small.id()));
    assert_ne!(small.id(), right.queue.id());
    let broken = small.poll().expect_err("completions were lost");
    assert!(broken.to_string().contains("overran"), "{broken}");
    // The other queues of the device go on.
    drop(b);
    let payload = left_payload(left, &mut a);
    assert!(payload.is_ok() && right.queue.poll().expect("sound").is_none());
}

fn left_payload(mut left: Side, a: &mut Pair) -> Result<(), VerbsError> {
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    left.queue.poll().map(drop)
}

/// Ends with a failure, and not never, when `work` doesn't end.
fn within_a_minute(work: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let worker = thread::spawn(move || {
        work();
        done.send(()).ok();
    });
    let ended = ended.recv_timeout(Duration::from_secs(60));
    assert!(ended.is_ok(), "it waits for ever, or it panicked");
    worker.join().expect("it ended");
}

#[test]
fn an_object_with_events_outstanding_goes_without_waiting() {
    within_a_minute(|| {
        let (mut left, a, right, b) = connected(&config(2));
        // One event not taken, one taken: of the queue pair and of the completion queue.
        for _ in 0..2 {
            mock::report_queue_pair(a.qp_number(), sys::IBV_EVENT_QP_ACCESS_ERR);
        }
        left.context.next_event().expect("sound").expect("one");
        left.queue.request_notification().expect("armed");
        let mut a = a;
        a.fail().expect("to the error state");
        let payload = left.filled(0);
        a.post_receive(payload, &whole()).expect("posted, flushed");
        assert_eq!(left.queue.drain_events().expect("drained"), 1);
        mock::overrun_queue(&left.queue);
        drop((a, b));
        let context = Arc::clone(&left.context);
        drop((left, right));
        // What was not taken is gone with its object.
        assert_eq!(context.next_event().expect("sound"), None);
    });
}

#[test]
fn objects_go_while_another_thread_takes_their_events() {
    within_a_minute(|| {
        let watched = side("mock0", 4096);
        let context = Arc::clone(&watched.context);
        let (stop, stopped) = mpsc::channel::<()>();
        let taker = thread::spawn(move || {
            let mut taken = 0u32;
            loop {
                match context.next_event().expect("a sound device") {
                    Some(_) => taken += 1,
                    None if stopped.try_recv().is_ok() => return taken,
                    None => thread::yield_now(),
                }
            }
        });
        for _ in 0..300 {
            let pair = watched.unconnected(&config(2));
            for _ in 0..3 {
                mock::report_queue_pair(pair.endpoint().qp_number, sys::IBV_EVENT_QP_FATAL);
            }
            drop(pair);
        }
        stop.send(()).expect("the taker is there");
        assert!(taker.join().expect("it ended") <= 900);
    });
}
