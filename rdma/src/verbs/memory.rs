//! Memory that an adapter may touch: who owns it, and what it may do there.

mod remote;

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::context::Context;
use super::error::VerbsError;
use super::memlock;
use crate::sys;
pub use remote::{RemoteAddress, RemoteMemory};

/// Memory that can be registered.
///
/// # Safety
/// `as_ptr()` to `as_ptr() + len()` must be one valid, readable and writable mapping for as long as the
/// value exists, at an address that never changes; and no reference to these bytes may be created
/// except through the [`Source`] and [`Sink`] values that own parts of it (and never overlap, unless
/// all of them are read only).
pub unsafe trait Pinned: Send + Sync + 'static {
    /// Start of the mapping.
    fn as_ptr(&self) -> *mut u8;
    /// Its length in bytes.
    fn len(&self) -> usize;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A buffer that can be sent from: it moves into the queue pair and back.
///
/// # Safety
/// While the value exists, the bytes from `as_ptr()` on for `len()` must stay valid at that address,
/// wherever the value itself is moved, and must not be written except through `&mut` of this value.
pub unsafe trait Source: Send + 'static {
    /// Start of the buffer.
    fn as_ptr(&self) -> *const u8;
    /// Its length in bytes.
    fn len(&self) -> usize;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A buffer that can be received or read into.
///
/// # Safety
/// As [`Source`], and the value must be the only way to read or write its bytes.
pub unsafe trait Sink: Source {}

// SAFETY: no bytes at all. For receives that only take an immediate.
unsafe impl Source for () {
    fn as_ptr(&self) -> *const u8 {
        NonNull::dangling().as_ptr()
    }
    fn len(&self) -> usize {
        0
    }
}
// SAFETY: no bytes at all.
unsafe impl Sink for () {}

// SAFETY: what is in the box stays where it is while the box moves.
unsafe impl<S: Source> Source for Box<S> {
    #[inline]
    fn as_ptr(&self) -> *const u8 {
        (**self).as_ptr()
    }
    #[inline]
    fn len(&self) -> usize {
        (**self).len()
    }
}
// SAFETY: the box is the only way to what is in it.
unsafe impl<S: Sink> Sink for Box<S> {}

/// A part of a payload: bytes `offset` to `offset + len` of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First byte, counted from the payload's start.
    pub offset: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Segment {
    /// `len` bytes from `offset` on.
    pub const fn new(offset: u32, len: u32) -> Segment {
        Segment { offset, len }
    }
}

/// A group of regions and queue pairs that may be used together: one a peer, so that a peer's rkeys
/// open nothing on another peer's connection.
pub struct ProtectionDomain {
    raw: NonNull<sys::ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: libibverbs' control functions are thread safe.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// Makes one.
    pub fn new(context: &Arc<Context>) -> Result<Arc<ProtectionDomain>, VerbsError> {
        context.check_process()?;
        // SAFETY: the context is open.
        let raw = unsafe { (context.library().alloc_pd)(context.as_ptr()) };
        let raw =
            NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_alloc_pd", context.name()))?;
        Ok(Arc::new(ProtectionDomain {
            raw,
            context: Arc::clone(context),
        }))
    }

    /// The device it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_pd {
        self.raw.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        if self.context.is_inherited() {
            return;
        }
        // SAFETY: regions and queue pairs of it hold it alive, so none is left. One that failed to be
        // destroyed was leaked and makes this fail too, which leaks it as well.
        unsafe { (self.context.library().dealloc_pd)(self.raw.as_ptr()) };
    }
}

/// What the adapter may do in a region, beyond reading for our own sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing more: for memory that is only sent.
    LocalRead,
    /// Write what our own receives and reads bring, into the payloads posted for them.
    LocalWrite,
}

/// What a peer may do in memory of ours that it is told the key of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoteAccess {
    /// RDMA writes.
    pub write: bool,
    /// RDMA reads.
    pub read: bool,
    /// Fetch-and-add and compare-and-swap on aligned words of 8 bytes.
    pub atomic: bool,
}

