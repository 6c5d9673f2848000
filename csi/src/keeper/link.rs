//! One connection between agent and keeper: both sides ask, answer and tell.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::channel::oneshot;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{PeerCredentials, SndBuf, SndBufForce};
use nix::sys::socket::{getsockopt, setsockopt};
use nix::unistd::geteuid;
use parking_lot::Mutex;
use serde::Serialize;

use super::frame::{self, Head};
use super::message::{Answer, Ask, Tell};
use super::{ANSWER_WITHIN, KeeperError};

/// How long the other side may take nothing of what is written to it. It reads always: one that
/// does not is stopped or dying, and is better left than waited for.
const STUCK: Duration = Duration::from_secs(30);

/// Bytes that may lie in the socket: some reads, so that whoever answers one needs not wait until it
/// was taken.
const SEND_BUFFER: usize = 4 << 20;

/// An answer and the bytes that came with it.
pub(super) type Answered = (Answer, Vec<u8>);

/// One end of a connection.
pub(super) struct Link {
    writer: Mutex<UnixStream>,
    /// The same connection, to end it whoever is writing.
    closer: UnixStream,
    /// Who waits for which answer; `None` once the connection is lost.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Answered>>>>,
    next: AtomicU64,
}

/// What the other side said that is no answer.
pub(super) enum Heard {
    /// A question with its number, to be answered once.
    Ask(u64, Ask, Vec<u8>),
    /// Something told.
    Tell(Tell, Vec<u8>),
}

