//! The few bytes that travel with a request, its acceptance and its rejection.

use std::fmt;

use thiserror::Error;

/// Bytes that travel with the making of a connection.
///
/// The wire has fields of a fixed size, so what arrives is longer than what was sent, by zeros.
/// [`PrivateData::message`] frames bytes so that [`PrivateData::decode_message`] finds them as they
/// were; [`PrivateData::raw`] is for protocols with a layout of their own.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PrivateData(Vec<u8>);

/// Why private data can't be sent or understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PrivateDataError {
    /// More than there is room for.
    #[error("{len} bytes of private data: {what} has room for {limit}")]
    TooLong {
        /// What it was to travel with.
        what: &'static str,
        /// Its length, frame included.
        len: usize,
        /// The most there may be.
        limit: usize,
    },
    /// Not framed by [`PrivateData::message`].
    #[error(
        "the peer's private data is no message of this kind: it runs another program or release"
    )]
    Foreign,
    /// Framed, but altered or cut.
    #[error("the peer's private data is damaged: its length or checksum is wrong")]
    Damaged,
}

const MAGIC: [u8; 2] = *b"TB";
const LAYOUT: u8 = 1;
/// Magic, layout, length; and a checksum behind the message.
const HEAD: usize = 4;
const FRAME: usize = HEAD + 4;

impl PrivateData {
    /// Bytes that a request has room for.
    pub const REQUEST_BYTES: usize = 56;
    /// Bytes that an acceptance has room for.
    pub const ACCEPTANCE_BYTES: usize = 196;
    /// Bytes that a rejection has room for.
    pub const REJECTION_BYTES: usize = 148;

    /// These bytes as they are.
    pub fn raw(bytes: &[u8]) -> Result<PrivateData, PrivateDataError> {
        check("the largest field", bytes.len(), Self::ACCEPTANCE_BYTES)?;
        Ok(PrivateData(bytes.to_vec()))
    }

    /// These bytes, framed by eight more: the other end will know their length and that they are whole.
    pub fn message(message: &[u8]) -> Result<PrivateData, PrivateDataError> {
        let len = message.len() + FRAME;
        check("the largest field", len, Self::ACCEPTANCE_BYTES)?;
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(MAGIC);
        bytes.extend([LAYOUT, message.len() as u8]);
        bytes.extend(message);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        Ok(PrivateData(bytes))
    }

    /// The message in what a peer sent.
    pub fn decode_message(&self) -> Result<&[u8], PrivateDataError> {
        let head: &[u8; HEAD] = self.0.first_chunk().ok_or(PrivateDataError::Foreign)?;
        if head[..2] != MAGIC || head[2] != LAYOUT {
            return Err(PrivateDataError::Foreign);
        }
        let end = HEAD + usize::from(head[3]);
        let (framed, rest) = self
            .0
            .split_at_checked(end)
            .ok_or(PrivateDataError::Damaged)?;
        let (checksum, padding) = rest.split_first_chunk().ok_or(PrivateDataError::Damaged)?;
        if crc32c::crc32c(framed) != u32::from_le_bytes(*checksum)
            || padding.iter().any(|byte| *byte != 0)
        {
            return Err(PrivateDataError::Damaged);
        }
        Ok(&framed[HEAD..])
    }

    /// The bytes, as they travel or have arrived.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What arrived: the length is the wire's.
    pub(super) fn arrived(bytes: &[u8]) -> PrivateData {
        PrivateData(bytes.to_vec())
    }

    /// Its length for a field of `limit` bytes.
    pub(super) fn fit(&self, what: &'static str, limit: usize) -> Result<u8, PrivateDataError> {
        check(what, self.0.len(), limit)?;
        Ok(self.0.len() as u8)
    }
}

fn check(what: &'static str, len: usize, limit: usize) -> Result<(), PrivateDataError> {
    if len > limit {
        return Err(PrivateDataError::TooLong { what, len, limit });
    }
    Ok(())
}

impl fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateData({:?})", self.0.escape_ascii().to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn padded(data: &PrivateData, to: usize) -> PrivateData {
        let mut bytes = data.as_bytes().to_vec();
        bytes.resize(to.max(bytes.len()), 0);
        PrivateData::arrived(&bytes)
    }

    proptest! {
        #[test]
        fn a_message_arrives_as_it_was_however_much_the_wire_pads_it(
            message in proptest::collection::vec(any::<u8>(), 0..=PrivateData::ACCEPTANCE_BYTES - FRAME),
            field in 0usize..=255,
        ) {
            let sent = PrivateData::message(&message).unwrap();
            let arrived = padded(&sent, field);
            prop_assert_eq!(arrived.decode_message(), Ok(&message[..]));
        }

        #[test]
        fn one_altered_byte_is_noticed(
            message in proptest::collection::vec(any::<u8>(), 0..48), at: prop::sample::Index, by in 1u8..,
        ) {
            let sent = padded(&PrivateData::message(&message).unwrap(), PrivateData::REQUEST_BYTES);
            let mut bytes = sent.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert!(PrivateData::arrived(&bytes).decode_message().is_err());
        }

        #[test]
        fn arbitrary_bytes_are_a_message_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..256), frame: bool,
        ) {
            let mut bytes = bytes;
            if frame && bytes.len() >= 3 {
                bytes[..3].copy_from_slice(&[b'T', b'B', LAYOUT]);
            }
            if let Ok(message) = PrivateData::arrived(&bytes).decode_message() {
                prop_assert!(message.len() + FRAME <= bytes.len());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_room_there_is() {
        let error = PrivateData::message(&[0; 200]).unwrap_err();
        assert!(error.to_string().contains("196"), "{error}");
        let data = PrivateData::message(&[0; 60]).unwrap();
        let error = data
            .fit("a request", PrivateData::REQUEST_BYTES)
            .unwrap_err();
        assert!(
            error.to_string().contains("a request has room for 56"),
            "{error}"
        );
        assert_eq!(
            PrivateData::raw(b"rping").unwrap().decode_message(),
            Err(PrivateDataError::Foreign)
        );
    }
}
