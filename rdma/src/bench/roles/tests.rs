//! Both roles on the mock provider.

use super::*;
use crate::bench::{AtomicKind, DeviceChoice, Length, Limit, Rate, Verb};

pub(super) fn mock(name: &str) -> Target {
    let context = crate::mock::open(name).expect("the mock device");
    Target {
        device: DeviceChoice::Open(context),
        ..Target::default()
    }
}

const VERBS: [Verb; 4] = [Verb::Write, Verb::Send, Verb::Read, Verb::Atomic];

fn short_of(verb: Verb, measure: Measure) -> Plan {
    Plan {
        length: Length::Iterations(1000),
        warmup: 10,
        settle_milliseconds: 0,
        ..Plan::new(verb, measure)
    }
}

pub(super) fn short(measure: Measure) -> Plan {
    short_of(Verb::Write, measure)
}

fn measured(plan: &Plan) -> Report {
    run_local(&mock("mock0"), &mock("mock1"), plan, &mut |_| {})
        .unwrap_or_else(|error| panic!("{plan:?}: {error}"))
}

#[test]
fn every_message_of_every_size_is_counted_and_compared() {
    for (sizes, post_list, signal_every, depth) in [
        (vec![1, 60, 61, 4096], 16, 64, 128),
        (vec![100], 3, 1, 7),
        (vec![8], 1, 1, 1),
    ] {
        let plan = Plan {
            sizes: sizes.clone(),
            post_list,
            signal_every,
            depth,
            ..short(Measure::Bandwidth)
        };
        let mut seen = Vec::new();
        let report = run_local(&mock("mock0"), &mock("mock1"), &plan, &mut |progress| {
            if let Progress::Measured(row) = progress {
                seen.push(row.bytes);
            }
        })
        .expect("measured");
        assert_eq!(seen, sizes);
        assert_eq!(report.mtu, 1024);
        for row in &report.rows {
            assert_eq!(row.messages, 1000);
            assert!(row.mib_per_second.is_some_and(|speed| speed > 0.0));
        }
    }
}

#[test]
fn the_bandwidth_of_every_verb_is_measured_in_every_way() {
    type Way = fn(&mut Plan);
    let ways: [(&str, Way); 6] = [
        ("plain", |_| {}),
        ("queue pairs", |plan| plan.queue_pairs = 5),
        ("both ways", |plan| plan.bidirectional = true),
        ("events", |plan| plan.events = true),
        ("one by one", |plan| {
            (plan.depth, plan.post_list, plan.signal_every) = (1, 1, 1);
        }),
        ("all at once", |plan| {
            (plan.queue_pairs, plan.bidirectional, plan.events) = (3, true, true);
            plan.receive_depth = 7;
        }),
    ];
    for verb in VERBS {
        for (name, way) in ways {
            let mut plan = short_of(verb, Measure::Bandwidth);
            if verb != Verb::Atomic {
                plan.sizes = vec![100, 3000, 50];
            }
            way(&mut plan);
            let report = measured(&plan);
            assert_eq!(report.rows.len(), plan.sizes.len(), "{verb:?} {name}");
            for row in &report.rows {
                assert_eq!(row.messages, 1000, "{verb:?} {name}");
                let total = row.gbit_per_second.expect("a bandwidth");
                let theirs = row.peer_gbit_per_second.unwrap_or(0.0);
                assert_eq!(plan.bidirectional, theirs > 0.0, "{verb:?} {name}");
                assert!(total > theirs, "{verb:?} {name}");
                // A rate of messages is messages by time, and bits follow from it.
                let rate = row.messages_per_second.expect("a rate");
                let bits = rate * row.bytes as f64 * 8.0 / 1e9;
                assert!((bits - total).abs() < 1e-9 * total, "{verb:?} {name}");
            }
        }
    }
}

