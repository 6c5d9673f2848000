//! `trackbed rdma bench` as an engineer runs it: the binary, on two hosts that a link joins.
//!
//! The hosts are the network namespaces of `hack/lib/guest-tests.sh`; elsewhere each test says that it
//! was skipped.

use serde_json::Value;
use std::process::{Child, Command, Output, Stdio};

/// The devices here and on the other host, in whose namespace the server runs.
fn devices() -> Option<(String, String)> {
    let named = std::env::var("TRACKBED_TEST_DEVICES").ok();
    let devices = named
        .as_deref()
        .filter(|_| std::env::var("TRACKBED_GUEST").as_deref() == Ok("1"))
        .and_then(|named| named.split_once(','))
        .map(|(here, there)| (here.to_owned(), there.to_owned()));
    if devices.is_none() {
        eprintln!("skipped: no two RDMA hosts; `hack/test guest` runs this in a virtual machine");
    }
    devices
}

const OTHER_HOST: &str = "10.88.0.2";

fn trackbed(namespace: Option<&str>) -> Command {
    let program = env!("CARGO_BIN_EXE_trackbed");
    let mut command = match namespace {
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace, program]);
            command
        }
        None => Command::new(program),
    };
    command.args(["rdma", "bench"]);
    command
}

fn server(what: &str, device: &str, more: &str) -> Child {
    let mut command = trackbed(Some("other"));
    command.args(what.split_whitespace());
    command.args(["--device", device, "--wait", "60", "--output", "json"]);
    command.args(more.split_whitespace());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    child.expect("the server starts")
}

fn client(what: &str, device: &str, more: &str) -> Output {
    let mut command = trackbed(None);
    command.args(what.split_whitespace()).arg(OTHER_HOST);
    command.args(["--device", device, "--output", "json"]);
    command.args(more.split_whitespace());
    command.output().expect("the client runs")
}

/// What both ends print.
fn measured(what: &str, options: &str) -> Option<(Value, Value)> {
    let (here, there) = devices()?;
    let server = server(what, &there, "");
    let ours = client(what, &here, options);
    let theirs = server.wait_with_output().expect("the server ends");
    let parsed = |output: &Output| {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what} {options}: {said}");
        serde_json::from_slice::<Value>(&output.stdout).expect("one JSON object")
    };
    Some((parsed(&ours), parsed(&theirs)))
}

fn number(row: &Value, name: &str) -> f64 {
    row[name]
        .as_f64()
        .unwrap_or_else(|| panic!("no {name}: {row}"))
}

#[test]
fn every_verb_has_a_bandwidth_between_two_hosts() {
    for (verb, options) in [
        ("write", "--size 64,64K --iterations 512"),
        ("send", "--size 64,64K --iterations 512"),
        ("read", "--size 64,64K --iterations 512"),
        ("atomic", "--iterations 512"),
        ("atomic", "--iterations 512 --atomic compare-swap"),
    ] {
        let Some((ours, theirs)) = measured(&format!("{verb} bandwidth"), options) else {
            return;
        };
        assert_eq!(ours["rows"], theirs["rows"], "{verb}");
        for row in ours["rows"].as_array().expect("rows") {
            assert_eq!(row["messages"], 512, "{verb}");
            let rate = number(row, "messages_per_second");
            assert!((rate * number(row, "seconds") - 512.0).abs() < 0.5, "{row}");
            eprintln!("{verb} {} bytes: {rate:.0} messages/s", row["bytes"]);
        }
    }
}

#[test]
fn every_verb_has_a_latency_between_two_hosts() {
    for (verb, options) in [
        ("write", "--size 2,64K --iterations 200 --warmup 20"),
        ("send", "--size 2,64K --iterations 200 --warmup 20"),
        ("send", "--duration 1 --warmup 20 --events"),
        ("read", "--size 2,64K --iterations 200 --warmup 20"),
        ("read", "--duration 1 --warmup 20 --events"),
        ("atomic", "--iterations 200 --warmup 20"),
    ] {
        let Some((ours, _)) = measured(&format!("{verb} latency"), options) else {
            return;
        };
        for row in ours["rows"].as_array().expect("rows") {
            let latency = &row["latency"];
            assert!(number(latency, "min_us") > 0.0);
            assert!(number(latency, "min_us") <= number(latency, "p50_us"));
            assert!(number(latency, "p50_us") <= number(latency, "max_us"));
            eprintln!("{verb} {options}: {} bytes: {latency}", row["bytes"]);
        }
    }
}

