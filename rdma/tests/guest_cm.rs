//! Connections by librdmacm over soft-RoCE, with programs of ours and of others: in the guest of
//! `hack/vm`, in the network namespace `one` of `hack/lib/guest-tests.sh`, whose neighbour is `other`.

mod rping;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rping::{Pinger, PongServer};
use trackbed_rdma::verbs::cm::{
    ConnectError, Connection, Connector, Event, Listener, Options, Phase, PrivateData, Progress,
    Refusal, Route, Step,
};
use trackbed_rdma::verbs::{
    Access, CompletionQueue, ConnectOptions, Context, LocalPort, Mapping, MemoryRegion, Piece,
    ProtectionDomain, QueuePair, QueuePairConfig, Segment, Settled, UnconnectedQueuePair, Work,
};

/// Our own address, and our neighbour's.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 2));

/// Whether there is a network to test in.
fn in_the_guest() -> bool {
    let guest = std::env::var("TRACKBED_GUEST").as_deref() == Ok("1");
    let devices = std::env::var_os("TRACKBED_TEST_DEVICES").is_some();
    if !(guest && devices) {
        eprintln!("skipped: no two RDMA nodes; `hack/test guest` runs this in a virtual machine");
    }
    guest && devices
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    /// In the neighbour's namespace.
    fn there(program: &str, arguments: &[&str]) -> Process {
        let child = Command::new("ip")
            .args(["netns", "exec", "other", program])
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("the guest has it");
        Process(child)
    }

    fn succeeds(mut self) {
        let status = self.0.wait().expect("it is ours");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("the guest has it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Memory and a completion queue for a queue pair.
struct Place {
    queue: CompletionQueue,
    pieces: Vec<Piece>,
    pd: Arc<ProtectionDomain>,
    region: Arc<MemoryRegion>,
}

impl Place {
    fn on(context: &Arc<Context>) -> Place {
        let pd = ProtectionDomain::new(context).unwrap();
        let queue = CompletionQueue::with_events(context, 64).unwrap();
        let (mapping, pieces) = Mapping::split(4096, 8).unwrap();
        let region = MemoryRegion::register(&pd, mapping, Access::LocalWrite).unwrap();
        Place {
            queue,
            pieces,
            pd,
            region,
        }
    }

    fn queue_pair(&mut self, port: LocalPort) -> UnconnectedQueuePair<Piece, Piece> {
        let config = QueuePairConfig {
            send_depth: 8,
            receive_depth: 8,
            ..QueuePairConfig::default()
        };
        let mut queue_pair =
            UnconnectedQueuePair::new(&self.pd, &self.queue, port, &config).unwrap();
        queue_pair.attach(&self.region).unwrap();
        let piece = self.pieces.pop().unwrap();
        queue_pair
            .post_receive(piece, &[Segment::new(0, 4096)])
            .unwrap();
        queue_pair
    }

    /// The message that arrives next.
    fn receive(&mut self, queue_pair: &mut QueuePair<Piece, Piece>) -> Vec<u8> {
        let patience = soon();
        loop {
            assert!(Instant::now() < patience, "no message came");
            let Some(done) = self.queue.poll().unwrap() else {
                thread::yield_now();
                continue;
            };
            match queue_pair.settle(done) {
                Settled::Received(received) => {
                    let len = received.outcome.unwrap().bytes as usize;
                    return received.payload[..len].to_vec();
                }
                Settled::Sent(sent) => assert!(sent.outcome().is_ok()),
                Settled::Stale => {}
            }
        }
    }

    fn send(&mut self, queue_pair: &mut QueuePair<Piece, Piece>, message: &[u8]) {
        let mut piece = self.pieces.pop().unwrap();
        piece[..message.len()].copy_from_slice(message);
        let mut batch = queue_pair.batch();
        let segments = [Segment::new(0, message.len() as u32)];
        batch
            .push(piece, &[Work::send(&segments).signaled()])
            .unwrap();
        batch.commit().unwrap();
    }
}

/// One end, connected.
struct End {
    // Dropped in this order.
    queue_pair: QueuePair<Piece, Piece>,
    place: Place,
    connection: Connection,
}

fn route_to(address: SocketAddr) -> Result<Route, ConnectError> {
    Connector::new(address, &Options::default(), soon())?.wait()
}

fn connect(address: SocketAddr, greeting: &PrivateData) -> Result<End, ConnectError> {
    let route = route_to(address)?;
    let context = route.open()?;
    let mut place = Place::on(&context);
    let queue_pair = place.queue_pair(route.local_port(&context)?);
    let (queue_pair, connection) = route.connect(queue_pair, greeting)?.wait()?;
    Ok(End {
        queue_pair,
        place,
        connection,
    })
}

fn accept(listener: &mut Listener, greeting: &PrivateData) -> Result<End, ConnectError> {
    let incoming = listener.wait(soon())?.expect("a request");
    let context = incoming.open()?;
    let mut place = Place::on(&context);
    let queue_pair = place.queue_pair(incoming.local_port(&context)?);
    let path = ConnectOptions::default();
    let accepting = incoming.accept(queue_pair, &path, greeting, soon())?;
    let (queue_pair, connection) = accepting.wait()?;
    Ok(End {
        queue_pair,
        place,
        connection,
    })
}

/// Two ends of one connection, on this very host.
fn both_ends() -> (End, End) {
    let mut listener = Listener::bind(SocketAddr::new(HERE, 0), 4).unwrap();
    let address = listener.local_address();
    let asking = thread::spawn(move || connect(address, &PrivateData::message(b"ask").unwrap()));
    let answering = accept(&mut listener, &PrivateData::message(b"answer").unwrap()).unwrap();
    (asking.join().unwrap().unwrap(), answering)
}

/// Waits for an event of a connection.
fn event(connection: &mut Connection) -> Event {
    let patience = soon();
    loop {
        if let Some(event) = connection.next_event().unwrap() {
            return event;
        }
        assert!(Instant::now() < patience, "no event came");
        let descriptor = connection.as_fd();
        let timeout = PollTimeout::from(1000u16);
        poll(&mut [PollFd::new(descriptor, PollFlags::POLLIN)], timeout).unwrap();
    }
}

/// Tries until somebody listens there.
fn when_it_listens<T>(attempt: impl Fn() -> Result<T, ConnectError>) -> T {
    let patience = soon();
    loop {
        match attempt() {
            Err(ConnectError::Rejected {
                reason: Refusal::NobodyListens,
                ..
            }) if Instant::now() < patience => thread::sleep(Duration::from_millis(100)),
            result => return result.unwrap_or_else(|error| panic!("{error}")),
        }
    }
}

#[test]
fn rpings_server_reads_and_writes_memory_of_a_client_of_ours() {
    if !in_the_guest() {
        return;
    }
    let server = Process::there(
        "rping",
        &["-s", "-a", "10.88.0.2", "-p", "7401", "-v", "-C", "8"],
    );
    let address = SocketAddr::new(THERE, 7401);
    let mut pinger = when_it_listens(|| Pinger::connect(address, soon()));
    for number in 0..8 {
        pinger.ping(number);
    }
    drop(pinger);
    server.succeeds();
}

#[test]
fn rpings_client_gets_its_own_bytes_back_from_a_server_of_ours() {
    if !in_the_guest() {
        return;
    }
    let mut listener = Listener::bind(SocketAddr::new(HERE, 7402), 4).unwrap();
    let arguments = [
        "-c",
        "-a",
        "10.88.0.1",
        "-p",
        "7402",
        "-v",
        "-V",
        "-C",
        "9",
        "-S",
        "1000",
    ];
    let client = Process::there("rping", &arguments);
    let mut server = PongServer::accept(&mut listener, soon());
    assert_eq!(server.answer_until_it_leaves(), 9);
    client.succeeds();
}

#[test]
fn a_host_connects_to_itself_and_greetings_and_data_go_both_ways() {
    if !in_the_guest() {
        return;
    }
    let (mut asking, mut answering) = both_ends();
    let greeting = |end: &End| {
        end.connection
            .private_data()
            .decode_message()
            .unwrap()
            .to_vec()
    };
    assert_eq!(greeting(&asking), b"answer");
    assert_eq!(greeting(&answering), b"ask");
    assert_eq!(asking.connection.peer_address().ip(), HERE);
    assert_eq!(answering.connection.peer_address().ip(), HERE);
    asking.place.send(&mut asking.queue_pair, b"there");
    answering.place.send(&mut answering.queue_pair, b"and back");
    assert_eq!(answering.place.receive(&mut answering.queue_pair), b"there");
    assert_eq!(asking.place.receive(&mut asking.queue_pair), b"and back");
}

#[test]
fn one_end_disconnects_and_both_learn_of_it() {
    if !in_the_guest() {
        return;
    }
    let (mut asking, mut answering) = both_ends();
    asking.connection.disconnect().unwrap();
    assert_eq!(event(&mut answering.connection), Event::Disconnected);
    assert_eq!(event(&mut asking.connection), Event::Disconnected);
    assert_eq!(event(&mut asking.connection), Event::TimeWaitOver);
    // Asking again changes nothing.
    asking.connection.disconnect().unwrap();
}

#[test]
fn a_peer_that_is_killed_is_noticed() {
    if !in_the_guest() {
        return;
    }
    let server = Process::there("rping", &["-s", "-a", "10.88.0.2", "-p", "7403"]);
    let address = SocketAddr::new(THERE, 7403);
    let mut end = when_it_listens(|| connect(address, &PrivateData::default()));
    drop(server);
    assert_eq!(event(&mut end.connection), Event::Disconnected);
    end.queue_pair.fail().unwrap();
    let others = |_| panic!("there is one queue pair only");
    let drained = end
        .queue_pair
        .close(&mut end.place.queue, Duration::from_secs(20), others)
        .unwrap();
    assert!(drained, "what was posted comes back");
}

#[test]
fn where_nobody_listens_the_error_says_so() {
    if !in_the_guest() {
        return;
    }
    let error = connect(SocketAddr::new(THERE, 7499), &PrivateData::default()).err();
    let error = error.expect("nobody is there");
    assert!(
        matches!(
            error,
            ConnectError::Rejected {
                reason: Refusal::NobodyListens,
                ..
            }
        ),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.contains("10.88.0.2:7499") && text.contains("nobody listens"),
        "{text}"
    );
}

#[test]
fn a_program_that_refuses_can_say_why() {
    if !in_the_guest() {
        return;
    }
    let mut listener = Listener::bind(SocketAddr::new(HERE, 0), 4).unwrap();
    let address = listener.local_address();
    let asking = thread::spawn(move || connect(address, &PrivateData::message(b"me?").unwrap()));
    let incoming = listener.wait(soon()).unwrap().expect("a request");
    assert_eq!(incoming.peer_address().ip(), HERE);
    assert_eq!(incoming.private_data().decode_message(), Ok(&b"me?"[..]));
    incoming
        .reject(&PrivateData::message(b"not today").unwrap())
        .unwrap();
    match asking.join().unwrap().err().expect("a rejection") {
        ConnectError::Rejected {
            reason,
            private_data,
            ..
        } => {
            assert_eq!(reason, Refusal::ByApplication);
            assert_eq!(private_data.decode_message(), Ok(&b"not today"[..]));
        }
        error => panic!("{error}"),
    }
}

#[test]
fn an_address_that_swallows_everything_times_out_at_the_step_it_got_to() {
    if !in_the_guest() {
        return;
    }
    let timed_out = |address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        let attempt = || {
            let route = Connector::new(address, &Options::default(), deadline)?.wait()?;
            let context = route.open()?;
            let mut place = Place::on(&context);
            let queue_pair = place.queue_pair(route.local_port(&context)?);
            route.connect(queue_pair, &PrivateData::default())?.wait()
        };
        match attempt().err().expect("nobody is there") {
            ConnectError::TimedOut { phase, .. } => phase,
            error => panic!("{error}"),
        }
    };
    // A neighbour that resolves, and takes no packets.
    let swallows = [
        "neigh",
        "replace",
        "10.88.0.66",
        "lladdr",
        "02:00:00:00:00:66",
    ];
    run(
        "ip",
        &[&swallows[..], &["dev", "tb0", "nud", "permanent"]].concat(),
    );
    assert_eq!(timed_out("10.88.0.66:7404"), Phase::Answer);
    // One that does not even resolve.
    assert_eq!(timed_out("10.88.0.67:7404"), Phase::Address);
}

#[test]
fn an_address_off_every_rdma_device_is_an_error_that_names_it() {
    if !in_the_guest() {
        return;
    }
    let error = route_to("192.0.2.1:7405".parse().unwrap())
        .err()
        .expect("no way there");
    assert!(error.to_string().contains("192.0.2.1:7405"), "{error}");
    assert!(
        matches!(
            error,
            ConnectError::Address { .. } | ConnectError::Call { .. }
        ),
        "{error:?}"
    );
    let listening = Listener::bind("192.0.2.1:7405".parse().unwrap(), 1).err();
    assert!(
        listening
            .expect("not our address")
            .to_string()
            .contains("192.0.2.1")
    );
}

#[test]
fn a_queue_pair_on_another_device_is_refused() {
    if !in_the_guest() {
        return;
    }
    let route = route_to(SocketAddr::new(THERE, 7406)).unwrap();
    assert_eq!(route.device_name(), "rxeone");
    let elsewhere = Context::open("rxeother").unwrap();
    let error = route.local_port(&elsewhere).unwrap_err();
    assert!(matches!(error, ConnectError::OtherDevice { .. }), "{error}");
    let mut place = Place::on(&elsewhere);
    let port = elsewhere
        .local_port(None, &trackbed_rdma::verbs::GidChoice::Automatic)
        .unwrap();
    let queue_pair = place.queue_pair(port);
    let error = route.connect(queue_pair, &PrivateData::default()).err();
    let error = error.expect("the wrong device");
    assert!(error.to_string().contains("rxeother"), "{error}");
}

#[test]
fn whatever_is_dropped_first_nothing_hangs_and_the_port_is_free_again() {
    if !in_the_guest() {
        return;
    }
    let address = SocketAddr::new(HERE, 7407);
    for round in 0..4 {
        let mut listener = Listener::bind(address, 4).unwrap();
        // Requests that are never taken, taken and dropped, and an answer that nobody waits for.
        let asking: Vec<_> = (0..3)
            .map(|_| {
                let route = route_to(address).unwrap();
                let context = route.open().unwrap();
                let mut place = Place::on(&context);
                let queue_pair = place.queue_pair(route.local_port(&context).unwrap());
                (
                    route.connect(queue_pair, &PrivateData::default()).unwrap(),
                    place,
                )
            })
            .collect();
        let incoming = listener.wait(soon()).unwrap().expect("a request");
        match round {
            0 => {
                drop(listener);
                drop(incoming);
                for (connecting, _place) in asking {
                    let error = connecting.wait().err().expect("dropped");
                    assert!(matches!(error, ConnectError::Rejected { .. }), "{error}");
                }
            }
            1 => {
                drop(asking);
                drop(incoming);
                drop(listener);
            }
            2 => {
                let context = incoming.open().unwrap();
                let mut place = Place::on(&context);
                let queue_pair = place.queue_pair(incoming.local_port(&context).unwrap());
                let accepting = incoming
                    .accept(
                        queue_pair,
                        &ConnectOptions::default(),
                        &PrivateData::default(),
                        soon(),
                    )
                    .unwrap();
                drop(asking);
                drop(listener);
                // Either outcome is right: the answer may have been confirmed before the drop.
                if let Ok((_queue_pair, mut connection)) = accepting.wait() {
                    assert_eq!(event(&mut connection), Event::Disconnected);
                }
            }
            _ => {
                let (asking_end, answering_end) = both_ends();
                let End {
                    queue_pair,
                    place,
                    connection,
                } = asking_end;
                drop(connection);
                drop(place);
                drop(queue_pair);
                drop(answering_end.connection);
            }
        }
    }
    let listener = Listener::bind(address, 4).unwrap();
    let taken = Listener::bind(address, 4).err().expect("it is taken");
    assert!(
        taken.to_string().contains("another program listens"),
        "{taken}"
    );
    drop(listener);
}

#[test]
fn many_attempts_are_driven_by_one_thread_that_polls() {
    if !in_the_guest() {
        return;
    }
    let mut listener = Listener::bind(SocketAddr::new(HERE, 0), 32).unwrap();
    let address = listener.local_address();
    let mut resolving: Vec<_> = (0..8)
        .map(|_| Connector::new(address, &Options::default(), soon()).unwrap())
        .collect();
    let mut connecting = Vec::new();
    let mut accepting = Vec::new();
    let mut made = 0;
    let patience = soon();
    while made < 16 {
        assert!(Instant::now() < patience, "{made} of 16 ends were made");
        for step in std::mem::take(&mut resolving) {
            match step.advance().unwrap() {
                Progress::Pending(step) => resolving.push(step),
                Progress::Ready(route) => {
                    let context = route.open().unwrap();
                    let mut place = Place::on(&context);
                    let queue_pair = place.queue_pair(route.local_port(&context).unwrap());
                    let step = route.connect(queue_pair, &PrivateData::default()).unwrap();
                    connecting.push((step, place));
                }
            }
        }
        while let Some(incoming) = listener.next_request().unwrap() {
            let context = incoming.open().unwrap();
            let mut place = Place::on(&context);
            let queue_pair = place.queue_pair(incoming.local_port(&context).unwrap());
            let path = ConnectOptions::default();
            let step = incoming.accept(queue_pair, &path, &PrivateData::default(), soon());
            accepting.push((step.unwrap(), place));
        }
        for (step, place) in std::mem::take(&mut connecting) {
            match step.advance().unwrap() {
                Progress::Pending(step) => connecting.push((step, place)),
                // Kept until all are there: an end that goes would be an error for the other.
                Progress::Ready(end) => {
                    made += 1;
                    std::mem::forget((end, place));
                }
            }
        }
        for (step, place) in std::mem::take(&mut accepting) {
            match step.advance().unwrap() {
                Progress::Pending(step) => accepting.push((step, place)),
                Progress::Ready(end) => {
                    made += 1;
                    std::mem::forget((end, place));
                }
            }
        }
        let waiting: Vec<_> = [listener.as_fd()]
            .into_iter()
            .chain(resolving.iter().map(|step| step.as_fd()))
            .chain(connecting.iter().map(|(step, _)| step.as_fd()))
            .chain(accepting.iter().map(|(step, _)| step.as_fd()))
            .collect();
        let mut waiting: Vec<_> = waiting
            .into_iter()
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        if made < 16 {
            poll(&mut waiting, PollTimeout::from(1000u16)).unwrap();
        }
    }
}
