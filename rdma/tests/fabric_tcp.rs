//! What users of the fabric over TCP get: the right bytes, or soon a clear error.

mod peers;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::join_all;
use peers::{
    CAPACITY, EARLY, GATED, Harm, Node, PANICS, REFUSALS, REFUSED, Wire, behind_a_wire, chunk,
    fetch_all, is_right, length_of, loopback, pair, wait_until,
};
use trackbed_rdma::fabric::{
    FabricConfig, FabricError, FetchError, GreetingError, Refusal, TRAILER_BYTES,
};

#[test]
fn chunks_arrive_as_they_are_however_many_are_asked_for_at_once() {
    let (client, server) = pair();
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let mut asked = 0;
        for count in [1, 31, 33, 200] {
            fetch_all(&link, 0..count).await;
            asked += u64::from(count);
        }
        // A server knows that it has sent a moment after its peer has what was sent.
        wait_until(|| server.fabric.counters().payloads_sent == asked);
        let (ours, theirs) = (client.fabric.counters(), server.fabric.counters());
        assert_eq!(ours.requests_sent, asked);
        assert_eq!(ours.payloads_received, asked);
        assert_eq!(theirs.requests_received, asked);
        assert_eq!(ours.payload_bytes_received, theirs.payload_bytes_sent);
        let bytes: usize = [1u32, 31, 33, 200]
            .iter()
            .flat_map(|&count| 0..count)
            .map(|number| length_of(number) + TRAILER_BYTES)
            .sum();
        assert_eq!(ours.payload_bytes_received, bytes as u64);
        assert!(
            ours.request_frames_sent < asked,
            "requests issued together travel together"
        );
        assert_eq!(theirs.intrusions, 0);
    });
}

#[test]
fn a_peer_is_worked_for_within_its_limit_and_a_small_slab_only_makes_it_wait() {
    let client = Node::new("client", 1, loopback());
    let server = Node::new(
        "server",
        2,
        FabricConfig {
            serves_per_peer: 3,
            ..loopback()
        },
    );
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        fetch_all(&link, 2..60).await;
    });
    assert!(server.source.most_serving.load(Ordering::Relaxed) <= 3);
}

#[test]
fn a_peer_that_does_not_read_holds_few_of_our_slots() {
    let client = Node::new(
        "client",
        1,
        FabricConfig {
            arena_slots: 200,
            ..loopback()
        },
    );
    let serves_per_peer = 3;
    let server = Node::new(
        "server",
        16,
        FabricConfig {
            serves_per_peer,
            ..behind_a_wire()
        },
    );
    let _wire = Wire::before(&server.fabric, Harm::Stall(100_000));
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        // More than all the socket buffers on the way take.
        let mut fetches: Vec<_> = (0..200).map(|_| Box::pin(link.fetch(chunk(1)))).collect();
        for fetch in &mut fetches {
            assert!(fetch.as_mut().now_or_never().is_none());
        }
        wait_until(|| {
            let before = server.fabric.counters().payloads_sent;
            std::thread::sleep(Duration::from_millis(100));
            before > 0 && server.fabric.counters().payloads_sent == before
        });
        assert!(server.fabric.counters().payloads_sent < 200);
        assert!(server.shard.slab().free_slots() >= 16 - serves_per_peer);
    });
}

#[test]
fn several_links_share_a_server() {
    let (client, server) = pair();
    block_on(async {
        let links = [
            client.link_to(&server).await.unwrap(),
            client.link_to(&server).await.unwrap(),
            server.link_to(&server).await.unwrap(),
        ];
        join_all(links.iter().map(|link| fetch_all(link, 0..40))).await;
    });
    assert_eq!(server.fabric.counters().peers_accepted, 3);
}

