//! The connection over which the two ends agree: length-prefixed messages with deadlines.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::BenchError;
use super::message::{LONGEST, Message, PREAMBLE};
use crate::security::{ON_BOTH_OR_NEITHER, Stream, begins_tls};

/// How long one end waits for the other to say the next thing.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) struct Channel {
    stream: Box<dyn Stream>,
    patience: Duration,
}

impl Channel {
    /// Greets the other end, and makes sure that it is one of ours.
    pub(super) fn open(stream: Box<dyn Stream>) -> Result<Channel, BenchError> {
        Self::open_with(stream, PATIENCE)
    }

    fn open_with(stream: Box<dyn Stream>, patience: Duration) -> Result<Channel, BenchError> {
        let mut channel = Channel { stream, patience };
        let doing = "greeting it";
        channel
            .stream
            .limit_write(patience)
            .and_then(|()| channel.stream.write_all(&PREAMBLE))
            .map_err(|source| BenchError::Channel { doing, source })?;
        let deadline = Instant::now() + patience;
        let mut theirs = [0; PREAMBLE.len()];
        let (start, rest) = theirs.split_at_mut(2);
        let mut read = |target: &mut [u8]| {
            let outcome = channel.read_by(target, deadline);
            outcome.map_err(|source| BenchError::Channel { doing, source })
        };
        read(start)?;
        if begins_tls(start[0]) {
            let reason = format!("it speaks TLS, this end does not: {ON_BOTH_OR_NEITHER}");
            return Err(BenchError::Stranger { reason });
        }
        read(rest)?;
        if theirs != PREAMBLE {
            let reason = format!(
                "it began with {:?}; is it another program, such as perftest's ib_write_bw?",
                String::from_utf8_lossy(&theirs)
            );
            return Err(BenchError::Stranger { reason });
        }
        Ok(channel)
    }

    pub(super) fn send(&mut self, message: &Message) -> Result<(), BenchError> {
        let body = message.encode();
        let mut frame = Vec::with_capacity(4 + body.len());
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&body);
        self.stream
            .write_all(&frame)
            .map_err(|source| BenchError::Channel {
                doing: "telling it something",
                source,
            })
    }

    /// What came meanwhile, without waiting for it.
    pub(super) fn try_receive(
        &mut self,
        doing: &'static str,
    ) -> Result<Option<Message>, BenchError> {
        let ready = self.stream.is_ready();
        if !ready.map_err(|source| BenchError::Channel { doing, source })? {
            return Ok(None);
        }
        match self.receive_any(doing)? {
            Message::Refuse { reason } => Err(refused(&reason)),
            message => Ok(Some(message)),
        }
    }

    /// Whether a message, or the connection's end, has come by then.
    pub(super) fn becomes_ready_by(&self, deadline: Instant) -> bool {
        let mut interest = [PollFd::new(self.descriptor(), PollFlags::POLLIN)];
        let limit = deadline.saturating_duration_since(Instant::now());
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        matches!(poll(&mut interest, limit), Ok(1))
    }

    /// Becomes readable when a message comes.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.descriptor()
    }

    /// The next message. A peer that says it is alive may take longer for it.
    pub(super) fn receive(&mut self, doing: &'static str) -> Result<Message, BenchError> {
        loop {
            match self.receive_any(doing)? {
                Message::Alive => {}
                Message::Refuse { reason } => return Err(refused(&reason)),
                message => return Ok(message),
            }
        }
    }

    fn receive_any(&mut self, doing: &'static str) -> Result<Message, BenchError> {
        let deadline = Instant::now() + self.patience;
        let failed = |source| BenchError::Channel { doing, source };
        let mut len = [0; 4];
        self.read_by(&mut len, deadline).map_err(failed)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > LONGEST {
            let reason = format!("it announced a message of {len} bytes");
            return Err(BenchError::Stranger { reason });
        }
        let mut body = vec![0; len];
        self.read_by(&mut body, deadline).map_err(failed)?;
        Message::decode(&body).map_err(|reason| BenchError::Stranger { reason })
    }

    /// Fills `target` or fails at the deadline, however slowly bytes trickle in.
    fn read_by(&mut self, mut target: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !target.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = format!("it said nothing for {} s", self.patience.as_secs_f32());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            self.stream.limit_read(left)?;
            match self.stream.read(target) {
                Ok(0) => {
                    let text = "it closed the connection";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                Ok(count) => target = &mut target[count..],
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted
                            | io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn refused(reason: &str) -> BenchError {
    let plain = reason.chars().filter(|letter| !letter.is_control());
    BenchError::PeerFailed {
        reason: plain.take(2000).collect(),
    }
}

/// What came instead of the message that was due.
pub(super) fn unexpected(message: &Message, due: &str) -> BenchError {
    BenchError::Stranger {
        reason: format!("it said {:?} where {due} was due", message.name()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn met(says: &[u8], close: bool) -> BenchError {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        theirs.write_all(says).expect("written");
        let kept = (!close).then_some(theirs);
        let outcome = Channel::open_with(Box::new(ours), Duration::from_millis(50))
            .and_then(|mut channel| channel.receive("waiting"));
        drop(kept);
        outcome.expect_err("nonsense")
    }

    #[test]
    fn another_programs_greeting_is_quoted() {
        let error = met(b"0000:0000:0000:0000:00", false);
        assert!(error.to_string().contains("0000:0000:0000:0"), "{error}");
    }

    #[test]
    fn an_end_with_tls_and_one_without_are_told_so() {
        let error = met(&[0x16, 3, 1, 0, 200], false).to_string();
        assert!(error.contains("--tls-certificate"), "{error}");
    }

    #[test]
    fn a_peer_that_says_nothing_or_leaves_is_not_waited_for() {
        assert!(matches!(met(b"", false), BenchError::Channel { .. }));
        assert!(matches!(met(b"track", true), BenchError::Channel { .. }));
        assert!(matches!(met(&PREAMBLE, false), BenchError::Channel { .. }));
    }

    #[test]
    fn oversized_and_unreadable_messages_are_refused() {
        let mut says = PREAMBLE.to_vec();
        says.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(met(&says, false), BenchError::Stranger { .. }));
        let mut says = PREAMBLE.to_vec();
        says.extend_from_slice(&3u32.to_le_bytes());
        says.extend_from_slice(b"???");
        assert!(matches!(met(&says, false), BenchError::Stranger { .. }));
    }
}
