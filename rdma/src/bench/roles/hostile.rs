//! Peers that are something else, say nonsense, or leave: each end gives up with a sentence.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use proptest::prelude::*;

use super::tests::{mock, short};
use super::*;
use crate::bench::message::PREAMBLE;
use crate::bench::{Length, Verb};

/// What a role says of a peer that sends these bytes after its greeting and then leaves.
fn met(
    says: &[u8],
    role: impl FnOnce(Box<dyn Stream>) -> Result<Report, BenchError>,
) -> BenchError {
    let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    let says = [&PREAMBLE[..], says].concat();
    let peer = thread::spawn(move || {
        // It may have given up before it has heard all of it.
        theirs.write_all(&says).ok();
        theirs.shutdown(std::net::Shutdown::Write).ok();
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).ok();
    });
    let outcome = role(Box::new(ours));
    peer.join().expect("no panic");
    outcome.expect_err("nobody measured anything")
}

fn as_server(says: &[u8]) -> BenchError {
    met(says, |stream| {
        serve_on(stream, &mock("mock0"), &Serve::default(), &mut |_| {})
    })
}

fn as_client(says: &[u8]) -> BenchError {
    met(says, |stream| {
        let plan = short(Measure::Bandwidth);
        run_on(stream, &mock("mock0"), &plan, "client", &mut |_| {})
    })
}

fn framed(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("short");
    [&len.to_le_bytes()[..], body].concat()
}

fn hello(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut hello = serde_json::json!({
        "message": "hello",
        "version": 2,
        "software": "trackbed 0.1.0",
        "end": {"host": "node-1", "device": "mock0"},
        "plan": short(Measure::Bandwidth),
        "gid_kind": "rocev2-ipv4",
        "address": {"endpoints": ["00"], "window": null},
    });
    change(&mut hello);
    framed(hello.to_string().as_bytes())
}

#[test]
fn a_client_of_another_version_is_told_which_both_have() {
    let says = hello(|hello| hello["version"] = 1.into());
    let error = as_server(&says);
    let text = error.to_string();
    assert!(text.contains("version 1, we speak 2"), "{text}");
    assert!(text.contains("same release") && error.is_setup());
}

#[test]
fn a_plan_beyond_all_bounds_is_refused_before_memory_is_mapped() {
    let says = hello(|hello| hello["plan"]["sizes"] = vec![u64::MAX].into());
    let text = as_server(&says).to_string();
    assert!(text.contains("message size can't be"), "{text}");
    let says = hello(|hello| hello["plan"]["queue_pairs"] = u32::MAX.into());
    let text = as_server(&says).to_string();
    assert!(text.contains("number of queue pairs"), "{text}");
}

#[test]
fn addresses_that_are_none_are_refused() {
    for endpoints in [vec!["zz"], vec![], vec!["00", "00"]] {
        let says = hello(|hello| hello["address"]["endpoints"] = endpoints.clone().into());
        let error = as_server(&says);
        assert!(matches!(error, BenchError::Stranger { .. }), "{error}");
    }
}

#[test]
fn messages_out_of_turn_are_named() {
    let error = as_server(&framed(br#"{"message":"ready"}"#));
    assert!(
        error.to_string().contains("\"ready\" where a hello"),
        "{error}"
    );
    let error = as_client(&framed(br#"{"message":"finished","rows":[]}"#));
    assert!(
        error.to_string().contains("\"finished\" where a welcome"),
        "{error}"
    );
}

#[test]
fn a_peer_that_gives_up_is_quoted_without_what_could_garble_a_terminal() {
    let error = as_client(&framed(
        br#"{"message":"refuse","reason":"no \u001b[31mdevice"}"#,
    ));
    let text = error.to_string();
    assert!(text.contains("no [31mdevice") && error.is_setup(), "{text}");
}

#[test]
fn a_peer_that_leaves_in_the_middle_is_no_reason_to_wait() {
    let error = as_server(&hello(|_| {})[..40]);
    assert!(
        error.to_string().contains("closed the connection"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn arbitrary_bytes_end_both_roles_with_a_set_up_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), as_frame: bool,
    ) {
        let says = if as_frame { framed(&bytes) } else { bytes };
        prop_assert!(as_server(&says).is_setup());
        prop_assert!(as_client(&says).is_setup());
    }

    /// Well-formed messages, in any order and with any numbers.
    #[test]
    fn arbitrary_messages_end_both_roles_with_a_set_up_error(
        picks in proptest::collection::vec((0usize..8, any::<u64>()), 1..6),
    ) {
        let mut says = hello(|_| {});
        let mut alone = Vec::new();
        for (pick, number) in picks {
            let body = match pick {
                0 => r#"{"message":"ready"}"#.to_owned(),
                1 => r#"{"message":"alive"}"#.to_owned(),
                2 => format!(r#"{{"message":"begin","bytes":{number},"seed":{number}}}"#),
                3 => format!(r#"{{"message":"check","messages":[{number}]}}"#),
                4 => format!(r#"{{"message":"checked","intact":true,"messages":[{number}]}}"#),
                5 => r#"{"message":"transfer","until":"peer"}"#.to_owned(),
                6 => r#"{"message":"finished","rows":[]}"#.to_owned(),
                _ => r#"{"message":"welcome","end":{"host":"","device":""},"address":{"endpoints":[],"window":null}}"#.to_owned(),
            };
            says.extend(framed(body.as_bytes()));
            alone.extend(framed(body.as_bytes()));
        }
        prop_assert!(as_server(&says).is_setup());
        prop_assert!(as_client(&alone).is_setup());
    }
}

#[test]
fn ends_that_sleep_until_the_next_message_hear_that_the_other_one_is_gone() {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let line = ours.try_clone().expect("a second descriptor");
    let serving = thread::spawn(move || {
        serve_on(
            Box::new(theirs),
            &mock("mock0"),
            &Serve::default(),
            &mut |_| {},
        )
    });
    let plan = Plan {
        events: true,
        length: Length::Milliseconds(60_000),
        ..Plan::new(Verb::Send, Measure::Latency)
    };
    let outcome = run_on(
        Box::new(ours),
        &mock("mock1"),
        &plan,
        "client",
        &mut |progress| {
            if let Progress::Measuring(_) = progress {
                line.shutdown(std::net::Shutdown::Both).expect("cut");
            }
        },
    );
    let served = serving.join().expect("no panic");
    for error in [outcome.err(), served.err()] {
        let text = error.expect("the line was cut").to_string();
        assert!(text.contains("closed the connection"), "{text}");
    }
}
