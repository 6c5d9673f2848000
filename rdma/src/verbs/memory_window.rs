//! Memory windows: a range of a region opened to the peer of one queue pair, and closed again, without
//! registering anything.
//!
//! The memory moves into the window, so that nobody here has a slice of what a peer may write, and comes
//! back only when the adapter has carried out the invalidation (or the window itself is gone). What the
//! peer was told then opens nothing, however late its writes arrive.
//!
//! There are two types (InfiniBand Architecture Specification, volume 1, section 10.6.7). One of type 2
//! ([`MemoryWindow::new`]) is open to the peer of the queue pair that opened it, and to nobody else. One
//! of type 1 ([`MemoryWindow::of_type_1`]), which older devices have, is open to the peers of every queue
//! pair of its protection domain that grants such rights: the same where a domain has one peer, as it
//! should. It is opened and closed by `ibv_bind_mw`, on a queue pair and in order with what is posted
//! there, and is used in the same way.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use trackbed_rdma::verbs::*;
//! # fn example(
//! #     pd: &Arc<ProtectionDomain>, memory: Arc<Mapping>, piece: Piece,
//! #     qp: &mut QueuePair<Piece, Piece>, cq: &mut CompletionQueue,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! qp.attach(&MemoryRegion::register_for_windows(pd, memory)?)?;      // once; pieces of it fit windows
//! let rights = RemoteAccess { write: true, ..Default::default() };
//! let open = qp.open_window(MemoryWindow::new(pd)?, piece, Segment::new(0, 4096), rights)?;
//! let told = open.remote().encode();                                 // a message on this queue pair tells it
//! // … the peer writes, and says so …
//! let mut closing = qp.close_window(open)?;
//! let closed = loop {
//!     while let Some(done) = cq.poll()? { drop(qp.settle(done)) }
//!     closing = match closing.finish(qp) { Ok(closed) => break closed, Err(later) => later };
//! };
//! println!("{:?}", &closed.payload[..4]);                            // ordinary memory again
//! # Ok(()) }
//! ```
//! What is in an open window can't be looked at as a slice, nor used for anything else:
//! ```compile_fail,E0382
//! # use trackbed_rdma::verbs::*;
//! fn peek(qp: &mut QueuePair<Piece, Piece>, window: MemoryWindow, piece: Piece) -> u8 {
//!     let open = qp.open_window(window, piece, Segment::new(0, 64), RemoteAccess::default());
//!     piece[0]
//! }
//! ```
//! A window is closed once:
//! ```compile_fail,E0382
//! # use trackbed_rdma::verbs::*;
//! fn twice(qp: &mut QueuePair<Piece, Piece>, open: OpenWindow<Piece>) {
//!     qp.close_window(open).ok();
//!     qp.close_window(open).ok();
//! }
//! ```

mod window;

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

use super::memory::{MemoryRegion, RemoteAccess, RemoteMemory, Segment, Sink, Source};
use super::post::Rejection;
use super::queue_pair::{QueuePair, QueuePairState};
use crate::sys;

use window::Binding;
pub use window::MemoryWindow;
pub(super) use window::{BindWindow, WindowOperations};

/// Memory behind a window, which a peer may use at any time.
struct Bound<P: Sink> {
    window: MemoryWindow,
    /// `None` once it was handed back.
    payload: Option<P>,
    remote: RemoteMemory,
    /// The queue pair it was opened on.
    epoch: u64,
    region: Arc<MemoryRegion>,
}

impl<P: Sink> Bound<P> {
    /// Destroys the window, and with it the peer's way in; `None` when the device refuses.
    fn revoke(&mut self) -> Option<P> {
        if self.window.destroy() {
            self.payload.take()
        } else {
            None
        }
    }

    /// Hands both back, when the adapter has carried the invalidation out.
    fn release(&mut self) -> Option<ClosedWindow<P>> {
        let payload = self.payload.take()?;
        Some(ClosedWindow {
            payload,
            window: Some(self.window.take()),
        })
    }
}

impl<P: Sink> Drop for Bound<P> {
    fn drop(&mut self) {
        if self.payload.is_some() && self.revoke().is_none() {
            // A peer may still write there: keep the memory, registered, for ever.
            std::mem::forget(self.payload.take());
            std::mem::forget(Arc::clone(&self.region));
            self.window.leak();
        }
    }
}

/// A range of a payload that the peer of one queue pair may use. Dropping it destroys the window, then
/// the payload.
pub struct OpenWindow<P: Sink> {
    bound: Bound<P>,
}

/// A window that is being invalidated.
pub struct ClosingWindow<P: Sink> {
    bound: Bound<P>,
    /// The invalidation among the sends.
    number: u64,
}