#[test]
fn what_waits_for_something_else_holds_up_nothing() {
    let client = Node::new("client", 16, loopback());
    let serves_per_peer = 2;
    let server = Node::new(
        "server",
        16,
        FabricConfig {
            serves_per_peer,
            ..loopback()
        },
    );
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let mut early: Vec<_> = (EARLY..EARLY + 5)
            .map(|number| Box::pin(link.fetch(chunk(number))))
            .collect();
        for fetch in &mut early {
            assert!(fetch.as_mut().now_or_never().is_none());
        }
        wait_until(|| server.fabric.counters().requests_received == 5);
        fetch_all(&link, 0..20).await;
        for _ in &early {
            server.source.gate.0.try_send(()).unwrap();
        }
        for (number, payload) in (EARLY..).zip(join_all(early).await) {
            assert!(is_right(&chunk(number), &payload.unwrap()));
        }
    });
}

#[test]
fn every_refusal_arrives_as_what_it_is_and_the_link_goes_on() {
    let (client, server) = pair();
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        for (number, kind) in REFUSALS.into_iter().enumerate() {
            let error = link
                .fetch(chunk(REFUSED + number as u32))
                .await
                .unwrap_err();
            assert_eq!(error, FetchError::Refused(kind));
        }
        let error = link.fetch(chunk(PANICS)).await.unwrap_err();
        assert_eq!(
            error,
            FetchError::Refused(Refusal::Failed),
            "a panic there is a failure here"
        );
        fetch_all(&link, 0..3).await;
        assert_eq!(client.fabric.counters().refusals_received, 7);
        assert_eq!(server.fabric.counters().refusals_sent, 7);
        let [delivered, lost] = &server.source.ended;
        wait_until(|| delivered.load(Ordering::Relaxed) == 3);
        assert_eq!(lost.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_peer_that_dies_in_mid_transfer_is_gone_for_all_who_wait_and_can_be_met_again() {
    let client = Node::new("client", 1, loopback());
    let server = Node::new("server", 16, behind_a_wire());
    let wire = Wire::before(&server.fabric, Harm::Cut(CAPACITY as u64 / 2));
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let results = join_all((0..40).map(|_| link.fetch(chunk(1)))).await;
        for result in results {
            let Err(FetchError::Gone { reason, .. }) = result else {
                panic!("{result:?}")
            };
            assert!(reason.contains("closed the connection"), "{reason}");
        }
        assert!(!link.is_alive());
        assert!(matches!(
            link.fetch(chunk(1)).await,
            Err(FetchError::Gone { .. })
        ));
        wire.set(Harm::None);
        fetch_all(&client.link_to(&server).await.unwrap(), 0..40).await;
    });
}

#[test]
fn a_fabric_that_closes_is_gone_for_its_peers() {
    let (client, server) = pair();
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let mut fetch = Box::pin(link.fetch(chunk(GATED)));
        assert!(fetch.as_mut().now_or_never().is_none());
        wait_until(|| server.fabric.counters().requests_received == 1);
        drop(server);
        assert!(matches!(fetch.await, Err(FetchError::Gone { .. })));
    });
}

#[test]
fn a_silent_peer_times_out() {
    let client = Node::new(
        "client",
        1,
        FabricConfig {
            deadline: Duration::from_millis(300),
            ..loopback()
        },
    );
    let server = Node::new("server", 16, behind_a_wire());
    let _wire = Wire::before(&server.fabric, Harm::Stall(CAPACITY as u64 / 2));
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let results = join_all((0..3).map(|_| link.fetch(chunk(1)))).await;
        for result in results {
            assert!(
                matches!(result, Err(FetchError::Timeout { .. })),
                "{result:?}"
            );
        }
        assert!(!link.is_alive());
    });
}

#[test]
fn a_slow_peer_that_says_it_is_at_work_is_waited_for() {
    let deadline = Duration::from_millis(200);
    let client = Node::new(
        "client",
        1,
        FabricConfig {
            deadline,
            ..loopback()
        },
    );
    let server = Node::new("server", 16, loopback());
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let opener = server.source.gate.0.clone();
        let slow = std::thread::spawn(move || {
            std::thread::sleep(deadline * 4);
            opener.try_send(()).unwrap();
        });
        let payload = link.fetch(chunk(GATED)).await.unwrap();
        assert!(is_right(&chunk(GATED), &payload));
        slow.join().unwrap();
    });
}

