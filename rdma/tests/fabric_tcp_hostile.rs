//! What the fabric over TCP does about those who speak to its data port without leave or against the
//! protocol. These tests write the bytes themselves, as the frames' layout table says.

mod peers;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use futures::executor::block_on;
use peers::{GATED, Node, fetch_all, loopback, pair, wait_until};
use trackbed_rdma::fabric::FabricConfig;

fn header(kind: u8, count: u16, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 32];
    header[..4].copy_from_slice(b"TBF1");
    header[4] = 1;
    header[5] = kind;
    header[6..8].copy_from_slice(&count.to_le_bytes());
    header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    let crc = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn frame(kind: u8, count: u16, body: &[u8]) -> Vec<u8> {
    [header(kind, count, body), body.to_vec()].concat()
}

fn entry(slot: u16) -> Vec<u8> {
    let mut entry = vec![0; 56];
    entry[32..36].copy_from_slice(&GATED.to_le_bytes());
    entry[36..38].copy_from_slice(&slot.to_le_bytes());
    entry
}

fn stranger(server: &Node) -> TcpStream {
    let stream = TcpStream::connect(server.fabric.data_address().unwrap()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// A connection whose ticket was taken.
fn admitted(client: &Node, server: &Node) -> TcpStream {
    let answer = block_on(async {
        let pending = client.fabric.offer("server").await.unwrap();
        server
            .fabric
            .accept("client", pending.offer_bytes())
            .await
            .unwrap()
    });
    let mut stream = stranger(server);
    stream.write_all(&frame(1, 0, &answer[42..74])).unwrap();
    let mut welcome = [0; 32];
    stream.read_exact(&mut welcome).unwrap();
    stream
}

/// Whether the other side has closed the connection.
fn is_closed(mut stream: TcpStream) -> bool {
    // A reset is as good as an end.
    !matches!(stream.read(&mut [0; 64]), Ok(1..))
}

#[test]
fn a_ticket_nobody_issued_is_refused() {
    let (client, server) = pair();
    let mut stream = stranger(&server);
    stream.write_all(&frame(1, 0, &[9; 32])).unwrap();
    assert!(is_closed(stream));
    wait_until(|| server.fabric.counters().intrusions == 1);
    assert_eq!(server.fabric.counters().peers_accepted, 0);
    block_on(async { fetch_all(&client.link_to(&server).await.unwrap(), 0..3).await });
}

#[test]
fn garbage_on_the_data_port_disturbs_nobody() {
    let (client, server) = pair();
    let link = block_on(client.link_to(&server)).unwrap();
    let mut flipped = frame(1, 0, &[9; 32]);
    flipped[40] ^= 1;
    let garbage: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: trackbed\r\n\r\n",
        &[0; 4096],
        &[0xff; 33],
        &frame(2, 1, &entry(0)),
        &frame(3, 0, &[]),
        &flipped,
    ];
    for bytes in garbage {
        let mut stream = stranger(&server);
        stream.write_all(bytes).unwrap();
        assert!(is_closed(stream));
    }
    // Half a hello, then nothing: that connection ends with whoever made it.
    let mut half = stranger(&server);
    half.write_all(&frame(1, 0, &[9; 32])[..20]).unwrap();
    drop(half);
    wait_until(|| server.fabric.counters().intrusions == 7);
    block_on(fetch_all(&link, 0..10));
}

#[test]
fn a_stranger_that_says_nothing_is_shown_the_door() {
    let client = Node::new("client", 1, loopback());
    let server = Node::new(
        "server",
        16,
        FabricConfig {
            deadline: Duration::from_millis(100),
            ..loopback()
        },
    );
    assert!(is_closed(stranger(&server)));
    // Many at once do not keep a ticket holder out for long, nor are they all kept.
    let crowd: Vec<TcpStream> = (0..100).map(|_| stranger(&server)).collect();
    wait_until(|| server.fabric.counters().intrusions == 101);
    drop(crowd);
    block_on(async { fetch_all(&client.link_to(&server).await.unwrap(), 0..3).await });
}

#[test]
fn a_peer_that_breaks_the_protocol_loses_its_link_and_nobody_else_does() {
    let (client, server) = pair();
    let link = block_on(client.link_to(&server)).unwrap();
    let slots = 16;
    let mut wrong_crc = frame(2, 1, &entry(0));
    wrong_crc[32] ^= 1;
    let breaches = [
        frame(1, 0, &[9; 32]),
        frame(3, 0, &[]),
        frame(2, 1, &entry(slots)),
        frame(2, 2, &[entry(3), entry(3)].concat()),
        [frame(2, 1, &entry(3)), frame(2, 1, &entry(3))].concat(),
        header(2, 33, &[0; 33 * 56]),
        header(2, 0, &[]),
        wrong_crc,
        header(9, 0, &[]),
        b"anything else than a frame of ours".to_vec(),
    ];
    for (number, breach) in breaches.iter().enumerate() {
        let mut stream = admitted(&client, &server);
        stream.write_all(breach).unwrap();
        assert!(is_closed(stream), "breach {number}");
        wait_until(|| server.fabric.counters().intrusions == number as u64 + 1);
    }
    block_on(fetch_all(&link, 0..10));
}