impl Link {
    /// Takes a connection if the other side is this user, or root.
    pub(super) fn new(stream: UnixStream) -> Result<(Arc<Link>, UnixStream), KeeperError> {
        let lost = |_: io::Error| KeeperError::Lost;
        let peer = getsockopt(&stream, PeerCredentials).map_err(|_| KeeperError::Lost)?;
        if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
            return Err(KeeperError::Stranger(peer.uid()));
        }
        stream.set_write_timeout(Some(STUCK)).map_err(lost)?;
        // Beyond the system's limit where this process may; a smaller one is only slower.
        let _ = setsockopt(&stream, SndBufForce, &SEND_BUFFER)
            .or_else(|_| setsockopt(&stream, SndBuf, &SEND_BUFFER));
        let reader = stream.try_clone().map_err(lost)?;
        let closer = stream.try_clone().map_err(lost)?;
        let link = Link {
            writer: Mutex::new(stream),
            closer,
            waiting: Mutex::new(Some(HashMap::new())),
            next: AtomicU64::new(1),
        };
        Ok((Arc::new(link), reader))
    }

    /// Whether the other side is gone, as far as it was noticed.
    pub(super) fn is_lost(&self) -> bool {
        self.waiting.lock().is_none()
    }

    /// Whether the other side is gone at this very moment.
    pub(super) fn is_hung_up(&self) -> bool {
        // Told whether asked for or not.
        let mut fds = [PollFd::new(self.closer.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => fds[0].revents().is_some_and(|seen| seen.intersects(gone)),
            Err(_) => false,
        }
    }

    /// Asks; the answer comes by the channel, which is closed if the connection is lost.
    pub(super) fn ask(&self, ask: &Ask, body: &[u8]) -> oneshot::Receiver<Answered> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match &mut *self.waiting.lock() {
            Some(waiting) => drop(waiting.insert(number, sender)),
            // The sender is dropped, which says it.
            None => return receiver,
        }
        self.send(Some(number), None, ask, || body);
        receiver
    }

    /// Asks and waits for the answer.
    pub(super) fn call(&self, ask: &Ask, body: &[u8]) -> Result<Answered, KeeperError> {
        self.call_within(ANSWER_WITHIN, ask, body)
    }

    /// As [`Link::call`], with other patience.
    pub(super) fn call_within(
        &self,
        patience: Duration,
        ask: &Ask,
        body: &[u8],
    ) -> Result<Answered, KeeperError> {
        let answer = self.ask(ask, body);
        let wait = futures::future::select(answer, futures_timer::Delay::new(patience));
        match futures::executor::block_on(wait) {
            futures::future::Either::Left((Ok((Answer::Failed { why }, _)), _)) => {
                Err(KeeperError::Refused(why))
            }
            futures::future::Either::Left((Ok(answered), _)) => Ok(answered),
            futures::future::Either::Left((Err(_), _)) => Err(KeeperError::Lost),
            futures::future::Either::Right(_) => Err(KeeperError::Late),
        }
    }

    /// Answers a question.
    pub(super) fn answer(&self, number: u64, answer: &Answer, body: &[u8]) {
        self.send(None, Some(number), answer, || body);
    }

    /// Tells something.
    pub(super) fn tell(&self, tell: &Tell, body: &[u8]) {
        self.send(None, None, tell, || body);
    }

    /// Tells something with bytes that are made at the very moment they are sent.
    pub(super) fn tell_with<B: AsRef<[u8]>>(&self, tell: &Tell, body: impl FnOnce() -> B) {
        self.send(None, None, tell, body);
    }

    fn send<B: AsRef<[u8]>>(
        &self,
        ask: Option<u64>,
        answer: Option<u64>,
        what: &impl Serialize,
        body: impl FnOnce() -> B,
    ) {
        let written = serde_json::to_value(what)
            .map_err(io::Error::from)
            .and_then(|what| {
                let head = Head { ask, answer, what };
                let mut stream = self.writer.lock();
                frame::write(&mut *stream, &head, body().as_ref())
            });
        if let Err(error) = written {
            tracing::debug!(%error, "writing to the other side of the keeper's socket");
            self.close();
        }
    }

    /// Ends the connection; who waits for an answer learns that it is lost.
    pub(super) fn close(&self) {
        drop(self.waiting.lock().take());
        // It may be closed by the other side already.
        let _ = self.closer.shutdown(Shutdown::Both);
    }

    /// Hands what the other side says to `hear`, until it is gone. Answers go to who waits for them.
    pub(super) fn listen(&self, mut reader: UnixStream, mut hear: impl FnMut(Heard)) {
        loop {
            match frame::read(&mut reader) {
                Ok(Some(frame)) => self.take(frame, &mut hear),
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "reading from the other side of the keeper's socket");
                    break;
                }
            }
        }
        self.close();
    }

    fn take(&self, frame: frame::Frame, hear: &mut impl FnMut(Heard)) {
        let frame::Frame { head, body } = frame;
        if let Some(number) = head.answer {
            let waiter = match &mut *self.waiting.lock() {
                Some(waiting) => waiting.remove(&number),
                None => None,
            };
            // An answer that this build does not know is none: who waits learns that.
            let answer = serde_json::from_value(head.what).unwrap_or_else(|error| Answer::Failed {
                why: format!("an answer that this build does not know: {error}"),
            });
            if let Some(waiter) = waiter {
                // Whoever asked may have left.
                let _ = waiter.send((answer, body));
            }
        } else if let Some(number) = head.ask {
            match serde_json::from_value(head.what) {
                Ok(ask) => hear(Heard::Ask(number, ask, body)),
                Err(error) => {
                    let why = format!(
                        "this build ({}, protocol {}) does not know the request: {error}",
                        env!("CARGO_PKG_VERSION"),
                        super::PROTOCOL
                    );
                    self.answer(number, &Answer::Failed { why }, &[]);
                }
            }
        } else {
            match serde_json::from_value(head.what) {
                Ok(tell) => hear(Heard::Tell(tell, body)),
                Err(error) => tracing::debug!(%error, "something unknown was told"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_request_of_a_newer_build_is_answered_and_not_the_end() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (link, reader) = Link::new(ours).expect("the same user");
        let listening = {
            let link = link.clone();
            thread::spawn(move || {
                let answering = link.clone();
                link.listen(reader, |heard| {
                    if let Heard::Ask(number, Ask::List, _) = heard {
                        answering.answer(number, &Answer::Done, &[]);
                    }
                });
            })
        };
        let mut theirs = theirs;
        let mut ask = |number, what| {
            let head = Head {
                ask: Some(number),
                answer: None,
                what,
            };
            frame::write(&mut theirs, &head, b"").expect("written");
            frame::read(&mut theirs).expect("read").expect("an answer")
        };
        let answered = ask(7, serde_json::json!({"fly": {"to": "the moon"}}));
        assert_eq!(answered.head.answer, Some(7));
        let said = answered.head.what.to_string();
        assert!(
            said.contains("does not know") && said.contains("fly"),
            "{said}"
        );
        let answered = ask(8, serde_json::json!("list"));
        assert_eq!(answered.head.what, serde_json::json!("done"));
        drop(theirs);
        listening.join().expect("ends with the connection");
        assert!(link.is_lost());
        assert!(matches!(link.call(&Ask::List, &[]), Err(KeeperError::Lost)));
    }
}