#[test]
fn the_latency_of_every_verb_is_measured_over_all_round_trips() {
    for verb in VERBS {
        for events in [false, true] {
            if events && verb == Verb::Write {
                continue;
            }
            let mut plan = Plan {
                events,
                runs: 2,
                ..short_of(verb, Measure::Latency)
            };
            if verb != Verb::Atomic {
                plan.sizes = vec![1, 300, 2];
            }
            for row in &measured(&plan).rows {
                assert_eq!((row.messages, row.runs.len()), (2000, 2), "{verb:?}");
                let latency = row.latency.expect("a summary");
                assert!(latency.min_us <= latency.p50_us && latency.p50_us <= latency.max_us);
                let last = row.percentiles.last().expect("a distribution");
                assert_eq!(last.percent, 100.0);
                assert!(row.interval.is_some() && row.cpu.is_some());
            }
        }
    }
}

#[test]
fn each_compare_and_swap_finds_what_the_one_before_left() {
    for measure in [Measure::Bandwidth, Measure::Latency] {
        let plan = Plan {
            atomic: AtomicKind::CompareSwap,
            ..short_of(Verb::Atomic, measure)
        };
        assert_eq!(measured(&plan).rows[0].messages, 1000);
    }
}

#[test]
fn a_measurement_by_time_ends_and_counts() {
    for verb in VERBS {
        for measure in [Measure::Bandwidth, Measure::Latency] {
            for bidirectional in [false, measure == Measure::Bandwidth] {
                let plan = Plan {
                    length: Length::Milliseconds(20),
                    settle_milliseconds: 10,
                    bidirectional,
                    ..short_of(verb, measure)
                };
                assert!(measured(&plan).rows[0].messages > 0);
            }
        }
    }
}

#[test]
fn several_runs_give_an_interval_around_their_mean() {
    let plan = Plan {
        runs: 4,
        ..short(Measure::Bandwidth)
    };
    let row = measured(&plan).rows.remove(0);
    let interval = row.interval.clone().expect("four runs");
    assert_eq!((row.runs.len(), interval.samples), (4, 4));
    let (value, _) = row.figure();
    assert!(interval.low <= value && value <= interval.high);
    assert_eq!(row.messages, 4000);
}

#[test]
fn a_single_run_by_time_knows_how_well_and_how_steadily_it_measured() {
    // A machine that is busy with something else may leave it too few looks in a short time.
    let of = |time| {
        let plan = Plan {
            length: Length::Milliseconds(time),
            sizes: vec![64],
            ..short(Measure::Bandwidth)
        };
        let row = measured(&plan).rows.remove(0);
        (row.steady.is_some() && row.interval.is_some()).then_some(row)
    };
    let row = [200, 2000, 10_000].into_iter().find_map(of);
    let row = row.expect("many intervals");
    let interval = row.interval.clone().expect("batches");
    assert_eq!((interval.over.as_str(), interval.samples), ("batches", 10));
    let steady = row.steady.expect("many intervals");
    assert!(steady.intervals >= 10 && steady.variation >= 0.0);
    let cpu = row.cpu.expect("a cost");
    assert!(cpu.ns_per_message > 0.0 && cpu.share > 0.0);
}

#[test]
fn a_rate_that_was_asked_for_is_kept_to() {
    let plan = Plan {
        rate: Some(Rate::MessagesPerSecond(20_000)),
        length: Length::Milliseconds(200),
        post_list: 1,
        sizes: vec![64],
        ..short(Measure::Bandwidth)
    };
    let row = measured(&plan).rows.remove(0);
    assert!(
        row.messages_per_second.expect("a rate") <= 20_500.0,
        "{row:?}"
    );
    // A loaded machine may not even reach it.
    if row.messages_per_second >= Some(19_000.0) {
        assert_eq!(row.limit, Some(Limit::Rate));
    }
}

#[test]
fn a_person_hears_how_it_goes() {
    let plan = Plan {
        length: Length::Milliseconds(500),
        ..short(Measure::Bandwidth)
    };
    let mut stages = Vec::new();
    run_local(&mock("mock0"), &mock("mock0"), &plan, &mut |progress| {
        if let Progress::Measuring(stage) = progress {
            stages.push(stage);
        }
    })
    .expect("measured");
    assert!(
        stages
            .iter()
            .any(|stage| stage.run == 1 && stage.figure > 0.0)
    );
}

#[test]
fn a_report_is_read_back_as_it_was_written() {
    for measure in [Measure::Bandwidth, Measure::Latency] {
        let report = measured(&short(measure));
        let text = serde_json::to_string(&report).expect("JSON");
        let back: Report = serde_json::from_str(&text).expect("the same form");
        assert_eq!(back, report);
        assert_eq!(report.schema, crate::bench::SCHEMA);
    }
}

