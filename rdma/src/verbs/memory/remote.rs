//! Memory of the peer, as it described it to us.

/// A peer's memory that we may reach, as the peer described it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteMemory {
    /// Its start in the peer's address space.
    pub address: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The key that opens it.
    pub rkey: u32,
}

impl RemoteMemory {
    /// Length of an encoded description.
    pub const ENCODED_BYTES: usize = 20;

    /// The address of `len` bytes from `offset` on, when they lie inside.
    pub fn at(&self, offset: u64, len: u64) -> Option<RemoteAddress> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        Some(RemoteAddress {
            address: self.address.checked_add(offset)?,
            rkey: self.rkey,
        })
    }

    /// Encodes it, little endian.
    pub fn encode(&self) -> [u8; Self::ENCODED_BYTES] {
        let mut bytes = [0; Self::ENCODED_BYTES];
        bytes[0..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.rkey.to_le_bytes());
        bytes
    }

    /// Decodes what a peer sent; `None` when it isn't a range of an address space.
    pub fn decode(bytes: &[u8]) -> Option<RemoteMemory> {
        let bytes: &[u8; Self::ENCODED_BYTES] = bytes.try_into().ok()?;
        let (address, rest) = bytes.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<8>()?;
        let rkey = u32::from_le_bytes(*rest.first_chunk::<4>()?);
        let (address, len) = (u64::from_le_bytes(*address), u64::from_le_bytes(*len));
        address.checked_add(len)?;
        Some(RemoteMemory { address, len, rkey })
    }
}

/// Where a write goes or a read comes from: an address in the peer's memory and the key that opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAddress {
    /// Address in the peer's address space.
    pub address: u64,
    /// The key. A wrong one fails the work request and puts both ends into the error state.
    pub rkey: u32,
}

impl RemoteAddress {
    /// The address `bytes` further on.
    pub fn offset(self, bytes: u64) -> RemoteAddress {
        RemoteAddress {
            address: self.address.wrapping_add(bytes),
            rkey: self.rkey,
        }
    }
}