/// What comes back from a window that is closed.
#[derive(Debug)]
pub struct ClosedWindow<P> {
    /// The memory, which no peer can reach any more.
    pub payload: P,
    /// The window, to be opened again; `None` when it had to be destroyed, since its queue pair failed.
    pub window: Option<MemoryWindow>,
}

/// Memory that was not opened to a peer, and why.
#[derive(Error)]
#[error("a window was not opened: {reason}")]
pub struct OpenFailed<P> {
    /// The window, back.
    pub window: MemoryWindow,
    /// The payload, back.
    pub payload: P,
    /// Why.
    #[source]
    pub reason: Rejection,
}

/// A window that was not closed, and why. It is still open: close it later, or revoke it.
#[derive(Error)]
#[error("a window was not closed: {reason}")]
pub struct CloseFailed<P: Sink> {
    /// The window, as it was.
    pub open: OpenWindow<P>,
    /// Why.
    #[source]
    pub reason: Rejection,
}

impl<P> fmt::Debug for OpenFailed<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenFailed({:?})", self.reason)
    }
}

impl<P: Sink> fmt::Debug for CloseFailed<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloseFailed({:?})", self.reason)
    }
}

impl<S: Source, R: Sink> QueuePair<S, R> {
    /// Opens a part of a payload to the peer, in order with what is posted here before and after: a
    /// message that tells the peer of it, sent next, can't be too early. The payload must lie in a region
    /// made by [`MemoryRegion::register_for_windows`] and attached here. Takes one place on the send queue
    /// and completes without a payload; if the device refuses it, the queue pair fails.
    pub fn open_window<P: Sink>(
        &mut self,
        window: MemoryWindow,
        payload: P,
        part: Segment,
        access: RemoteAccess,
    ) -> Result<OpenWindow<P>, OpenFailed<P>> {
        match self.bind(&window, &payload, part, access) {
            Ok((remote, region)) => Ok(OpenWindow {
                bound: Bound {
                    window,
                    payload: Some(payload),
                    remote,
                    epoch: self.core.epoch,
                    region,
                },
            }),
            Err(reason) => Err(OpenFailed {
                window,
                payload,
                reason,
            }),
        }
    }

    fn bind<P: Sink>(
        &mut self,
        window: &MemoryWindow,
        payload: &P,
        part: Segment,
        access: RemoteAccess,
    ) -> Result<(RemoteMemory, Arc<MemoryRegion>), Rejection> {
        let len = payload.len();
        if u64::from(part.offset) + u64::from(part.len) > len as u64 || part.len == 0 {
            let segment = part;
            return Err(Rejection::OutsidePayload { segment, len });
        }
        let region = self.core.send.attached.region_of(payload.as_ptr(), len)?;
        let (Some(raw), true) = (window.raw, region.takes_windows()) else {
            return Err(Rejection::NoWindows);
        };
        if !Arc::ptr_eq(&window.pd, region.protection_domain()) {
            return Err(Rejection::NoWindows);
        }
        let address = payload.as_ptr() as u64 + u64::from(part.offset);
        let info = sys::ibv_mw_bind_info {
            mr: region.as_ptr(),
            addr: address,
            length: u64::from(part.len),
            mw_access_flags: access.raw(),
        };
        // SAFETY: the window and the region are alive, and the open window keeps both; the range lies in
        // the payload, which moves into the open window, so that no slice of it exists while it is open.
        let rkey = unsafe {
            match window.binding {
                Binding::Call(bind) => {
                    self.core.post_bind(bind, raw, info)?;
                    (*raw.as_ptr()).rkey
                }
                Binding::WorkRequest => self.post_bind_request(raw, info)?,
            }
        };
        let remote = RemoteMemory {
            address,
            len: u64::from(part.len),
            rkey,
        };
        Ok((remote, region))
    }

    /// Opens a window of type 2 by a work request; its key.
    ///
    /// # Safety
    /// Window and region must live until the window is closed, and the range be no one's to look at.
    unsafe fn post_bind_request(
        &mut self,
        raw: NonNull<sys::ibv_mw>,
        info: sys::ibv_mw_bind_info,
    ) -> Result<u32, Rejection> {
        // SAFETY: the window is alive.
        let before = unsafe { (*raw.as_ptr()).rkey };
        // The lowest byte is the owner's to choose, and must change.
        let rkey = before & !0xff | before.wrapping_add(1) & 0xff;
        let mut request = sys::ibv_send_wr {
            opcode: sys::IBV_WR_BIND_MW,
            ..Default::default()
        };
        request.__bindgen_anon_2.bind_mw = sys::ibv_send_wr__bindgen_ty_4__bindgen_ty_1 {
            mw: raw.as_ptr(),
            rkey,
            bind_info: info,
        };
        // SAFETY: as the caller says.
        unsafe { self.core.post_control(&mut request) }?;
        // SAFETY: the window is ours; with type 2 its key is for us to keep up (ibv_bind_mw(3)).
        unsafe { (*raw.as_ptr()).rkey = rkey };
        Ok(rkey)
    }