#[test]
fn two_processes_meet_over_tcp_and_agree() {
    let (tell, told) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        serve(
            &mock("mock1"),
            &Serve::default(),
            0,
            Duration::from_secs(30),
            &mut |progress| {
                if let Progress::Listening(address) = progress {
                    tell.send(address.port()).expect("the test listens");
                }
            },
        )
    });
    let port = told.recv().expect("listening");
    let plan = short(Measure::Bandwidth);
    let ours = run(&mock("mock0"), &plan, "localhost", port, &mut |_| {}).expect("measured");
    let theirs = server.join().expect("no panic").expect("served");
    let counted = |report: &Report| -> Vec<(u64, u64)> {
        report
            .rows
            .iter()
            .map(|row| (row.bytes, row.messages))
            .collect()
    };
    assert_eq!(counted(&ours), [(65536, 1000)]);
    assert_eq!(counted(&ours), counted(&theirs));
    assert_eq!(
        (ours.role.as_str(), theirs.role.as_str()),
        ("client", "server")
    );
}

fn conflicting(serve: Serve) -> (BenchError, BenchError) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let server =
        thread::spawn(move || serve_on(Box::new(theirs), &mock("mock0"), &serve, &mut |_| {}));
    let plan = short(Measure::Bandwidth);
    let client = run_on(Box::new(ours), &mock("mock0"), &plan, "client", &mut |_| {});
    let server = server.join().expect("no panic");
    (client.expect_err("refused"), server.expect_err("refused"))
}

#[test]
fn ends_that_were_told_different_things_both_say_so() {
    let told = Plan {
        sizes: vec![1],
        mtu: Some(4096),
        depth: 9,
        ..short(Measure::Bandwidth)
    };
    for (option, says) in [
        ("size", "--size 1,"),
        ("mtu", "--mtu 4096,"),
        ("depth", "--depth 9, the client asks for 128"),
    ] {
        let serve = Serve::insist(&told, |name| name == option);
        let (client, server) = conflicting(serve);
        assert!(client.to_string().contains(says), "{client}");
        assert!(server.to_string().contains(says), "{server}");
        assert!(client.is_setup() && server.is_setup());
    }
    let serve = Serve::insist(&short(Measure::Latency), |_| false);
    assert!(conflicting(serve).0.to_string().contains("write latency"));
}

#[test]
fn more_than_the_device_allows_is_refused_by_its_limit() {
    let plan = Plan {
        depth: 16384,
        ..short(Measure::Bandwidth)
    };
    let error = run_local(&mock("mock0"), &mock("mock0"), &plan, &mut |_| {})
        .expect_err("the mock has 16384, and one is the drain's");
    assert!(error.to_string().contains("queue depth"), "{error}");
    assert!(error.to_string().contains("--depth"), "{error}");
    let long = Plan {
        sizes: vec![4096, 16 << 20],
        ..short(Measure::Bandwidth)
    };
    let error = run_local(&mock("mock2"), &mock("mock2"), &long, &mut |_| {})
        .expect_err("the port of mock2 carries 8 MiB");
    assert!(error.is_setup());
    let said = error.to_string();
    assert_eq!(
        said,
        "mock2 allows a message size in bytes of at most 8388608, not 16777216: give a --size up to that"
    );
}

#[test]
fn a_server_nobody_comes_to_and_a_host_nobody_listens_on_end_with_a_sentence() {
    let waited = Duration::from_millis(1);
    let error = serve(&mock("mock0"), &Serve::default(), 0, waited, &mut |_| {});
    assert!(matches!(error, Err(BenchError::NoClient { .. })));
    let plan = short(Measure::Bandwidth);
    let error = run(&mock("mock0"), &plan, "host.invalid", 1, &mut |_| {});
    assert!(matches!(error, Err(BenchError::Connect { .. })));
    let error = run(&mock("mock0"), &plan, "localhost:port", 1, &mut |_| {});
    assert!(
        error
            .expect_err("no port")
            .to_string()
            .contains("is no port")
    );
}
