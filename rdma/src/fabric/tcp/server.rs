//! The data port: lets ticket holders in and answers their requests.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};

use super::socket;
use super::tickets::{Admission, Tickets};
use crate::fabric::frame::{
    HEADER_BYTES, Header, MAX_FRAME_BYTES, Outcome, Reply, TRAILER_BYTES, decode_entries,
    decode_header, encode_reply,
};
use crate::fabric::serve::{Desk, Served, Server};
use crate::fabric::trailer_at;
use crate::shard::{Message, Ring, Socket, spawn_local};

/// Connections that may be without a ticket at a time; more are closed at once.
const MAX_STRANGERS: usize = 64;

/// How long a connection may take to show its ticket.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// What the port's task needs. It holds no shard, so that it does not keep that alive.
pub(super) struct Port {
    pub(super) server: Arc<Server>,
    pub(super) tickets: Arc<Tickets>,
    pub(super) deadline: Duration,
    /// Ends with the fabric.
    pub(super) closed: async_channel::Receiver<Infallible>,
}

impl Port {
    /// Takes connections until the fabric is gone.
    pub(super) async fn run(self, listener: Socket) {
        let port = Rc::new(self);
        let ring = Ring::current().expect("the port runs on a shard");
        let strangers = Rc::new(Cell::new(0));
        let closed = std::pin::pin!(port.closed.recv());
        let accept = std::pin::pin!(async {
            loop {
                let socket = match ring.accept(&listener).await {
                    Ok(socket) => Arc::new(socket),
                    Err(error) => {
                        // Out of descriptors, most likely: others need the time as well.
                        tracing::warn!(%error, "accepting a data connection failed");
                        ring.sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                if strangers.get() >= MAX_STRANGERS {
                    port.intrusion("too many connections without a ticket");
                    continue;
                }
                spawn_local(Rc::clone(&port).serve(
                    Rc::clone(&ring),
                    socket,
                    Stranger::new(&strangers),
                ));
            }
        });
        select(closed, accept).await;
    }

    async fn serve(self: Rc<Self>, ring: Rc<Ring>, socket: Socket, stranger: Stranger) {
        let admission = {
            let hello = std::pin::pin!(self.greet(&ring, &socket));
            let patience = std::pin::pin!(ring.sleep(HELLO_PATIENCE.min(self.deadline)));
            match select(hello, patience).await {
                Either::Left((Ok(admission), _)) => admission,
                Either::Left((Err(reason), _)) => return self.intrusion(&reason),
                Either::Right(_) => return self.intrusion("no ticket was shown in time"),
            }
        };
        drop(stranger);
        self.server.counters.peers_accepted.increment();
        let desk = Desk::new(Arc::clone(&self.server), &admission.peer, admission.slots);
        let reason = {
            let read = std::pin::pin!(self.read(&ring, &socket, &desk));
            let write = std::pin::pin!(write(&ring, &socket, &desk, admission.heartbeat));
            let work = std::pin::pin!(desk.work());
            let closed = std::pin::pin!(self.closed.recv());
            match select(select(read, write), select(work, closed)).await {
                Either::Left((either, _)) => either.factor_first().0,
                Either::Right(_) => "this fabric is closing".to_owned(),
            }
        };
        tracing::debug!(peer = desk.peer(), reason, "a peer's data connection ended");
        self.server.counters.peers_ended.increment();
    }

    /// Reads the hello, redeems its ticket and says welcome.
    async fn greet(&self, ring: &Rc<Ring>, socket: &Socket) -> Result<Admission, String> {
        socket::prepare(&**socket, self.deadline).map_err(|error| error.to_string())?;
        let buffer = vec![0; MAX_FRAME_BYTES].into_boxed_slice();
        let (buffer, received) = ring.receive_bytes(socket, buffer, HEADER_BYTES).await;
        all(received, HEADER_BYTES)?;
        let check = match decode_header(&buffer) {
            Ok(Header::Hello(check)) => check,
            Ok(_) => return Err("its first frame is no hello".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let (buffer, received) = ring.receive_bytes(socket, buffer, check.len()).await;
        all(received, check.len())?;
        let ticket = check
            .check(&buffer[..check.len()])
            .map_err(|error| error.to_string())?;
        let admission = self
            .tickets
            .redeem(ticket)
            .ok_or("its ticket is unknown, used or expired")?;
        ring.send(socket, Message::new(working().to_vec()))
            .await
            .map_err(|error| error.to_string())?;
        Ok(admission)
    }

    /// Takes requests in until the peer goes or breaks the protocol; says which.
    async fn read(&self, ring: &Rc<Ring>, socket: &Socket, desk: &Desk) -> String {
        let mut buffer = vec![0; MAX_FRAME_BYTES].into_boxed_slice();
        loop {
            let (back, received) = ring.receive_bytes(socket, buffer, HEADER_BYTES).await;
            buffer = back;
            if let Err(reason) = all(received, HEADER_BYTES) {
                return reason;
            }
            let check = match decode_header(&buffer) {
                Ok(Header::Requests(check)) => check,
                Ok(_) => return self.breach(desk, "it sent something else than requests"),
                Err(error) => return self.breach(desk, &error.to_string()),
            };
            let (back, received) = ring.receive_bytes(socket, buffer, check.len()).await;
            buffer = back;
            if let Err(reason) = all(received, check.len()) {
                return reason;
            }
            let body = match check.check(&buffer[..check.len()]) {
                Ok(body) => body,
                Err(error) => return self.breach(desk, &error.to_string()),
            };
            if let Err(reason) = desk.take_in(decode_entries(body)) {
                return self.breach(desk, &reason);
            }
        }
    }

    fn intrusion(&self, reason: &str) {
        tracing::warn!(reason, "a data connection was refused");
        self.server.counters.intrusions.increment();
    }

    fn breach(&self, desk: &Desk, reason: &str) -> String {
        tracing::warn!(
            peer = desk.peer(),
            reason,
            "a peer broke the protocol: its link is closed"
        );
        self.server.counters.intrusions.increment();
        reason.to_owned()
    }
}

/// Sends answers as they come, and a sign of life where none has come for a while.
async fn write(ring: &Rc<Ring>, socket: &Socket, desk: &Desk, heartbeat: Duration) -> String {
    loop {
        let served = {
            let answer = std::pin::pin!(desk.next_answer());
            let pause = std::pin::pin!(ring.sleep(heartbeat));
            match select(answer, pause).await {
                Either::Left((Some(served), _)) => Some(served),
                Either::Left((None, _)) => return "it is no longer served".to_owned(),
                Either::Right(_) => None,
            }
        };
        let sent = match served {
            Some(served) => send_answer(ring, socket, desk, served).await,
            None if desk.owes() => ring.send(socket, Message::new(working().to_vec())).await,
            None => Ok(()),
        };
        if let Err(error) = sent {
            return format!("sending to it failed: {error}");
        }
    }
}

async fn send_answer(
    ring: &Rc<Ring>,
    socket: &Socket,
    desk: &Desk,
    served: Served,
) -> std::io::Result<()> {
    let Served {
        entry,
        result,
        leaving,
    } = served;
    let outcome = match &result {
        Ok(payload) => Outcome::Payload(payload.len),
        Err(refusal) => Outcome::Refused(*refusal),
    };
    let head = encode_reply(&Reply {
        slot: entry.slot,
        tag: entry.tag,
        outcome,
    })
    .to_vec();
    desk.answers(entry.slot);
    let sent = match result {
        Ok(payload) => {
            let len = payload.len;
            let trailer = (trailer_at(payload.lease.slab()), TRAILER_BYTES);
            let message = Message::with_body(head, payload.lease, [(0, len as usize), trailer])?;
            ring.send(socket, message).await?;
            Ok(len)
        }
        Err(refusal) => {
            ring.send(socket, Message::new(head)).await?;
            Err(refusal)
        }
    };
    desk.count_sent(sent, leaving);
    Ok(())
}

/// The frame that says: alive.
fn working() -> [u8; HEADER_BYTES] {
    encode_reply(&Reply {
        slot: 0,
        tag: 0,
        outcome: Outcome::Working,
    })
}

fn all(received: std::io::Result<usize>, wanted: usize) -> Result<(), String> {
    match received {
        Ok(count) if count == wanted => Ok(()),
        Ok(_) => Err("it closed the connection".to_owned()),
        Err(error) => Err(format!("receiving from it failed: {error}")),
    }
}

/// Counts a connection without a ticket for as long as it is one.
struct Stranger(Rc<Cell<usize>>);

impl Stranger {
    fn new(count: &Rc<Cell<usize>>) -> Stranger {
        count.set(count.get() + 1);
        Stranger(Rc::clone(count))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
