//! Rejections, peers and devices that go, and events nobody waits for.

use super::*;

#[test]
fn a_rejection_brings_its_reason_and_its_private_data() {
    let nobody = address();
    let (_end, request) = asked_of(nobody);
    let error = request.wait().map(drop).expect_err("nobody listens");
    let text = error.to_string();
    assert!(text.contains("nobody listens"), "{text}");

    let at = address();
    let mut listener = mock::cm::listener(at, 4).expect("listening");
    let (_end, request) = asked_of(at);
    let incoming = listener.next_request().expect("sound").expect("a request");
    let why = PrivateData::message(b"full up").expect("fits");
    incoming.reject(&why).expect("rejected");
    let error = request.wait().map(drop).expect_err("rejected");
    let ConnectError::Rejected {
        reason,
        private_data,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(reason, Refusal::ByApplication);
    assert_eq!(private_data.decode_message(), Ok(b"full up".as_slice()));

    // One that is dropped is rejected without a word.
    let (_end, request) = asked_of(at);
    drop(listener.next_request().expect("sound").expect("a request"));
    let error = request.wait().map(drop).expect_err("rejected");
    assert!(
        matches!(
            error,
            ConnectError::Rejected {
                reason: Refusal::ByApplication,
                ..
            }
        ),
        "{error}"
    );
    // Bytes that no program of ours sent.
    let foreign = no_answer(Answer::Event {
        kind: sys::RDMA_CM_EVENT_REJECTED,
        status: 28,
        private_data: vec![0xff; 148],
    });
    let ConnectError::Rejected { private_data, .. } = foreign else {
        panic!("{foreign}");
    };
    assert_eq!(private_data.as_bytes(), [0xff; 148]);
    assert_eq!(
        private_data.decode_message(),
        Err(PrivateDataError::Foreign)
    );
}

#[test]
fn a_peer_that_can_not_be_reached_is_told_from_one_that_is_late() {
    let unreachable = sys::RDMA_CM_EVENT_UNREACHABLE;
    let error = no_answer(event(unreachable, -libc::EHOSTUNREACH));
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    let error = no_answer(event(unreachable, -libc::ETIMEDOUT));
    assert!(
        matches!(
            error,
            ConnectError::TimedOut {
                phase: Phase::Answer,
                ..
            }
        ),
        "{error}"
    );
    let error = no_answer(event(sys::RDMA_CM_EVENT_CONNECT_ERROR, 7));
    assert!(error.to_string().contains("status 7"), "{error}");
    let error = no_answer(event(sys::RDMA_CM_EVENT_DISCONNECTED, 0));
    assert!(matches!(error, ConnectError::Gone { .. }), "{error}");
}

#[test]
fn a_device_that_is_removed_ends_whatever_step_it_meets() {
    let removed = || event(sys::RDMA_CM_EVENT_DEVICE_REMOVAL, 0);
    for call in ["rdma_resolve_addr", "rdma_resolve_route"] {
        let error = no_route(call, removed());
        assert!(
            matches!(error, ConnectError::DeviceRemoved { .. }),
            "{error}"
        );
    }
    let error = no_answer(removed());
    assert!(
        matches!(error, ConnectError::DeviceRemoved { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("connect anew"), "{error}");

    // Between two steps, before anybody was told.
    let at = address();
    mock::cm::answer("rdma_resolve_route", at, Answer::Silence);
    let Ok(Progress::Pending(pending)) = connector(at, later()).advance() else {
        panic!("the route is not there yet");
    };
    mock::cm::remove_device(at);
    mock::cm::report(at, sys::RDMA_CM_EVENT_ROUTE_RESOLVED, 0);
    let error = pending.wait().map(drop).expect_err("it has gone");
    assert!(
        matches!(error, ConnectError::DeviceRemoved { .. }),
        "{error}"
    );

    // While an acceptance waits for its confirmation.
    let at = address();
    let mut listener = mock::cm::listener(at, 4).expect("listening");
    let (_end, request) = asked_of(at);
    let incoming = listener.next_request().expect("sound").expect("a request");
    let from = incoming.peer_address();
    let (_other, pair) = unconnected();
    let options = ConnectOptions::default();
    let accepted = incoming
        .accept(pair, &options, &PrivateData::default(), later())
        .expect("accepted");
    mock::cm::report(from, sys::RDMA_CM_EVENT_DEVICE_REMOVAL, 0);
    let error = accepted.wait().map(drop).expect_err("removed");
    assert!(
        matches!(error, ConnectError::DeviceRemoved { .. }),
        "{error}"
    );
    // The other end learns that it is over, whatever it had heard before.
    assert!(request.wait().is_err());
    mock::cm::report(at, sys::RDMA_CM_EVENT_DEVICE_REMOVAL, 0);
    let error = listener.next_request().map(drop).expect_err("removed");
    assert!(
        matches!(error, ConnectError::DeviceRemoved { .. }),
        "{error}"
    );
}

#[test]
fn a_connection_tells_of_its_device_its_address_and_its_end() {
    let at = address();
    let ((_left, mut a, mut at_a), (_right, b, at_b), _listener) = connected(at);
    for (kind, expected) in [
        (sys::RDMA_CM_EVENT_ADDR_CHANGE, Event::AddressChanged),
        (sys::RDMA_CM_EVENT_DEVICE_REMOVAL, Event::DeviceRemoved),
        (sys::RDMA_CM_EVENT_TIMEWAIT_EXIT, Event::TimeWaitOver),
    ] {
        mock::cm::report(at, kind, 0);
        assert_eq!(at_a.next_event().expect("sound"), Some(expected));
    }
    // The peer dies: its objects go, and with them its identifier.
    drop((b, at_b));
    assert_eq!(at_a.next_event().expect("sound"), Some(Event::Disconnected));
    a.fail().expect("to the error state");
}

#[test]
fn events_of_unknown_type_change_nothing() {
    let at = address();
    mock::cm::answer("rdma_resolve_addr", at, event(4711, -1));
    let Ok(Progress::Pending(pending)) = connector(at, later()).advance() else {
        panic!("nothing is resolved");
    };
    mock::cm::report(at, sys::RDMA_CM_EVENT_MULTICAST_ERROR, -1);
    mock::cm::report(at, sys::RDMA_CM_EVENT_ADDR_RESOLVED, 0);
    let error = pending.wait().map(drop);
    let error = error.expect_err("resolved, but no device is there");
    assert!(
        matches!(error, ConnectError::DeviceRemoved { .. }),
        "{error}"
    );
    let ((_left, _a, mut at_a), _other, mut listener) = connected(address());
    let known = at_a.peer_address();
    mock::cm::report(known, 4711, 0);
    assert_eq!(at_a.next_event().expect("sound"), None);
    assert!(listener.next_request().expect("sound").is_none());
}

#[test]
fn an_event_of_an_identifier_that_is_gone_is_nobodys() {
    // But requests, which bring an identifier with them.
    let kinds = (0..=16).filter(|kind| *kind != sys::RDMA_CM_EVENT_CONNECT_REQUEST);
    for kind in kinds {
        let at = address();
        let mut listener = mock::cm::listener(at, 4).expect("listening");
        let pending = connector(at, later());
        mock::cm::report_of_another(at, kind);
        let route = pending.wait().expect("not disturbed");
        let (_end, pair) = unconnected();
        let request = route.connect(pair, &PrivateData::default()).expect("asked");
        mock::cm::report_of_another(at, kind);
        let incoming = listener.next_request().expect("sound");
        let incoming = incoming.expect("the request behind it");
        let (_other, pair) = unconnected();
        let options = ConnectOptions::default();
        let accepted = incoming
            .accept(pair, &options, &PrivateData::default(), later())
            .expect("accepted");
        let (_a, mut at_a) = request.wait().expect("connected");
        accepted.wait().expect("confirmed");
        mock::cm::report_of_another(at, kind);
        // The other end has gone, as its objects were dropped; that is all there is to tell.
        assert_eq!(at_a.next_event().expect("sound"), Some(Event::Disconnected));
        assert_eq!(at_a.next_event().expect("sound"), None);
    }
}

#[test]
fn one_request_that_can_not_be_taken_does_not_stop_the_others() {
    let at = address();
    let mut listener = mock::cm::listener(at, 4).expect("listening");
    mock::cm::answer("rdma_migrate_id", at, Answer::Refused(libc::EMFILE));
    let (_one, first) = asked_of(at);
    let (_two, second) = asked_of(at);
    let error = listener.next_request().map(drop).expect_err("no files");
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    let incoming = listener.next_request().expect("sound").expect("the second");
    incoming.reject(&PrivateData::default()).expect("rejected");
    for request in [first, second] {
        let error = request.wait().map(drop).expect_err("rejected");
        assert!(matches!(error, ConnectError::Rejected { .. }), "{error}");
    }
    // A request whose device went before it was taken is over as well.
    let (_three, third) = asked_of(at);
    mock::cm::remove_device(at);
    assert!(listener.next_request().expect("sound").is_none());
    let error = third.wait().map(drop).expect_err("over");
    assert!(matches!(error, ConnectError::Rejected { .. }), "{error}");
}

#[test]
fn a_call_that_fails_at_any_point_is_named_and_leaves_nothing_behind() {
    for call in [
        "rdma_connect",
        "rdma_establish",
        "rdma_init_qp_attr",
        "rdma_accept",
    ] {
        let at = address();
        let mut listener = mock::cm::listener(at, 4).expect("listening");
        mock::cm::answer(call, at, Answer::Refused(libc::ENOMEM));
        let outcome = (|| {
            let (_end, pair) = unconnected();
            let request = routed(at).connect(pair, &PrivateData::default())?;
            let incoming = listener.next_request()?.expect("a request");
            let (_other, pair) = unconnected();
            let options = ConnectOptions::default();
            let accepted = incoming.accept(pair, &options, &PrivateData::default(), later())?;
            request.wait()?;
            accepted.wait().map(drop)
        })();
        let error = outcome.expect_err("refused");
        let source = io::Error::from_raw_os_error(libc::ENOMEM).to_string();
        let text = error.to_string();
        assert!(text.contains(call) && text.contains(&source), "{text}");
        assert_eq!(mock::cm::identifiers(at), 1, "the listener only");
    }
    let at = address();
    let _first = mock::cm::listener(at, 1).expect("listening");
    let error = mock::cm::listener(at, 1).map(drop).expect_err("taken");
    assert!(error.to_string().contains("another port"), "{error}");
}