impl RemoteAccess {
    pub(super) fn raw(self) -> u32 {
        let flag = |set, flag| if set { flag } else { 0 };
        flag(self.write, sys::IBV_ACCESS_REMOTE_WRITE)
            | flag(self.read, sys::IBV_ACCESS_REMOTE_READ)
            | flag(self.atomic, sys::IBV_ACCESS_REMOTE_ATOMIC)
    }

    fn from_raw(raw: u32) -> RemoteAccess {
        RemoteAccess {
            write: raw & sys::IBV_ACCESS_REMOTE_WRITE != 0,
            read: raw & sys::IBV_ACCESS_REMOTE_READ != 0,
            atomic: raw & sys::IBV_ACCESS_REMOTE_ATOMIC != 0,
        }
    }
}

/// Registered memory: pinned, and known to the adapter under its keys.
pub struct MemoryRegion {
    raw: NonNull<sys::ibv_mr>,
    lkey: u32,
    rkey: u32,
    access: u32,
    pd: Arc<ProtectionDomain>,
    memory: Option<Arc<dyn Pinned>>,
    start: usize,
    len: usize,
}

// SAFETY: libibverbs' control functions are thread safe; the other fields never change.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    /// Registers all of `memory` for our own work requests. No peer can reach it.
    pub fn register(
        pd: &Arc<ProtectionDomain>,
        memory: Arc<dyn Pinned>,
        access: Access,
    ) -> Result<Arc<MemoryRegion>, VerbsError> {
        match access {
            Access::LocalRead => Self::register_with(pd, memory, 0),
            Access::LocalWrite => Self::register_with(pd, memory, sys::IBV_ACCESS_LOCAL_WRITE),
        }
    }

    /// Registers all of `memory` for our own sends and for RDMA reads of peers that are told its rkey.
    ///
    /// A peer may read any byte at any time until the region is gone: no secret must come to lie there,
    /// and what is changed meanwhile may arrive half old, half new. Nothing is ever written through the
    /// region, neither by a peer nor by a receive of ours, so payloads in it may be shared.
    pub fn register_remote_readable(
        pd: &Arc<ProtectionDomain>,
        memory: Arc<dyn Pinned>,
    ) -> Result<Arc<MemoryRegion>, VerbsError> {
        Self::register_with(pd, memory, sys::IBV_ACCESS_REMOTE_READ)
    }

    /// Registers all of `memory` for our own work requests, and for windows
    /// ([`super::QueuePair::open_window`]) on parts of it. No peer can reach it otherwise.
    pub fn register_for_windows(
        pd: &Arc<ProtectionDomain>,
        memory: Arc<dyn Pinned>,
    ) -> Result<Arc<MemoryRegion>, VerbsError> {
        let access = sys::IBV_ACCESS_LOCAL_WRITE | sys::IBV_ACCESS_MW_BIND;
        Self::register_with(pd, memory, access)
    }

    /// As [`MemoryRegion::register_remote`], for RDMA writes alone.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn register_remote_writable(
        pd: &Arc<ProtectionDomain>,
        memory: Arc<dyn Pinned>,
    ) -> Result<Arc<MemoryRegion>, VerbsError> {
        let access = RemoteAccess {
            write: true,
            ..RemoteAccess::default()
        };
        // SAFETY: the caller promises the same.
        unsafe { Self::register_remote(pd, memory, access) }
    }

    /// Registers all of `memory` for our own work requests, and for what `access` says of peers that are
    /// told its rkey. [`super::RemoteWindow`] is the safe way to have such memory.
    ///
    /// # Safety
    /// From the moment a peer learns the rkey until the region (or the peer's queue pair) is gone, the
    /// peer may write any byte at any time, if `access` has `write` or `atomic`. The caller must see to it
    /// that no `&[u8]` or `&mut [u8]` to bytes exists while a peer may write them: by a protocol that gives
    /// the peer leave for a part, takes it back with the completion that says it is written, and tears the
    /// connection down before trusting a part again whose writer broke the protocol.
    pub unsafe fn register_remote(
        pd: &Arc<ProtectionDomain>,
        memory: Arc<dyn Pinned>,
        access: RemoteAccess,
    ) -> Result<Arc<MemoryRegion>, VerbsError> {
        Self::register_with(pd, memory, sys::IBV_ACCESS_LOCAL_WRITE | access.raw())
    }

    pub(super) fn register_with(
        pd: &Arc<ProtectionDomain>,
        memory: Arc<dyn Pinned>,
        access: u32,
    ) -> Result<Arc<MemoryRegion>, VerbsError> {
        let context = pd.context();
        context.check_process()?;
        let (start, len) = (memory.as_ptr(), memory.len());
        context.limits().check(
            context.name(),
            "bytes in a memory region",
            len as u64,
            context.limits().region_bytes,
        )?;
        if access & sys::IBV_ACCESS_REMOTE_ATOMIC != 0 {
            context.limits().check_atomics(context.name())?;
        }
        // SAFETY: `Pinned` promises a valid mapping, which the region keeps alive; what the adapter
        // does there is bounded by `access` and by the payloads that posts own.
        let raw = unsafe {
            (context.library().reg_mr)(
                pd.as_ptr(),
                start.cast::<c_void>(),
                len,
                access.cast_signed(),
            )
        };
        let raw =
            NonNull::new(raw).ok_or_else(|| memlock::registration_failed(context.name(), len))?;
        // SAFETY: the region was just made.
        let (lkey, rkey) = unsafe { ((*raw.as_ptr()).lkey, (*raw.as_ptr()).rkey) };
        Ok(Arc::new(MemoryRegion {
            raw,
            lkey,
            rkey,
            access,
            pd: Arc::clone(pd),
            memory: Some(memory),
            start: start as usize,
            len,
        }))
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The protection domain it is of.
    pub fn protection_domain(&self) -> &Arc<ProtectionDomain> {
        &self.pd
    }

    /// How a peer addresses it; `None` when peers may do nothing with it.
    pub fn remote(&self) -> Option<RemoteMemory> {
        (self.remote_access() != RemoteAccess::default()).then_some(RemoteMemory {
            address: self.start as u64,
            len: self.len as u64,
            rkey: self.rkey,
        })
    }

    /// What peers that are told its rkey may do.
    pub fn remote_access(&self) -> RemoteAccess {
        RemoteAccess::from_raw(self.access)
    }

    pub(super) fn takes_windows(&self) -> bool {
        self.access & sys::IBV_ACCESS_MW_BIND != 0
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_mr {
        self.raw.as_ptr()
    }

    pub(super) fn local(&self) -> LocalRange {
        LocalRange {
            start: self.start,
            end: self.start + self.len,
            lkey: self.lkey,
            writable: self.access & sys::IBV_ACCESS_LOCAL_WRITE != 0,
        }
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        if self.pd.context.is_inherited() {
            return;
        }
        // SAFETY: queue pairs it is attached to hold it alive and have drained or are destroyed.
        let code = unsafe { (self.pd.context.library().dereg_mr)(self.raw.as_ptr()) };
        if code != 0 {
            // Still registered: the memory must outlive what the adapter may do there.
            std::mem::forget(self.memory.take());
        }
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegion")
            .field("device", &self.pd.context().name())
            .field("len", &self.len)
            .field("remote_access", &self.remote_access())
            .finish_non_exhaustive()
    }
}

/// What posting needs to know of an attached region.
#[derive(Clone, Copy)]
pub(super) struct LocalRange {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) lkey: u32,
    pub(super) writable: bool,
}

impl LocalRange {
    /// Of no region: no segment lies in it.
    pub(super) const NONE: LocalRange = LocalRange {
        start: usize::MAX,
        end: 0,
        lkey: 0,
        writable: false,
    };
}