#[test]
fn queue_pairs_both_ways_events_and_rates_work_between_two_hosts() {
    for (what, options) in [
        (
            "write bandwidth",
            "--queue-pairs 4 --size 4K --iterations 1000",
        ),
        (
            "send bandwidth",
            "--queue-pairs 3 --size 4K --iterations 1000 --bidirectional",
        ),
        ("read bandwidth", "--size 4K --duration 1 --bidirectional"),
        ("write bandwidth", "--size 4K --duration 1 --events"),
        ("send bandwidth", "--size 4K --duration 1 --events --runs 2"),
        (
            "atomic bandwidth",
            "--queue-pairs 2 --iterations 500 --events --bidirectional",
        ),
        (
            "write bandwidth",
            "--size 1K --duration 1 --rate 500messages/s --post-list 1",
        ),
    ] {
        let Some((ours, _)) = measured(what, options) else {
            return;
        };
        let row = &ours["rows"][0];
        assert!(number(row, "gbit_per_second") > 0.0, "{what} {options}");
        if options.contains("--rate") {
            assert!(number(row, "messages_per_second") < 550.0, "{row}");
        }
        eprintln!("{what} {options}: {} Gb/s", row["gbit_per_second"]);
    }
}

#[test]
fn what_is_expected_decides_the_exit_status() {
    let Some((here, there)) = devices() else {
        return;
    };
    let what = "write bandwidth";
    for (expected, status, outcome) in [("1kb/s", 0, "pass"), ("100Tb/s", 1, "fail")] {
        let server = server(what, &there, "");
        let options = format!("--size 64K --iterations 200 --expect {expected}");
        let ours = client(what, &here, &options);
        server.wait_with_output().expect("the server ends");
        assert_eq!(ours.status.code(), Some(status));
        let report: Value = serde_json::from_slice(&ours.stdout).expect("one JSON object");
        assert_eq!(report["verdict"]["outcome"], outcome);
    }
}

#[test]
fn ends_that_differ_and_wrong_addresses_end_with_3_and_a_sentence() {
    let Some((here, there)) = devices() else {
        return;
    };
    let what = "write bandwidth";
    for (on_server, on_client, says) in [
        (
            "--depth 64",
            "--depth 32",
            "--depth 64, the client asks for 32",
        ),
        ("--bidirectional", "", "--bidirectional true"),
        ("", "--gid-type infiniband", "infiniband"),
        ("", "--size 1G --queue-pairs 64", "queue pairs"),
        ("", "--queue-pairs 0", "number of queue pairs"),
    ] {
        // A client that can't even begin leaves the server waiting.
        let mut server = server(what, &there, on_server);
        let ours = client(what, &here, on_client);
        server.kill().expect("killed, or gone before");
        server.wait().expect("the server ends");
        let said = String::from_utf8_lossy(&ours.stderr);
        assert_eq!(ours.status.code(), Some(3), "{said}");
        assert!(said.contains(says), "{says}: {said}");
    }
}

/// Huge pages of 2 MiB that nobody uses, after asking for so many.
fn reserve_huge_pages(count: u32) {
    std::fs::write("/proc/sys/vm/nr_hugepages", format!("{count}\n")).expect("root may");
}

#[test]
fn memory_on_huge_pages_and_a_numa_node_is_measured_like_any_other() {
    let Some((here, there)) = devices() else {
        return;
    };
    reserve_huge_pages(64);
    for (what, options) in [
        ("write bandwidth", "--size 64K,1M --iterations 64"),
        ("send latency", "--size 2 --iterations 64 --warmup 8"),
        ("read bandwidth", "--size 64K --iterations 64"),
        ("atomic bandwidth", "--iterations 64"),
    ] {
        for memory in [
            "--memory hugepages",
            "--numa 0",
            "--memory hugepages --numa 0",
        ] {
            let server = server(what, &there, memory);
            let ours = client(what, &here, &format!("{options} {memory}"));
            let theirs = server.wait_with_output().expect("the server ends");
            for output in [&ours, &theirs] {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{what} {memory}: {said}");
            }
        }
    }
    reserve_huge_pages(0);
    for (options, says) in [
        ("--memory hugepages", "nr_hugepages"),
        ("--numa 7", "NUMA node 7"),
    ] {
        let mut server = server("write bandwidth", &there, "");
        let ours = client("write bandwidth", &here, options);
        server.kill().expect("killed, or gone before");
        server.wait().expect("the server ends");
        let said = String::from_utf8_lossy(&ours.stderr);
        assert_eq!(ours.status.code(), Some(3), "{said}");
        assert!(said.contains(says), "{said}");
    }
}
