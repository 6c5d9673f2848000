//! Sleeping until there is a completion: no wake-up is lost.

use std::thread;

use futures::executor::block_on;
use trackbed_rdma::shard::{self, Shard, ShardConfig};
use trackbed_rdma::slab::Slab;

use super::*;

const CYCLES: u32 = 10_000;

/// What one completion of a round of ask and answer brings.
enum Step {
    Received(Piece),
    Sent(Vec<Piece>),
}

fn step(pair: &mut Pair, done: WorkCompletion) -> Step {
    match pair.settle(done) {
        Settled::Received(received) => {
            received.outcome.expect("received");
            Step::Received(received.payload)
        }
        Settled::Sent(sent) => {
            sent.outcome().expect("sent");
            Step::Sent(sent.collect())
        }
        Settled::Stale => panic!("a stale completion"),
    }
}

/// Answers each message with one of its own, and so wakes a receiver that may be about to sleep.
fn answers(mut right: Side, mut b: Pair, rounds: u32) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut answered = 0;
        while answered < rounds {
            let done = right.next();
            match step(&mut b, done) {
                Step::Received(piece) => {
                    b.post_receive(piece, &whole()).expect("posted");
                    let answer = right.pieces.pop().expect("a piece");
                    send(&mut b, answer, 8);
                    answered += 1;
                }
                Step::Sent(pieces) => right.pieces.extend(pieces),
            }
        }
        // The last answers are still on their way.
        while b.outstanding().0 > 0 {
            let done = right.next();
            step(&mut b, done);
        }
    })
}

fn asked(left: &mut Side, a: &mut Pair) {
    let payload = left.pieces.pop().expect("a piece");
    send(a, payload, 8);
}

/// Settles one completion; whether it was the answer.
fn settle_one(spare: &mut Vec<Piece>, a: &mut Pair, done: WorkCompletion) -> bool {
    match step(a, done) {
        Step::Received(piece) => {
            a.post_receive(piece, &whole()).expect("posted");
            true
        }
        Step::Sent(pieces) => {
            spare.extend(pieces);
            false
        }
    }
}

fn asking(device: &str) -> (Side, Pair, Side, Pair) {
    let (mut left, mut a, mut right, mut b) = connected(device);
    for (side, pair) in [(&mut left, &mut a), (&mut right, &mut b)] {
        for _ in 0..4 {
            let target = side.filled(0);
            pair.post_receive(target, &whole()).expect("posted");
        }
    }
    (left, a, right, b)
}

#[test]
fn a_thousand_sleeps_in_poll_lose_no_wake_up() {
    let Some(device) = device() else { return };
    let rounds = CYCLES / 10;
    let (mut left, mut a, right, b) = asking(&device);
    let answering = answers(right, b, rounds);
    for round in 0..rounds {
        asked(&mut left, &mut a);
        loop {
            let done = left.queue.wait(PATIENCE).expect("a sound queue");
            let done = done.unwrap_or_else(|| panic!("round {round}: no wake-up"));
            if settle_one(&mut left.pieces, &mut a, done) {
                break;
            }
        }
    }
    answering.join().expect("all answered");
}

#[test]
fn ten_thousand_awaits_on_a_shard_lose_no_wake_up() {
    let Some(device) = device() else { return };
    let (mut left, mut a, right, b) = asking(&device);
    let answering = answers(right, b, CYCLES);
    let slab = Slab::new("waiting", PIECE, 1).expect("a slab");
    let shard = Shard::start(ShardConfig::new("waiting", slab)).expect("a shard");
    let all = shard.on_shard(move || async move {
        let fd = left.queue.event_fd().expect("made with events");
        let fd = Arc::new(fd.try_clone_to_owned().expect("a copy"));
        let readiness = Watch::new(move || shard::readable(Arc::clone(&fd)));
        let mut completions = Completions::new(left.queue, readiness);
        let mut rounds = 0;
        for _ in 0..CYCLES {
            let payload = left.pieces.pop().expect("a piece");
            send(&mut a, payload, 8);
            while !settle_one(
                &mut left.pieces,
                &mut a,
                completions.completion().await.expect("a sound queue"),
            ) {}
            rounds += 1;
        }
        rounds
    });
    assert_eq!(block_on(all), CYCLES);
    answering.join().expect("all answered");
}
