//! What users of the fabric get when things go wrong again and again: every byte as it was, in time, and
//! only the link that is concerned suffers. `TRACKBED_SOAK_BYTES` says how much the soaks move.

mod peers;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::join_all;
use peers::bulk::{self, is_right, soak, soak_bytes};
use peers::{Harm, Wire, behind_a_wire, chunk, loopback, roll, wait_until};
use trackbed_rdma::fabric::{FabricConfig, FetchError, PeerLink};
use trackbed_rdma::{mock, sys};

/// Four pieces over verbs.
const CAPACITY: usize = 2 << 20;
const GIB: u64 = 1 << 30;

fn over_verbs(name: &str, capacity: usize, slots: usize, config: FabricConfig) -> bulk::Node {
    let context = mock::open("mock0").expect("the mock provider has this device");
    bulk::Node::on_device(name, capacity, slots, &context, config)
}

fn verbs_pair() -> (bulk::Node, bulk::Node) {
    // A quarter of it passes until one end asks what has become of the other.
    let config = || FabricConfig {
        deadline: Duration::from_secs(1),
        ..FabricConfig::verbs(None)
    };
    (
        over_verbs("client", CAPACITY, 1, config()),
        over_verbs("server", CAPACITY, 16, config()),
    )
}

#[test]
fn over_tcp_every_byte_arrives_whatever_the_wire_does() {
    let client = bulk::Node::new("client", CAPACITY, 1, loopback());
    let server = bulk::Node::new("server", CAPACITY, 16, behind_a_wire());
    let bytes = soak_bytes(GIB);
    let wire = Wire::before(&server.fabric, Harm::Weather(bytes / 40));
    let outcome = soak(&client, &server, bytes, |_| {}, |_| {});
    let weather = &wire.weather;
    let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
    let (flips, cuts) = (count(&weather.flips), count(&weather.cuts));
    eprintln!(
        "{outcome:?}; {flips} bytes altered, {} pauses, {cuts} cuts",
        count(&weather.pauses)
    );
    assert!(outcome.bytes >= bytes);
    assert!(flips + cuts > 5, "the weather was too good");
    assert!(outcome.altered <= flips && outcome.links <= 1 + flips + cuts);
    assert!(cuts == 0 || outcome.links > 1);
}

#[test]
fn over_verbs_every_byte_arrives_whatever_fails() {
    let (client, server) = verbs_pair();
    let bytes = soak_bytes(GIB);
    let numbers = Cell::new((0, 0));
    let (dice, due, strikes) = (Cell::new(3), Cell::new(0), Cell::new(0));
    let outcome = soak(
        &client,
        &server,
        bytes,
        |met| numbers.set(met),
        |arrived| {
            if arrived < due.get() {
                return;
            }
            dice.set(roll(dice.get()));
            due.set(arrived + bytes / 80 + dice.get() % (bytes / 40));
            strikes.set(strikes.get() + 1);
            let (ours, theirs) = numbers.get();
            match strikes.get() % 8 {
                0 => mock::fail_next(theirs, sys::IBV_WC_RNR_RETRY_EXC_ERR),
                1 => mock::fail_next(theirs, sys::IBV_WC_RETRY_EXC_ERR),
                2 => mock::fail_next(ours, sys::IBV_WC_RETRY_EXC_ERR),
                3 => mock::kill(ours),
                4 => mock::kill(theirs),
                5 => mock::overrun(theirs),
                6 => mock::complete_twice(theirs),
                _ => {
                    mock::hold(theirs);
                    thread::spawn(move || {
                        thread::sleep(Duration::from_millis(20));
                        mock::release(theirs);
                    });
                }
            }
        },
    );
    eprintln!("{outcome:?}; {} faults", strikes.get());
    assert!(outcome.bytes >= bytes);
    assert_eq!(outcome.altered, 0);
    assert!(
        strikes.get() > 20 && outcome.links > 10,
        "too little went wrong"
    );
}

#[test]
fn data_that_trickles_is_a_sign_of_life() {
    let deadline = Duration::from_secs(1);
    let config = FabricConfig {
        deadline,
        ..FabricConfig::verbs(None)
    };
    // An answer of 16 pieces and a trailer.
    let client = over_verbs("client", 8 << 20, 1, config);
    let server = over_verbs("server", 8 << 20, 4, FabricConfig::verbs(None));
    block_on(async {
        let (link, numbers) = client.meet(&server).await.unwrap();
        let (_, theirs) = numbers.expect("over verbs");
        mock::hold(theirs);
        let done = Arc::new(AtomicBool::new(false));
        let trickle = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                while !done.load(Ordering::Relaxed) {
                    thread::sleep(deadline / 5);
                    mock::step(theirs, 1);
                }
            }
        });
        let payload = link.fetch(chunk(3)).await;
        done.store(true, Ordering::Relaxed);
        trickle.join().unwrap();
        assert!(is_right(3, &payload.unwrap()));
        assert!(link.is_alive());
    });
}

