//! A node killed at random moments never holds anything as right that is not.

use std::fs;
use std::path::Path;
use std::time::Duration;

use trackbed_tests::cluster::Cluster;
use trackbed_tests::tree;

/// How many times the node is killed; a thousand take an hour or less.
fn rounds() -> u64 {
    let told = std::env::var("TRACKBED_KILL_ROUNDS");
    told.map_or(30, |text| text.parse().expect("a number of rounds"))
}

/// SplitMix64: the same moments in each run, as far as the machine lets them be.
fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 31)
}

/// Two files of some chunks, and small ones.
fn write(origin: &Path) {
    let bytes = |seed: u64, len: usize| -> Vec<u8> {
        let words = (0..len.div_ceil(8) as u64).map(|at| random(seed << 32 | at).to_le_bytes());
        words.flatten().take(len).collect()
    };
    fs::create_dir_all(origin.join("small")).expect("makes");
    for large in 0..2 {
        let path = origin.join(format!("{large}.bin"));
        fs::write(path, bytes(large, (9 << 20) + 17)).expect("writes");
    }
    for small in 0..60 {
        let path = origin.join(format!("small/{small}"));
        fs::write(path, bytes(100 + small, 1 + small as usize * 997)).expect("writes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_at_random_moments_holds_nothing_as_right_that_is_not() {
    let mut cluster = Cluster::prepare(1).expect("a node is prepared");
    let origin = cluster.folder().join("origin");
    write(&origin);
    let expected = tree::read(&origin).expect("an origin is read");
    let node = &mut cluster.nodes[0];
    let url = format!("file://{}", origin.display());
    let (mut partly, mut natively) = (0, 0);
    node.start().await.expect("starts");
    node.register("demo", &url).await.expect("registers");
    for round in 0..rounds() {
        // Mostly while it fills, at times while it lays out or has done so.
        let longest = if round.is_multiple_of(8) { 1_500 } else { 450 };
        let killed_after = Duration::from_micros(random(round) % (longest * 1000));
        {
            // Whether it has ended by then or not; what is committed comes later.
            let warming = async {
                // Slower than the node marks what it has, so that it is killed in between too.
                for share in 1..=5 {
                    let _ = node.warm_share("demo", share * 200).await;
                    tokio::time::sleep(Duration::from_millis(80)).await;
                }
                std::future::pending::<()>().await;
            };
            let _ = tokio::time::timeout(killed_after, warming).await;
        }
        node.kill();
        node.start().await.expect("starts again");
        let before = node.status("demo").await.expect("known");
        let tree_at = node
            .cache()
            .join("versions")
            .join(&before.dataset.expect("named").version)
            .join("tree");
        if before.native {
            natively += 1;
            let shown = tree::read(&tree_at).expect("read");
            tree::assert_same(&shown, &expected);
        }
        let report = node.verify("demo").await.expect("verifies");
        assert_eq!(
            (report.mended, report.lost),
            (0, 0),
            "round {round}, killed after {killed_after:?}: {report:?}"
        );
        if before.chunks_present < before.chunks {
            partly += u64::from(before.chunks_present > 0);
        } else if random(round).is_multiple_of(3) {
            // From the beginning, sometimes in the middle of laying out.
            node.kill();
            fs::remove_dir_all(node.cache().join("versions")).expect("removes");
            node.start().await.expect("starts");
            node.register("demo", &url).await.expect("registers");
        }
    }
    eprintln!("killed in the middle of filling {partly} times, found native {natively} times");
    node.complete("demo").await.expect("completes");
}
