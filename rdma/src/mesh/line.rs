//! Lines over TCP: bounded in length and in time.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;

use super::message::LONGEST;

/// How long a line may take to be written before the other end counts as gone.
const WRITE: Duration = Duration::from_secs(5);
/// Each end says at least this often that it is there.
pub(super) const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// An end that was silent for this long is gone.
pub(super) const SILENT: Duration = Duration::from_secs(20);

pub(super) struct LineReader(BufReader<TcpStream>);

impl LineReader {
    pub(super) fn new(stream: TcpStream) -> io::Result<LineReader> {
        stream.set_read_timeout(Some(SILENT))?;
        stream.set_write_timeout(Some(WRITE))?;
        stream.set_nodelay(true)?;
        Ok(LineReader(BufReader::new(stream)))
    }

    /// The next line without its end; `None` when the other end closed the connection.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        while line.len() <= LONGEST {
            let available = match self.0.fill_buf() {
                Ok([]) if line.is_empty() => return Ok(None),
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    let text = format!("it said nothing for {} s", SILENT.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                Err(error) => return Err(error),
            };
            let (taken, ended) = match available.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (available.len(), false),
            };
            line.extend_from_slice(&available[..taken]);
            self.0.consume(taken);
            if ended {
                line.pop();
                return Ok(Some(line));
            }
        }
        let text = format!("it sent a line of more than {LONGEST} bytes");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

pub(super) fn write(stream: &mut TcpStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn reader(says: &[u8]) -> LineReader {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut theirs =
            TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (ours, _) = listener.accept().expect("accepted");
        theirs.write_all(says).expect("written");
        LineReader::new(ours).expect("a reader")
    }

    #[test]
    fn lines_come_one_by_one_and_the_end_is_told_from_a_cut() {
        let mut lines = reader(b"one\n\ntwo\n");
        assert_eq!(lines.next().expect("a line"), Some(b"one".to_vec()));
        assert_eq!(lines.next().expect("a line"), Some(Vec::new()));
        assert_eq!(lines.next().expect("a line"), Some(b"two".to_vec()));
        assert_eq!(lines.next().expect("closed"), None);
        assert!(reader(b"half").next().is_err());
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let error = reader(&vec![b'x'; 2 * LONGEST])
            .next()
            .expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