    /// Invalidates a window that was opened on this queue pair. Its memory comes back from
    /// [`ClosingWindow::finish`] when the completion of that is settled.
    pub fn close_window<P: Sink>(
        &mut self,
        open: OpenWindow<P>,
    ) -> Result<ClosingWindow<P>, CloseFailed<P>> {
        if open.bound.epoch != self.core.epoch {
            let reason = Rejection::NoWindows;
            return Err(CloseFailed { open, reason });
        }
        // SAFETY: it names a window of this queue pair, which the closing window keeps.
        match unsafe { self.post_close(&open.bound) } {
            Ok(number) => Ok(ClosingWindow {
                bound: open.bound,
                number,
            }),
            Err(reason) => Err(CloseFailed { open, reason }),
        }
    }
}

impl<S: Source, R: Sink> QueuePair<S, R> {
    /// Has the adapter close a window: the number of the work request.
    ///
    /// # Safety
    /// It must be one of this queue pair, and live until the work request has completed.
    unsafe fn post_close<P: Sink>(&mut self, bound: &Bound<P>) -> Result<u64, Rejection> {
        match (bound.window.binding, bound.window.raw) {
            (Binding::Call(bind), Some(raw)) => {
                // One of type 1 can't be invalidated, but be opened on nothing.
                let nothing = sys::ibv_mw_bind_info {
                    mr: bound.region.as_ptr(),
                    addr: bound.remote.address,
                    length: 0,
                    mw_access_flags: 0,
                };
                // SAFETY: as the caller says.
                unsafe { self.core.post_bind(bind, raw, nothing) }
            }
            _ => {
                let mut request = sys::ibv_send_wr {
                    opcode: sys::IBV_WR_LOCAL_INV,
                    ..Default::default()
                };
                request.__bindgen_anon_1.invalidate_rkey = bound.remote.rkey;
                // SAFETY: as the caller says.
                unsafe { self.core.post_control(&mut request) }
            }
        }
    }
}

impl<P: Sink> OpenWindow<P> {
    /// How the peer addresses it.
    pub fn remote(&self) -> RemoteMemory {
        self.bound.remote
    }

    /// Copies bytes of the window from `offset` on into `target`, one volatile read a byte, while the
    /// peer may be writing them; false, and nothing copied, past the end.
    #[must_use]
    pub fn copy_out(&self, offset: usize, target: &mut [u8]) -> bool {
        let len = self.bound.remote.len as usize;
        if offset.checked_add(target.len()).is_none_or(|end| end > len) {
            return false;
        }
        let start = self.bound.remote.address as *const u8;
        for (index, byte) in target.iter_mut().enumerate() {
            // SAFETY: inside the window, and so inside the payload, as checked; volatile, since the
            // adapter may write it meanwhile.
            *byte = unsafe { start.add(offset + index).read_volatile() };
        }
        true
    }

    /// Destroys the window at once, and hands its memory back; the window when the device refuses. For
    /// one whose queue pair is gone or has failed: on a healthy one whose work is still under way, the
    /// queue pair may fail over it.
    pub fn revoke(mut self) -> Result<P, OpenWindow<P>> {
        self.bound.revoke().ok_or(self)
    }
}

impl<P: Sink> ClosingWindow<P> {
    /// Hands the memory back, if the invalidation's completion was settled on its queue pair, which this
    /// must be; else the window, to be asked again later. When the queue pair failed meanwhile, the window
    /// is destroyed instead.
    pub fn finish<S: Source, R: Sink>(
        mut self,
        pair: &QueuePair<S, R>,
    ) -> Result<ClosedWindow<P>, ClosingWindow<P>> {
        if self.bound.epoch != pair.core.epoch || pair.core.send.ring.holds(self.number) {
            return Err(self);
        }
        // A work request that fails takes its queue pair to the error state: in this one, none has.
        let closed = match pair.state() {
            Ok(QueuePairState::ReadyToSend) => self.bound.release(),
            _ => self.bound.revoke().map(|payload| ClosedWindow {
                payload,
                window: None,
            }),
        };
        closed.ok_or(self)
    }

    /// As [`OpenWindow::revoke`].
    pub fn revoke(mut self) -> Result<P, ClosingWindow<P>> {
        self.bound.revoke().ok_or(self)
    }
}

impl<P: Sink> fmt::Debug for OpenWindow<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenWindow")
            .field("remote", &self.bound.remote)
            .finish_non_exhaustive()
    }
}

impl<P: Sink> fmt::Debug for ClosingWindow<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClosingWindow")
            .field("remote", &self.bound.remote)
            .finish_non_exhaustive()
    }
}
