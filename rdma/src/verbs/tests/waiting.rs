//! Sleeping until there is a completion: no wake-up is lost, whatever the order of things.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use futures::StreamExt;
use futures::executor::block_on;

use super::*;
use crate::shard::{self, Shard, ShardConfig};
use crate::slab::Slab;

const CYCLES: u32 = 10_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends one message for each time the receiver says that it is about to wait, at a moment that has
/// nothing to do with the receiver's steps.
fn pinger(mut left: Side, mut a: Pair, asked: Arc<AtomicU32>) -> thread::JoinHandle<Pair> {
    thread::spawn(move || {
        let segments = [Segment::new(0, 8)];
        let mut spare = left.filled(1);
        for round in 1..=CYCLES {
            while asked.load(Ordering::Acquire) < round {
                thread::yield_now();
            }
            for _ in 0..(round * 7919) % 97 {
                std::hint::spin_loop();
            }
            let mut batch = a.batch();
            batch
                .push(spare, &[Work::send(&segments).signaled()])
                .expect("room");
            batch.commit().expect("posted");
            let done = left.next();
            let mut back = sent(a.settle(done));
            back.outcome().expect("a receive is posted");
            spare = back.next().expect("the payload");
            drop(back);
        }
        a
    })
}

struct Receiver {
    b: Pair,
    received: u32,
    asked: Arc<AtomicU32>,
}

impl Receiver {
    fn new(right: &mut Side, mut b: Pair) -> Receiver {
        let target = right.filled(0);
        b.post_receive(target, &whole()).expect("posted");
        let asked = Arc::new(AtomicU32::new(0));
        Receiver {
            b,
            received: 0,
            asked,
        }
    }

    fn ask(&self) {
        self.asked.store(self.received + 1, Ordering::Release);
    }

    fn take(&mut self, done: WorkCompletion) {
        let got = received(self.b.settle(done));
        got.outcome.expect("received");
        self.b.post_receive(got.payload, &whole()).expect("posted");
        self.received += 1;
    }
}

#[test]
fn ten_thousand_sleeps_in_poll_lose_no_wake_up() {
    let (left, a, mut right, b) = connected(&config(4));
    let mut receiver = Receiver::new(&mut right, b);
    let pinging = pinger(left, a, Arc::clone(&receiver.asked));
    while receiver.received < CYCLES {
        receiver.ask();
        let done = right.queue.wait(PATIENCE).expect("a sound queue");
        let done = done.unwrap_or_else(|| panic!("round {}: no wake-up", receiver.received));
        receiver.take(done);
    }
    drop(pinging.join().expect("all sent"));
}

#[test]
fn ten_thousand_sleeps_in_the_channel_itself_lose_no_wake_up() {
    let (left, a, mut right, b) = connected(&config(4));
    let mut receiver = Receiver::new(&mut right, b);
    let pinging = pinger(left, a, Arc::clone(&receiver.asked));
    while receiver.received < CYCLES {
        receiver.ask();
        let done = loop {
            if let Some(done) = right.queue.poll().expect("a sound queue") {
                break done;
            }
            if !right.queue.arm().expect("armed") {
                right.queue.sleep_until_notified().expect("woken");
            }
        };
        receiver.take(done);
    }
    drop(pinging.join().expect("all sent"));
}

#[test]
fn one_that_sleeps_without_a_time_limit_is_woken_by_the_end_of_its_connection() {
    let (_left, _a, mut right, mut b) = connected(&config(4));
    let target = right.filled(0);
    b.post_receive(target, &whole()).expect("posted");
    let breaker = b.breaker();
    right.queue.arm().expect("armed");
    let other = thread::spawn(move || breaker.break_off());
    let done = loop {
        right.queue.sleep_until_notified().expect("woken");
        if let Some(done) = right.queue.poll().expect("a sound queue") {
            break done;
        }
    };
    assert!(other.join().expect("it ended").expect("broken off"));
    let got = received(b.settle(done));
    assert_eq!(got.outcome.expect_err("flushed").status, Status::Flushed);
    // Whoever goes back to other ways of waiting finds the queue as they expect it.
    assert_eq!(right.queue.drain_events().expect("drained"), 0);
}

#[test]
fn a_connection_that_is_gone_cannot_be_ended_and_is_not_kept() {
    let (_left, mut a, _right, _b) = connected(&config(4));
    let breaker = a.breaker();
    drop(a);
    assert!(!breaker.break_off().expect("nothing to do"));
}