#[test]
fn an_idle_link_stays() {
    let deadline = Duration::from_millis(100);
    let client = Node::new(
        "client",
        1,
        FabricConfig {
            deadline,
            ..loopback()
        },
    );
    let server = Node::new("server", 16, loopback());
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        std::thread::sleep(deadline * 4);
        fetch_all(&link, 0..3).await;
    });
}

#[test]
fn a_byte_altered_on_the_wire_reaches_the_seal_beside_it_or_ends_the_link() {
    let client = Node::new("client", 1, loopback());
    let server = Node::new("server", 16, behind_a_wire());
    // Stream: welcome (32 bytes), reply (32 bytes), data, trailer.
    let wire = Wire::before(&server.fabric, Harm::Flip(64 + 1000));
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let payload = link.fetch(chunk(1)).await.unwrap();
        assert!(!is_right(&chunk(1), &payload));
        let mut mended = payload;
        mended.lease[1000] ^= 0x10;
        assert!(is_right(&chunk(1), &mended), "that byte and no other");
        for position in 32..64 {
            wire.set(Harm::Flip(position));
            let link = client.link_to(&server).await.unwrap();
            let error = link.fetch(chunk(1)).await.unwrap_err();
            assert!(
                matches!(error, FetchError::Malformed { .. }),
                "{position}: {error}"
            );
            assert!(!link.is_alive());
        }
        assert_eq!(server.fabric.counters().intrusions, 0);
    });
}

#[test]
fn a_dropped_fetch_does_not_disturb_those_after_it() {
    let client = Node::new(
        "client",
        1,
        FabricConfig {
            arena_slots: 2,
            ..loopback()
        },
    );
    let server = Node::new("server", 16, behind_a_wire());
    let wire = Wire::before(&server.fabric, Harm::None);
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        // Before the answer.
        let mut fetch = Box::pin(link.fetch(chunk(GATED)));
        assert!(fetch.as_mut().now_or_never().is_none());
        wait_until(|| server.fabric.counters().requests_received == 1);
        drop(fetch);
        fetch_all(&link, 0..10).await;
        server.source.gate.0.try_send(()).unwrap();
        fetch_all(&link, 0..10).await;

        // In the middle of its payload.
        let so_far = wire.forwarded.load(Ordering::Relaxed);
        wire.set(Harm::Stall(so_far + CAPACITY as u64 / 2));
        let mut fetch = Box::pin(link.fetch(chunk(1)));
        assert!(fetch.as_mut().now_or_never().is_none());
        wait_until(|| wire.forwarded.load(Ordering::Relaxed) > so_far + 1000);
        drop(fetch);
        // Its slot must not be handed out: with one of two left, these share that one.
        let mut later: Vec<_> = (2..8)
            .map(|number| Box::pin(link.fetch(chunk(number))))
            .collect();
        for fetch in &mut later {
            assert!(fetch.as_mut().now_or_never().is_none());
        }
        wire.set(Harm::None);
        for (number, fetch) in (2..8).zip(later) {
            assert!(is_right(&chunk(number), &fetch.await.unwrap()));
        }
        fetch_all(&link, 0..30).await;
    });
}

#[test]
fn payloads_that_are_kept_hold_their_slots_and_outlive_the_link() {
    let client = Node::new(
        "client",
        1,
        FabricConfig {
            arena_slots: 3,
            ..loopback()
        },
    );
    let server = Node::new("server", 16, loopback());
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        let kept = join_all((5..8).map(|number| link.fetch(chunk(number)))).await;
        let mut next = Box::pin(link.fetch(chunk(8)));
        assert!(next.as_mut().now_or_never().is_none(), "no slot is free");
        drop(next);
        drop(server);
        wait_until(|| !link.is_alive());
        assert!(matches!(
            link.fetch(chunk(9)).await,
            Err(FetchError::Gone { .. })
        ));
        drop(link);
        for (number, payload) in (5..8).zip(kept) {
            assert!(is_right(&chunk(number), &payload.unwrap()));
        }
    });
}

