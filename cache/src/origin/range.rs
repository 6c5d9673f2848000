//! The bounds of a read, checked before an origin is asked.

use std::io;

use super::{ObjectRef, OriginError};

impl ObjectRef<'_> {
    /// Fails unless `length` bytes from `offset` on lie within the object as it was listed.
    pub(super) fn check_range(
        &self,
        origin: &str,
        offset: u64,
        length: usize,
    ) -> Result<(), OriginError> {
        let length = length as u64;
        if offset
            .checked_add(length)
            .is_some_and(|end| end <= self.size)
        {
            return Ok(());
        }
        let why = format!("the range ends after the object's {} bytes", self.size);
        Err(OriginError::Read {
            origin: origin.to_owned(),
            object: String::from_utf8_lossy(self.path)
                .escape_debug()
                .to_string(),
            offset,
            length,
            source: io::Error::new(io::ErrorKind::InvalidInput, why),
            transient: false,
        })
    }
}
