//! The command line, what it becomes, and whether the documentation knows all of it.

use super::*;
use clap::{CommandFactory, Parser};
use trackbed_rdma::bench::Rate;
use trackbed_rdma::verbs::GidKind;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: BenchArgs,
}

fn parsed(line: &str) -> Result<BenchArgs, clap::Error> {
    Command::try_parse_from(line.split_whitespace()).map(|command| command.args)
}

#[test]
fn options_become_the_plan_and_the_target() {
    let line = "bench write bandwidth node-1 --device rxe0 --gid-type rocev2-ipv4 \
                --size 1K,64K --depth 8 --duration 0.5 --mtu 1024 --queue-pairs 4 --runs 3 \
                --rate 10Gb/s --bidirectional --numa 0 --line-rate 100Gb/s --settle 0.25";
    let args = parsed(line).expect("a good line");
    let plan = plan(&args).expect("a plan");
    assert_eq!((plan.sizes.as_slice(), plan.depth), (&[1024, 65536][..], 8));
    assert_eq!((plan.post_list, plan.signal_every), (8, 8));
    assert_eq!(
        (plan.length, plan.mtu, plan.settle_milliseconds),
        (Length::Milliseconds(500), Some(1024), 250)
    );
    assert_eq!((plan.queue_pairs, plan.runs), (4, 3));
    assert!(plan.bidirectional && !plan.events);
    assert_eq!(plan.rate, Some(Rate::BitsPerSecond(10_000_000_000)));
    let target = target(&args).expect("a target");
    assert_eq!(target.gid, GidChoice::Kind(GidKind::RoceV2Ipv4));
    assert_eq!(target.numa, Some(0));
    assert_eq!(target.line_rate_gbit_per_second, Some(100.0));
}

#[test]
fn each_verb_and_measure_has_a_usual_plan() {
    for verb in ["write", "send", "read", "atomic"] {
        for measure in ["bandwidth", "latency"] {
            let args = parsed(&format!("bench {verb} {measure}")).expect("a good line");
            let plan = plan(&args).expect("a plan");
            assert_eq!(plan.name(), format!("{verb} {measure}"));
        }
    }
}

#[test]
fn counted_messages_are_all_there_are() {
    let counted = parsed("bench write bandwidth --iterations 5000").expect("a good line");
    assert_eq!(plan(&counted).expect("a plan").settle_milliseconds, 0);
    let timed = parsed("bench write bandwidth").expect("a good line");
    assert_eq!(plan(&timed).expect("a plan").settle_milliseconds, 1000);
}

#[test]
fn a_server_insists_only_on_what_it_was_told() {
    let args = parsed("bench write bandwidth --mtu 4096 --events").expect("a good line");
    let serve = serve(&args, &plan(&args).expect("a plan"));
    let told = [("events", "true".to_owned()), ("mtu", "4096".to_owned())];
    assert_eq!(serve.options, told);
    assert_eq!(serve.name.as_deref(), Some("write bandwidth"));
}

#[test]
fn a_server_can_insist_on_every_option_of_a_plan() {
    let line = "bench write bandwidth --size 1 --atomic fetch-add --queue-pairs 1 --depth 1 \
                --receive-depth 1 --post-list 1 --signal-every 1 --inline 0 --bidirectional \
                --events --rate 1Gb/s --mtu 1024 --service-level 0 --traffic-class 0 \
                --timeout 14 --retries 6 --iterations 1 --runs 1 --warmup 0 --settle 0";
    let args = parsed(line).expect("a good line");
    let plan = plan(&args).expect("a plan");
    let given = serve(&args, &plan).options.len();
    // Messages are counted here, so only their time is not given.
    assert_eq!(given, plan.options().len() - 1);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for line in [
        "bench fetch bandwidth",
        "bench write bandwidth host --local",
        "bench write bandwidth host --persistent",
        "bench write bandwidth --size 1T",
        "bench write bandwidth --gid-index 1 --gid-type rocev1",
        "bench write bandwidth --gid-type rocev3",
        "bench write bandwidth host --iterations 5 --duration 1",
        "bench write bandwidth host --rate fast",
        "bench write bandwidth host --tls-key key.pem",
        "bench write bandwidth host --expect 90",
    ] {
        assert!(parsed(line).is_err(), "{line}");
    }
    for line in [
        "write bandwidth host --duration=-1",
        "write bandwidth host --duration NaN",
        "write bandwidth host --depth 0",
        "write bandwidth host --mtu 1500",
        "write bandwidth host --post-list 200",
        "write latency host --events",
        "send latency host --queue-pairs 2",
        "atomic latency host --size 16",
        "write latency host --expect 90Gb/s",
        "write bandwidth host --expect-latency 3us",
        "write bandwidth host --expect-percent 120",
    ] {
        let args = parsed(&format!("bench {line}")).expect("parsed");
        assert_eq!(plan(&args).expect_err("refused").code(), 3, "{line}");
    }
}

#[test]
fn a_missing_certificate_is_named_with_its_option() {
    let line = "bench write bandwidth host --tls-certificate /no/such.pem --tls-key /no/such.key \
                --tls-ca /no/such-ca.pem";
    let failure = target(&parsed(line).expect("parsed")).expect_err("no such file");
    assert_eq!(failure.code(), 3);
    assert!(
        failure
            .to_string()
            .contains("--tls-certificate /no/such.pem")
    );
}

#[test]
fn the_documentation_has_every_option() {
    let text = include_str!("../../../../../docs/rdma-bench.md");
    let command = Command::command();
    let missing: Vec<&str> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .filter(|long| !text.contains(&format!("`--{long}")))
        .collect();
    assert!(missing.is_empty(), "docs/rdma-bench.md lacks {missing:?}");
    // What it shows must be understood: each line that starts a client, a server or both.
    let examples = text.lines().filter_map(|line| {
        let line = line.trim();
        let start = line.find("trackbed rdma bench ")?;
        let is_command = start == 0 || line[..start].ends_with("$ ");
        is_command.then(|| &line[start + "trackbed rdma ".len()..])
    });
    let mut count = 0;
    for example in examples {
        count += 1;
        let args = parsed(example).unwrap_or_else(|error| panic!("{example}: {error}"));
        plan(&args).unwrap_or_else(|error| panic!("{example}: {error}"));
    }
    assert!(count >= 20, "only {count} examples");
}