#[test]
fn a_link_that_is_no_longer_used_is_closed() {
    let (client, server) = pair();
    block_on(async {
        let link = client.link_to(&server).await.unwrap();
        fetch_all(&link, 0..3).await;
    });
    wait_until(|| server.fabric.counters().peers_ended == 1);
    wait_until(|| client.fabric.counters().links_ended == 1);
}

#[test]
fn an_answer_opens_one_connection_only() {
    let (client, server) = pair();
    block_on(async {
        let first = client.fabric.offer("server").await.unwrap();
        let second = client.fabric.offer("server").await.unwrap();
        let answer = server
            .fabric
            .accept("client", first.offer_bytes())
            .await
            .unwrap();
        let _link = client.fabric.complete(first, &answer).await.unwrap();
        let error = client.fabric.complete(second, &answer).await.unwrap_err();
        assert!(matches!(error, FabricError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("ticket"), "{error}");
        assert_eq!(server.fabric.counters().intrusions, 1);
    });
}

#[test]
fn greetings_that_do_not_fit_are_refused_with_the_reason() {
    let (client, server) = pair();
    block_on(async {
        let pending = client.fabric.offer("server").await.unwrap();
        let offer = pending.offer_bytes().to_vec();
        let refused = |result: Result<Vec<u8>, FabricError>| match result.unwrap_err() {
            FabricError::Greeting { peer, source } => {
                assert_eq!(peer, "client");
                source
            }
            error => panic!("{error}"),
        };
        let accept = async |bytes: &[u8]| refused(server.fabric.accept("client", bytes).await);
        assert_eq!(accept(b"").await, GreetingError::Garbled);
        assert_eq!(accept(&offer[1..]).await, GreetingError::Garbled);
        let mut altered = offer.clone();
        altered[9] ^= 1;
        assert_eq!(accept(&altered).await, GreetingError::Garbled);
        let mut larger = offer.clone();
        larger[8..12].copy_from_slice(&(CAPACITY as u32 * 2).to_le_bytes());
        let crc = crc32c::crc32c(&larger[..88]);
        larger[88..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(
            accept(&larger).await,
            GreetingError::ChunkCapacity { .. }
        ));
        let answer = server.fabric.accept("client", &offer).await.unwrap();
        assert_eq!(
            accept(&answer).await,
            GreetingError::Garbled,
            "an answer is no offer"
        );
        let error = client.fabric.complete(pending, &offer).await.unwrap_err();
        assert!(matches!(error, FabricError::Greeting { .. }));
    });
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    use trackbed_rdma::fabric::Fabric;
    let node = Node::new("node", 1, loopback());
    let refused = |config| {
        Fabric::new(config, node.shard.clone(), node.source.clone())
            .unwrap_err()
            .to_string()
    };
    assert!(
        refused(FabricConfig {
            arena_slots: 0,
            ..loopback()
        })
        .contains("arena_slots")
    );
    assert!(
        refused(FabricConfig {
            serves_per_peer: 0,
            ..loopback()
        })
        .contains("serves_per_peer")
    );
    assert!(
        refused(FabricConfig {
            deadline: Duration::ZERO,
            ..loopback()
        })
        .contains("deadline")
    );
    let everywhere = FabricConfig::tcp(SocketAddr::from(([0, 0, 0, 0], 0)));
    assert!(refused(everywhere).contains("advertise"));
    let taken = FabricConfig::tcp(node.fabric.data_address().unwrap());
    assert!(refused(taken).contains("data port"));
}