#[test]
fn who_asked_for_no_notification_does_not_sleep() {
    let mut right = side("mock0", 16);
    right.queue.sleep_until_notified().expect("at once");
    assert_eq!(right.queue.drain_events().expect("none"), 0);
}

fn a_shard() -> Shard {
    let slab = Slab::new("waiting", 4096, 1).expect("a slab");
    Shard::start(ShardConfig::new("waiting", slab)).expect("a shard")
}

fn descriptor(queue: &CompletionQueue) -> Arc<OwnedFd> {
    let fd = queue.event_fd().expect("made with events");
    Arc::new(fd.try_clone_to_owned().expect("a second descriptor"))
}

#[test]
fn ten_thousand_awaits_on_a_shard_lose_no_wake_up() {
    let (left, a, mut right, b) = connected(&config(4));
    let mut receiver = Receiver::new(&mut right, b);
    let pinging = pinger(left, a, Arc::clone(&receiver.asked));
    let queue = right.queue;
    let shard = a_shard();
    let all = shard.on_shard(move || async move {
        let fd = descriptor(&queue);
        let readiness = Watch::new(move || shard::readable(Arc::clone(&fd)));
        let mut completions = Completions::new(queue, readiness);
        while receiver.received < CYCLES {
            receiver.ask();
            let done = completions.completion().await.expect("a sound queue");
            receiver.take(done);
        }
        receiver.received
    });
    assert_eq!(block_on(all), CYCLES);
    drop(pinging.join().expect("all sent"));
}

/// Readiness as an executor of its own might give it: a thread here, for want of one.
struct Polled(Arc<OwnedFd>);

impl Readiness for Polled {
    fn poll_readable(
        &mut self,
        task: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let ready = |fd: &OwnedFd, timeout| {
            poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout).map(|ready| ready > 0)
        };
        if ready(&self.0, PollTimeout::ZERO)? {
            return std::task::Poll::Ready(Ok(()));
        }
        let (fd, waker) = (Arc::clone(&self.0), task.waker().clone());
        thread::spawn(move || {
            ready(&fd, PollTimeout::from(10_000u16)).ok();
            waker.wake();
        });
        std::task::Poll::Pending
    }
}

#[test]
fn a_stream_of_completions_goes_on_after_a_wait_that_was_dropped() {
    let (mut left, mut a, mut right, b) = connected(&config(4));
    let mut receiver = Receiver::new(&mut right, b);
    let fd = descriptor(&right.queue);
    let mut completions = Completions::new(right.queue, Polled(fd));
    // Armed, asleep, given up: the completion that comes later must still be seen.
    {
        let waiting = completions.completion();
        let mut waiting = std::pin::pin!(waiting);
        let mut task = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut task).is_pending());
    }
    for _ in 0..3 {
        let payload = left.filled(1);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::send(&[Segment::new(0, 8)])])
            .expect("room");
        batch.commit().expect("posted");
        let done = block_on(completions.next()).expect("streams don't end");
        receiver.take(done.expect("a sound queue"));
    }
    assert_eq!(receiver.received, 3);
}

#[test]
fn events_of_the_device_can_be_awaited() {
    let context = mock::open("mock0").expect("the mock device");
    let fd = context.async_fd().try_clone_to_owned().expect("a copy");
    let mut events = Events::new(Arc::clone(&context), Polled(Arc::new(fd)));
    let reporter = thread::spawn(move || mock::report_port(&context, 1, true));
    let event = block_on(events.event()).expect("a sound device");
    assert_eq!(event.kind, EventKind::PortActive);
    reporter.join().expect("it ended");
}

#[test]
fn waiting_ends_with_the_time_and_needs_a_queue_with_events() {
    let mut right = side("mock0", 16);
    let waited = right.queue.wait(Duration::from_millis(2));
    assert!(waited.expect("a sound queue").is_none());
    let mut polled = CompletionQueue::new(&right.context, 16).expect("a queue");
    let error = polled.wait(PATIENCE).expect_err("nothing to sleep on");
    assert!(error.to_string().contains("with_events"), "{error}");
    let elsewhere = block_on(shard::readable(descriptor(&right.queue)));
    assert!(elsewhere.is_err(), "this thread is no shard");
}

#[test]
fn a_queue_with_unacknowledged_notifications_goes_without_waiting() {
    // Fewer than are acknowledged together.
    let (mut left, mut a, _right, _b) = connected(&config(4));
    left.queue.request_notification().expect("armed");
    a.fail().expect("to the error state");
    a.post_receive(left.filled(0), &whole()).expect("flushed");
    assert_eq!(left.queue.drain_events().expect("drained"), 1);
    drop((a, left.queue));
}