/// While nothing of what `slow_link` fetches arrives, another node gets all that it asks for; when the
/// receiver takes things again, the rest arrives too.
async fn stalls_only_its_own_link(
    slow_link: &PeerLink,
    quick: &bulk::Node,
    server: &bulk::Node,
    takes_again: impl FnOnce(),
) {
    let mut waiting: Vec<_> = (0..16)
        .map(|number| Box::pin(slow_link.fetch(chunk(number))))
        .collect();
    for fetch in &mut waiting {
        assert!(fetch.as_mut().now_or_never().is_none());
    }
    wait_until(|| server.fabric.counters().requests_received == 16);
    let quick_link = quick.link_to(server).await.unwrap();
    for number in 0..40 {
        assert!(is_right(
            number,
            &quick_link.fetch(chunk(number)).await.unwrap()
        ));
    }
    for fetch in &mut waiting {
        assert!(fetch.as_mut().now_or_never().is_none());
    }
    takes_again();
    for (number, fetch) in (0..16).zip(waiting) {
        assert!(is_right(number, &fetch.await.unwrap()));
    }
}

#[test]
fn over_verbs_a_receiver_that_takes_nothing_stalls_only_its_own_link() {
    let config = || FabricConfig::verbs(None);
    let slow = over_verbs("slow", CAPACITY, 1, config());
    let quick = over_verbs("quick", CAPACITY, 1, config());
    let server = over_verbs("server", CAPACITY, 16, config());
    block_on(async {
        let (slow_link, numbers) = slow.meet(&server).await.unwrap();
        let (_, to_slow) = numbers.expect("over verbs");
        mock::hold(to_slow);
        stalls_only_its_own_link(&slow_link, &quick, &server, || {
            // It holds what it may, and not a slot more.
            wait_until(|| server.shard.slab().free_slots() >= 16 - config().serves_per_peer);
            mock::release(to_slow);
        })
        .await;
    });
}

#[test]
fn over_tcp_a_receiver_that_takes_nothing_stalls_only_its_own_link() {
    let slow = bulk::Node::new("slow", CAPACITY, 1, loopback());
    let quick = bulk::Node::new("quick", CAPACITY, 1, loopback());
    let server = bulk::Node::new("server", CAPACITY, 16, behind_a_wire());
    let wire = Wire::before(&server.fabric, Harm::StallFirst(100_000));
    block_on(async {
        let slow_link = slow.link_to(&server).await.unwrap();
        stalls_only_its_own_link(&slow_link, &quick, &server, || wire.set(Harm::None)).await;
    });
}

/// Fetches while `cut` ends the link, and what failed again on a new one.
fn cut_and_go_on(
    client: &bulk::Node,
    server: &bulk::Node,
    cut: impl FnOnce(Option<(u32, u32)>) + Send,
) {
    let (link, numbers) = block_on(client.meet(server)).unwrap();
    let kept =
        block_on(join_all((0..5).map(async |number| {
            (number, link.fetch(chunk(number)).await.unwrap())
        })));
    let outcomes = thread::scope(|scope| {
        scope.spawn(|| {
            wait_until(|| client.fabric.counters().payloads_received > 10);
            cut(numbers);
        });
        // Each ends once: with its chunk, or with the reason why the link ended.
        block_on(join_all((5..300).map(async |number| {
            let fetched = link.fetch(chunk(number)).await;
            (number, fetched.map(|payload| is_right(number, &payload)))
        })))
    });
    block_on(async {
        let mut failed = Vec::new();
        for (number, outcome) in outcomes {
            match outcome {
                Ok(right) => assert!(right, "chunk {number} differs"),
                Err(FetchError::Gone { .. }) => failed.push(number),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(!failed.is_empty(), "something was under way");
        assert!(matches!(
            link.fetch(chunk(0)).await,
            Err(FetchError::Gone { .. })
        ));
        let again = client.link_to(server).await.unwrap();
        for number in failed {
            assert!(is_right(number, &again.fetch(chunk(number)).await.unwrap()));
        }
        // What came before the cut is untouched by it.
        assert!(
            kept.iter()
                .all(|(number, payload)| is_right(*number, payload))
        );
        assert_eq!(client.fabric.counters().links_ended, 1);
    });
}

#[test]
fn over_tcp_what_a_cut_fails_fails_once_and_comes_on_a_new_link() {
    let client = bulk::Node::new("client", CAPACITY, 1, loopback());
    let server = bulk::Node::new("server", CAPACITY, 16, behind_a_wire());
    let wire = Wire::before(&server.fabric, Harm::None);
    cut_and_go_on(&client, &server, |_| {
        wire.set(Harm::Cut(0));
        wait_until(|| server.fabric.counters().peers_ended == 1);
        wire.set(Harm::None);
    });
}

#[test]
fn over_verbs_what_a_cut_fails_fails_once_and_comes_on_a_new_link() {
    let (client, server) = verbs_pair();
    cut_and_go_on(&client, &server, |numbers| {
        let (ours, _) = numbers.expect("over verbs");
        mock::kill(ours);
    });
}
