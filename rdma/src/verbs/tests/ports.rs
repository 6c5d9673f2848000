//! Ports, their addresses and their events.

use super::*;

#[test]
fn ports_and_gids_are_read_through_the_classic_and_the_extended_table() {
    for device in ["mock0", "mock1"] {
        let context = mock::open(device).expect("the mock device");
        let port = context.port(1).expect("port 1");
        assert_eq!(
            (port.state, port.active_mtu),
            (PortState::Active, Mtu::Bytes1024)
        );
        assert_eq!(port.link_layer, LinkLayer::Ethernet);
        let chosen = context
            .local_port(None, &GidChoice::Automatic)
            .expect("a GID");
        assert_eq!(
            (chosen.gid_index, chosen.gid.ip().to_string().as_str()),
            (3, "10.0.0.1")
        );
        assert!(matches!(
            context.port(2),
            Err(VerbsError::NoPort { ports: 1, .. })
        ));
        let missing = GidChoice::Kind(GidKind::InfiniBand);
        let error = context
            .local_port(Some(1), &missing)
            .expect_err("no such GID");
        assert!(
            error.to_string().contains("10.0.0.1 (rocev2-ipv4)"),
            "{error}"
        );
    }
    let error = mock::open("mlx5_0").expect_err("no such device");
    assert!(error.to_string().contains("mock0, mock1"), "{error}");
}

#[test]
fn ends_that_chose_different_kinds_of_address_are_told_so_before_they_wait_in_vain() {
    let (left, right) = (side("mock0", 64), side("mock0", 64));
    let port = right
        .context
        .local_port(None, &GidChoice::Kind(GidKind::RoceV2Ipv6))
        .expect("the link-local one");
    let b = UnconnectedQueuePair::<Piece, Piece>::new(&right.pd, &right.queue, port, &config(2))
        .expect("a queue pair");
    let a = left.unconnected(&config(2));
    let failed = a
        .connect(&b.endpoint(), &ConnectOptions::default())
        .expect_err("incompatible");
    assert!(
        failed.error.to_string().contains("choose one kind on both"),
        "{failed}"
    );
    let again = failed.queue_pair.connect(
        &left.unconnected(&config(2)).endpoint(),
        &Default::default(),
    );
    assert!(
        again.is_ok(),
        "the queue pair can be used with another peer"
    );
}

#[test]
fn port_events_are_reported_and_taken_once() {
    let context = mock::open("mock0").expect("the mock device");
    assert_eq!(context.next_event().expect("none"), None);
    mock::report_port(&context, 1, false);
    let event = context.next_event().expect("one").expect("one");
    assert_eq!((event.kind, event.port()), (EventKind::PortError, Some(1)));
    assert_eq!(context.next_event().expect("none"), None);
}
