//! Frames: a head, which is a JSON object, and bytes that go with it.
//!
//! Both lengths come first, four bytes each, least significant byte first. They are bounded, and
//! beyond a MiB memory is taken only for what has arrived.

use std::io::{self, IoSlice, Read, Write};

use serde::{Deserialize, Serialize};

/// The longest head, in bytes: a path and a sentence fit.
const MAX_HEAD_BYTES: u32 = 64 << 10;

/// The most bytes that go with a head: a bit for each chunk of the largest version.
const MAX_BODY_BYTES: u32 = trackbed_cache::manifest::MAX_CHUNKS / 8;

/// Memory that is taken before anything has arrived: the longest read's, so that its bytes are moved
/// only once.
const AT_ONCE: u32 = 1 << 20;

/// What a frame says. Fields that a build does not know are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The number of a question, which its answer repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ask: Option<u64>,
    /// The number of the question that this answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<u64>,
    /// What is asked, answered or told.
    pub(super) what: serde_json::Value,
}

/// A frame as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
}

/// Reads a frame; `None` where the stream ends before one.
pub(super) fn read(stream: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut lengths = [0; 8];
    let mut first = [0];
    loop {
        match stream.read(&mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    lengths[0] = first[0];
    stream.read_exact(&mut lengths[1..])?;
    let [a, b, c, d, e, f, g, h] = lengths;
    let (head, body) = (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    );
    if head > MAX_HEAD_BYTES || body > MAX_BODY_BYTES {
        return Err(invalid("a frame is longer than any may be"));
    }
    let head = serde_json::from_slice(&exactly(stream, head)?)
        .map_err(|error| invalid(&format!("a frame's head is not one: {error}")))?;
    let body = exactly(stream, body)?;
    Ok(Some(Frame { head, body }))
}

/// Writes a frame.
pub(super) fn write(stream: &mut impl Write, head: &Head, body: &[u8]) -> io::Result<()> {
    let text = serde_json::to_vec(head)?;
    let too_long = |_| invalid("a frame is longer than any may be");
    let (head_len, body_len) = (
        u32::try_from(text.len()).map_err(too_long)?,
        u32::try_from(body.len()).map_err(too_long)?,
    );
    if head_len > MAX_HEAD_BYTES || body_len > MAX_BODY_BYTES {
        return Err(invalid("a frame is longer than any may be"));
    }
    let mut lengths = [0; 8];
    lengths[..4].copy_from_slice(&head_len.to_le_bytes());
    lengths[4..].copy_from_slice(&body_len.to_le_bytes());
    let mut parts = [
        IoSlice::new(&lengths),
        IoSlice::new(&text),
        IoSlice::new(body),
    ];
    let mut parts = &mut parts[..];
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn exactly(stream: &mut impl Read, len: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len.min(AT_ONCE) as usize);
    stream.take(len.into()).read_to_end(&mut bytes)?;
    match bytes.len() == len as usize {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives a byte or few at a time, as a socket may.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(self.1).min(self.0.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    fn head(ask: Option<u64>, text: &str) -> Head {
        Head {
            ask,
            answer: None,
            what: serde_json::json!({ "text": text }),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            frames in prop::collection::vec((any::<Option<u64>>(), ".{0,40}", prop::collection::vec(any::<u8>(), 0..300)), 0..5),
            step in 1..50usize,
        ) {
            let mut bytes = Vec::new();
            for (ask, text, body) in &frames {
                write(&mut bytes, &head(*ask, text), body).expect("fits");
            }
            let mut stream = Drops(&bytes, step);
            for (ask, text, body) in &frames {
                let read = read(&mut stream).expect("whole").expect("there");
                prop_assert_eq!(&read.head, &head(*ask, text));
                prop_assert_eq!(&read.body, body);
            }
            prop_assert!(read(&mut stream).expect("the end").is_none());
        }

        #[test]
        fn a_frame_that_is_cut_off_is_an_error(body in prop::collection::vec(any::<u8>(), 0..100), cut: prop::sample::Index) {
            let mut bytes = Vec::new();
            write(&mut bytes, &head(Some(1), "x"), &body).expect("fits");
            let cut = 1 + cut.index(bytes.len() - 1);
            prop_assert!(read(&mut &bytes[..cut]).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), head in 0..300_u32, body in any::<u32>()) {
            let _ = read(&mut &bytes[..]);
            let mut framed = head.to_le_bytes().to_vec();
            framed.extend_from_slice(&body.to_le_bytes());
            framed.extend_from_slice(&bytes);
            if let Ok(Some(frame)) = read(&mut &framed[..]) {
                prop_assert!(frame.body.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn a_length_beyond_all_bounds_takes_no_memory() {
        let mut bytes = 10_u32.to_le_bytes().to_vec();
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(read(&mut &bytes[..]).is_err());
        let long = vec![0; MAX_BODY_BYTES as usize + 1];
        assert!(write(&mut Vec::new(), &Head::default(), &long).is_err());
    }
}
