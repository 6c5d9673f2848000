//! The meeting over mutual TLS, and what an end says when it can't be had.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use super::tests::{mock, short};
use super::*;
use crate::bench::Identity;
use authority::Authority;

#[path = "../../../tests/authority/mod.rs"]
mod authority;

/// What an end for `name` shows, when it accepts what `accepts` issued.
fn identity(
    issuer: &Authority,
    name: &str,
    accepts: &Authority,
    peer: Option<&str>,
) -> Arc<Identity> {
    let papers = issuer.issue(name);
    let identity = Identity::from_pem(
        papers.certificate.as_bytes(),
        papers.key.as_bytes(),
        accepts.pem.as_bytes(),
        peer.map(str::to_owned),
    );
    Arc::new(identity.expect("an identity"))
}

type Outcome = Result<Report, BenchError>;

/// A client and a server that meet on loopback.
fn meet(client: Option<Arc<Identity>>, server: Option<Arc<Identity>>) -> (Outcome, Outcome) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let target = |identity| Target {
        identity,
        ..mock("mock0")
    };
    let theirs = target(server);
    let server = thread::spawn(move || {
        let patience = Some(Duration::from_secs(30));
        serve_next(&listener, &theirs, &Serve::default(), patience, &mut |_| {})
    });
    let plan = short(Measure::Bandwidth);
    let ours = run(&target(client), &plan, "127.0.0.1", port, &mut |_| {});
    (ours, server.join().expect("no panic"))
}

#[test]
fn ends_of_one_authority_measure() {
    let authority = Authority::new();
    let server = identity(&authority, "node-1", &authority, None);
    let client = identity(&authority, "node-2", &authority, Some("node-1"));
    let (ours, theirs) = meet(Some(client), Some(server));
    assert_eq!(ours.expect("measured").rows[0].messages, 1000);
    assert_eq!(theirs.expect("served").rows[0].messages, 1000);
}

#[test]
fn a_server_of_another_name_is_not_measured_against() {
    let authority = Authority::new();
    let server = identity(&authority, "node-3", &authority, None);
    let client = identity(&authority, "node-2", &authority, Some("node-1"));
    let (ours, theirs) = meet(Some(client), Some(server));
    let said = ours.expect_err("another name").to_string();
    assert!(said.contains("--tls-name"), "{said}");
    assert!(theirs.expect_err("refused").is_setup());
}

#[test]
fn strangers_with_certificates_of_their_own_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = identity(&authority, "node-1", &authority, None);
    // It accepts the server, and is not accepted.
    let client = identity(&other, "node-2", &authority, Some("node-1"));
    let (ours, theirs) = meet(Some(client), Some(server));
    let said = theirs.expect_err("a stranger").to_string();
    assert!(said.contains("--tls-ca"), "{said}");
    assert!(ours.expect_err("refused").is_setup());
}

#[test]
fn one_end_with_tls_and_one_without_say_so() {
    let authority = Authority::new();
    let both = || Some(identity(&authority, "node-1", &authority, Some("node-1")));
    for (client, server) in [(both(), None), (None, both())] {
        let (ours, theirs) = meet(client, server);
        let (ours, theirs) = (ours.expect_err("refused"), theirs.expect_err("refused"));
        assert!(ours.is_setup() && theirs.is_setup(), "{ours}; {theirs}");
        let said = format!("{ours}; {theirs}");
        assert!(said.contains("--tls-certificate"), "{said}");
    }
}

#[test]
fn a_peer_that_never_shakes_hands_is_left() {
    let authority = Authority::new();
    let server = identity(&authority, "node-1", &authority, None);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    let (stream, _) = listener.accept().expect("accepted");
    drop(silent);
    assert!(server.accept(stream).is_err());
}

#[test]
fn only_the_server_whose_certificate_is_expected_is_measured_against() {
    let authority = Authority::new();
    let server = identity(&authority, "node-1", &authority, None);
    let other = identity(&authority, "node-1", &authority, None);
    let seen = |server: &Arc<Identity>| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = Arc::clone(server);
        let met = thread::spawn(move || {
            let stream = TcpStream::connect(address).expect("connected");
            // As a node shows its certificate to the coordinator.
            client.connect(stream, "node-1").expect("a stream").peer()
        });
        let (stream, _) = listener.accept().expect("accepted");
        let shown = server.accept(stream).expect("a stream").peer();
        met.join().expect("no panic");
        shown.expect("a certificate")
    };
    let fingerprint = seen(&server);
    assert_ne!(fingerprint, seen(&other), "of the same name");
    let client = identity(&authority, "node-2", &authority, None);
    let client = Arc::new(client.expecting(fingerprint));
    let (ours, theirs) = meet(Some(Arc::clone(&client)), Some(server));
    assert_eq!(ours.expect("measured").rows[0].messages, 1000);
    theirs.expect("served");
    let (ours, _) = meet(Some(client), Some(other));
    let said = ours.expect_err("another certificate").to_string();
    assert!(said.contains("not the one that its node showed"), "{said}");
}
