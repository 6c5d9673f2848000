//! Chunks that pass from node to node, where one owns them and many want them.

use std::thread;
use std::time::Duration;

use futures::executor::block_on;

use crate::support::*;

/// One node owns everything; five others bring all of it to their disks at the same time.
#[test]
fn an_owner_that_many_ask_at_once_has_those_who_have_a_chunk_pass_it_on() {
    let big = |n: u64| (format!("{n}").into_bytes(), bytes(n, 24 << 20));
    let cluster = Cluster::new((0..3).map(big).collect());
    let owner = cluster.start("owner");
    let others = cluster.start_all(["b", "c", "d", "e", "f"]);
    for member in &mut *lock(&cluster.town.members) {
        member.weight = u32::from(member.name == "owner");
    }
    cluster.register(&owner);
    // Nodes ask for the members once a second, and may have done so before all were there.
    thread::sleep(Duration::from_millis(1100));
    thread::scope(|scope| {
        for node in &others {
            scope.spawn(|| {
                let version = node.open();
                block_on(version.warm()).expect("all of it");
                assert_all_right(&version, cluster.origin.files());
            });
        }
    });
    let total = cluster.origin.total();
    let counters: Vec<_> = others.iter().map(|node| node.agent.counters()).collect();
    for counters in &counters {
        assert_eq!(counters.origin_bytes, 0, "{counters:?}");
        assert_eq!(counters.fill_errors, 0, "{counters:?}");
    }
    let owner = owner.agent.counters();
    assert_eq!(owner.origin_bytes, total, "each byte once");
    let passed_on: u64 = counters
        .iter()
        .map(|counters| counters.peer_out_bytes)
        .sum();
    let named: u64 = counters
        .iter()
        .map(|counters| counters.peer_referrals)
        .sum();
    assert!(named > 0 && passed_on > 0, "{counters:?}");
    let sent_by_owner = owner.peer_out_bytes;
    assert!(
        sent_by_owner < 5 * total,
        "the owner sent {sent_by_owner} bytes of a dataset of {total} to five"
    );
}
