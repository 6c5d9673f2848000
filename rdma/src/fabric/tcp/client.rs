//! The requester's end of a TCP link: requests out, payloads straight into the arena.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};

use super::socket;
use crate::fabric::frame::{
    HEADER_BYTES, Header, Outcome, Reply, TICKET_BYTES, TRAILER_BYTES, decode_header, encode_hello,
};
use crate::fabric::link::{Driver, LinkEnd};
use crate::fabric::session::{Session, UnderWay};
use crate::fabric::{FabricError, trailer_at};
use crate::shard::{Message, Ring, Socket};

/// Bytes received in one operation: large enough to be cheap, small enough to show progress, which is a
/// sign of life: at 100 KB/s, every 10 s.
const PIECE_BYTES: usize = 1 << 20;

/// Opens a data connection and shows the ticket.
pub(super) async fn connect(
    ring: &Rc<Ring>,
    peer: &str,
    address: SocketAddr,
    ticket: &[u8; TICKET_BYTES],
    deadline: Duration,
) -> Result<Socket, FabricError> {
    let failed = |attempt, source| FabricError::Connect {
        peer: peer.to_owned(),
        address,
        attempt,
        source,
    };
    let attempt = std::pin::pin!(async {
        let socket = socket::outgoing(address).map_err(|error| failed("making a socket", error))?;
        let socket: Socket = Arc::new(OwnedFd::from(socket));
        ring.connect(&socket, address.into())
            .await
            .map_err(|error| failed("connecting", error))?;
        socket::prepare(&*socket, deadline).map_err(|error| failed("setting options", error))?;
        ring.send(&socket, Message::new(encode_hello(ticket)))
            .await
            .map_err(|error| failed("showing the ticket", error))?;
        let header = vec![0; HEADER_BYTES].into_boxed_slice();
        let (header, received) = ring.receive_bytes(&socket, header, HEADER_BYTES).await;
        match received {
            Ok(HEADER_BYTES) => {}
            Ok(_) => {
                let closed = io::Error::other(
                    "the peer closed the connection: the ticket is unknown or expired there",
                );
                return Err(failed("showing the ticket", closed));
            }
            Err(error) => return Err(failed("showing the ticket", error)),
        }
        match decode_header(&header) {
            Ok(Header::Reply(Reply {
                outcome: Outcome::Working,
                ..
            })) => Ok(socket),
            Ok(_) => Err(failed(
                "showing the ticket",
                io::Error::other("the peer's welcome is none"),
            )),
            Err(error) => Err(failed(
                "showing the ticket",
                io::Error::other(error.to_string()),
            )),
        }
    });
    let timer = std::pin::pin!(ring.sleep(deadline));
    match select(attempt, timer).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(failed("connecting", io::ErrorKind::TimedOut.into())),
    }
}

/// Drives the link until it ends.
pub(super) async fn drive(ring: Rc<Ring>, socket: Socket, driver: Driver) {
    let patience = driver.deadline;
    let session = Session::begin(driver, Rc::clone(&ring), patience);
    let ask = std::pin::pin!(ask(&ring, &socket, &session));
    let receive = std::pin::pin!(receive(&ring, &socket, &session));
    let watch = std::pin::pin!(session.watch());
    // Whatever ends first ends the link; the others' operations are cancelled, and what they were
    // receiving into stays theirs until the kernel has confirmed that.
    let end = match select(select(ask, receive), watch).await {
        Either::Left((either, _)) => either.factor_first().0,
        Either::Right((end, _)) => end,
    };
    session.announce(end);
}

/// Sends requests as they come.
async fn ask(ring: &Rc<Ring>, socket: &Socket, session: &Session) -> LinkEnd {
    // Over TCP the slot's number is all the peer needs.
    while let Some(frame) = session.next_frame(|_| (0, 0)).await {
        if let Err(error) = ring.send(socket, Message::new(frame)).await {
            return LinkEnd::Gone(format!("sending a request failed: {error}"));
        }
    }
    LinkEnd::Unused
}

/// Receives replies and payloads.
async fn receive(ring: &Rc<Ring>, socket: &Socket, session: &Session) -> LinkEnd {
    let mut header = vec![0; HEADER_BYTES].into_boxed_slice();
    loop {
        let (back, received) = ring.receive_bytes(socket, header, HEADER_BYTES).await;
        header = back;
        if let Err(end) = complete(received, HEADER_BYTES) {
            return end;
        }
        session.sign_of_life();
        let reply = match decode_header(&header) {
            Ok(Header::Reply(reply)) => reply,
            Ok(_) => return LinkEnd::Malformed("it sent a request in place of a reply".to_owned()),
            Err(error) => return LinkEnd::frame(error),
        };
        if let Err(end) = take_reply(ring, socket, session, reply).await {
            return end;
        }
    }
}

async fn take_reply(
    ring: &Rc<Ring>,
    socket: &Socket,
    session: &Session,
    reply: Reply,
) -> Result<(), LinkEnd> {
    if reply.outcome == Outcome::Working {
        return Ok(());
    }
    session.check_len(&reply)?;
    let mut request = session.answered(reply.slot, reply.tag)?;
    if let Outcome::Payload(len) = reply.outcome {
        request = receive_piecewise(ring, socket, session, request, 0, len as usize).await?;
        let at = trailer_at(session.arena());
        request = receive_piecewise(ring, socket, session, request, at, TRAILER_BYTES).await?;
    }
    session.finish(request, reply.outcome);
    Ok(())
}

async fn receive_piecewise(
    ring: &Rc<Ring>,
    socket: &Socket,
    session: &Session,
    mut request: UnderWay,
    at: usize,
    len: usize,
) -> Result<UnderWay, LinkEnd> {
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(PIECE_BYTES);
        let (lease, received) = ring.receive(socket, request.lease, at + done, piece).await;
        request.lease = lease;
        if let Err(end) = complete(received, piece) {
            return Err(session.keep(request, end));
        }
        session.sign_of_life();
        done += piece;
    }
    Ok(request)
}

/// Whether all that was to be received has been.
fn complete(received: io::Result<usize>, wanted: usize) -> Result<(), LinkEnd> {
    match received {
        Ok(count) if count == wanted => Ok(()),
        Ok(_) => Err(LinkEnd::Gone("the peer closed the connection".to_owned())),
        Err(error) => Err(LinkEnd::Gone(format!("receiving from it failed: {error}"))),
    }
}
