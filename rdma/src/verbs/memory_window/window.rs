//! Windows that open nothing yet.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::sys;
use crate::verbs::error::VerbsError;
use crate::verbs::memory::ProtectionDomain;

pub(in crate::verbs) type AllocateWindow =
    unsafe extern "C" fn(*mut sys::ibv_pd, sys::ibv_mw_type) -> *mut sys::ibv_mw;
pub(in crate::verbs) type DeallocateWindow = unsafe extern "C" fn(*mut sys::ibv_mw) -> i32;
pub(in crate::verbs) type BindWindow =
    unsafe extern "C" fn(*mut sys::ibv_qp, *mut sys::ibv_mw, *mut sys::ibv_mw_bind) -> i32;

/// The provider's operations on windows.
pub(in crate::verbs) struct WindowOperations {
    pub(in crate::verbs) allocate: AllocateWindow,
    pub(in crate::verbs) deallocate: DeallocateWindow,
    /// For type 1.
    pub(in crate::verbs) bind: Option<BindWindow>,
}

/// How a window is opened and closed.
#[derive(Clone, Copy)]
pub(super) enum Binding {
    /// Type 1, by a call of the provider, which chooses the key.
    Call(BindWindow),
    /// Type 2, by work requests, under a key of ours.
    WorkRequest,
}

/// A window that opens nothing yet. It can be opened again and again, under a new key each time.
pub struct MemoryWindow {
    /// `None` once it is destroyed.
    pub(super) raw: Option<NonNull<sys::ibv_mw>>,
    pub(super) binding: Binding,
    deallocate: DeallocateWindow,
    pub(super) pd: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs' control functions are thread safe, and the window has one owner.
unsafe impl Send for MemoryWindow {}
// SAFETY: nothing can be done with it through a shared reference.
unsafe impl Sync for MemoryWindow {}

impl MemoryWindow {
    /// Makes one of type 2: what it opens is open to the peer of one queue pair.
    pub fn new(pd: &Arc<ProtectionDomain>) -> Result<MemoryWindow, VerbsError> {
        MemoryWindow::make(pd, sys::IBV_MW_TYPE_2)
    }

    /// Makes one of type 1: what it opens is open to the peers of all queue pairs of the protection domain
    /// that grant its rights.
    pub fn of_type_1(pd: &Arc<ProtectionDomain>) -> Result<MemoryWindow, VerbsError> {
        MemoryWindow::make(pd, sys::IBV_MW_TYPE_1)
    }

    fn make(
        pd: &Arc<ProtectionDomain>,
        kind: sys::ibv_mw_type,
    ) -> Result<MemoryWindow, VerbsError> {
        let context = pd.context();
        context.check_process()?;
        let limits = context.limits();
        let (has, what) = match kind {
            sys::IBV_MW_TYPE_1 => (limits.windows_of_type_1, "memory windows of type 1"),
            _ => (limits.windows_of_type_2, "memory windows of type 2"),
        };
        let lacking = || VerbsError::Lacking {
            device: context.name().to_owned(),
            what,
        };
        if !has {
            return Err(lacking());
        }
        let operations = context.window_operations().ok_or_else(lacking)?;
        let binding = match kind {
            sys::IBV_MW_TYPE_1 => Binding::Call(operations.bind.ok_or_else(lacking)?),
            _ => Binding::WorkRequest,
        };
        // SAFETY: the protection domain is alive.
        let raw = unsafe { (operations.allocate)(pd.as_ptr(), kind) };
        let raw =
            NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_alloc_mw", context.name()))?;
        Ok(MemoryWindow {
            raw: Some(raw),
            binding,
            deallocate: operations.deallocate,
            pd: Arc::clone(pd),
        })
    }

    /// Destroys it; whether the device did: then nothing is open through it any more.
    pub(super) fn destroy(&mut self) -> bool {
        let Some(raw) = self.raw else {
            return true;
        };
        if self.pd.context().is_inherited() {
            return false;
        }
        // SAFETY: the window is ours and was not destroyed before.
        let destroyed = unsafe { (self.deallocate)(raw.as_ptr()) } == 0;
        if destroyed {
            self.raw = None;
        }
        destroyed
    }

    /// The same window, in a value of its own; this one stands for none any more.
    pub(super) fn take(&mut self) -> MemoryWindow {
        MemoryWindow {
            raw: self.raw.take(),
            binding: self.binding,
            deallocate: self.deallocate,
            pd: Arc::clone(&self.pd),
        }
    }

    /// Leaves it to the device, with its protection domain, for ever.
    pub(super) fn leak(&mut self) {
        self.raw = None;
        std::mem::forget(Arc::clone(&self.pd));
    }
}

impl Drop for MemoryWindow {
    fn drop(&mut self) {
        if !self.destroy() {
            self.leak();
        }
    }
}

impl fmt::Debug for MemoryWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryWindow").finish_non_exhaustive()
    }
}
