//! Opens a device and keeps what was learnt about it.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::error::VerbsError;
use super::event;
use super::limits::DeviceLimits;
use super::memory_window::WindowOperations;
use super::shared_receive::PostSharedReceive;
use crate::sys::{self, Library};

pub(super) type PostSend = unsafe extern "C" fn(
    *mut sys::ibv_qp,
    *mut sys::ibv_send_wr,
    *mut *mut sys::ibv_send_wr,
) -> i32;
type PostReceive = unsafe extern "C" fn(
    *mut sys::ibv_qp,
    *mut sys::ibv_recv_wr,
    *mut *mut sys::ibv_recv_wr,
) -> i32;
type PollCq = unsafe extern "C" fn(*mut sys::ibv_cq, i32, *mut sys::ibv_wc) -> i32;
type RequestNotify = unsafe extern "C" fn(*mut sys::ibv_cq, i32) -> i32;

/// The provider's operations of the data path, checked to be there once.
#[derive(Clone, Copy)]
pub(super) struct Operations {
    pub(super) post_send: PostSend,
    pub(super) post_receive: PostReceive,
    pub(super) poll_cq: PollCq,
    pub(super) request_notify: RequestNotify,
}

/// An open device. Everything made from it keeps it open.
pub struct Context {
    library: &'static Library,
    raw: NonNull<sys::ibv_context>,
    name: String,
    firmware: String,
    node_guid: u64,
    limits: DeviceLimits,
    operations: Operations,
    /// The process that opened it.
    process: u32,
}

// SAFETY: libibverbs' control functions are thread safe, and the fields besides `raw` never change.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The names of all devices that libibverbs has a provider for.
pub fn device_names() -> Result<Vec<String>, VerbsError> {
    let devices = DeviceList::new(Library::system()?)?;
    Ok(devices.iter().map(|device| devices.name(device)).collect())
}

impl Context {
    /// Opens the device called `name` (`mlx5_0`, `rxe0`, …) and probes its limits.
    pub fn open(name: &str) -> Result<Arc<Context>, VerbsError> {
        Self::open_in(Library::system()?, name)
    }

    /// Opens a device of another set of functions than the system's: the mock provider's.
    pub(crate) fn open_in(
        library: &'static Library,
        name: &str,
    ) -> Result<Arc<Context>, VerbsError> {
        let devices = DeviceList::new(library)?;
        let device = devices
            .iter()
            .find(|device| devices.name(*device) == name)
            .ok_or_else(|| VerbsError::NoDevice {
                name: name.to_owned(),
                known: devices.iter().map(|device| devices.name(device)).collect(),
            })?;
        // SAFETY: the device is of the list, which lives until the end of this function.
        let raw = unsafe { (library.open_device)(device.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_open_device", name))?;
        // SAFETY: as above.
        let node_guid = u64::from_be(unsafe { (library.get_device_guid)(device.as_ptr()) });
        let opened = Opened { library, raw };

        // SAFETY: the context was just opened.
        let (limits, attributes) = unsafe { DeviceLimits::probe(library, raw.as_ptr(), name) }?;
        // SAFETY: a provider fills its table before it returns the context.
        let table = unsafe { &(*raw.as_ptr()).ops };
        let missing = |operation| VerbsError::NoOperation {
            device: name.to_owned(),
            operation,
        };
        let operations = Operations {
            post_send: table.post_send.ok_or_else(|| missing("post_send"))?,
            post_receive: table.post_recv.ok_or_else(|| missing("post_recv"))?,
            poll_cq: table.poll_cq.ok_or_else(|| missing("poll_cq"))?,
            request_notify: table
                .req_notify_cq
                .ok_or_else(|| missing("req_notify_cq"))?,
        };
        let context = Context {
            library,
            raw,
            name: name.to_owned(),
            firmware: text(&attributes.fw_ver),
            node_guid,
            limits,
            operations,
            process: std::process::id(),
        };
        std::mem::forget(opened);
        event::set_blocking(context.async_fd().as_raw_fd(), false).map_err(|source| {
            VerbsError::Call {
                verb: "fcntl",
                object: name.to_owned(),
                source,
            }
        })?;
        Ok(Arc::new(context))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its firmware version, empty for software devices.
    pub fn firmware(&self) -> &str {
        &self.firmware
    }

    /// Its node GUID.
    pub fn node_guid(&self) -> u64 {
        self.node_guid
    }

    /// Its limits.
    pub fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// Readable when [`Context::next_event`] has something: link down, device gone and the like.
    pub fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as the context, which `self` borrows.
        unsafe { BorrowedFd::borrow_raw(self.raw_async_fd()) }
    }

    pub(crate) fn raw_async_fd(&self) -> RawFd {
        // SAFETY: the context is open; the field never changes.
        unsafe { (*self.raw.as_ptr()).async_fd }
    }

    /// Whether this process is a child of the one that opened it: what is made of it is the parent's.
    pub(super) fn is_inherited(&self) -> bool {
        self.process != std::process::id()
    }

    pub(super) fn check_process(&self) -> Result<(), VerbsError> {
        if self.is_inherited() {
            return Err(VerbsError::Forked {
                device: self.name.clone(),
                owner: self.process,
            });
        }
        Ok(())
    }

    pub(super) fn library(&self) -> &'static Library {
        self.library
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_context {
        self.raw.as_ptr()
    }

    /// How memory windows are made and destroyed, when the provider has them.
    pub(super) fn window_operations(&self) -> Option<WindowOperations> {
        // SAFETY: a provider fills its table before it returns the context, and leaves it alone.
        let table = unsafe { &(*self.raw.as_ptr()).ops };
        Some(WindowOperations {
            allocate: table.alloc_mw?,
            deallocate: table.dealloc_mw?,
            bind: table.bind_mw,
        })
    }

    /// How receives are posted on shared receive queues, when the provider has them.
    pub(super) fn post_shared_receive(&self) -> Option<PostSharedReceive> {
        // SAFETY: a provider fills its table before it returns the context, and leaves it alone.
        unsafe { (*self.raw.as_ptr()).ops.post_srq_recv }
    }

    pub(super) fn operations(&self) -> Operations {
        self.operations
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.is_inherited() {
            return;
        }
        // SAFETY: everything made from the context held an Arc to it, so nothing is left.
        unsafe { (self.library.close_device)(self.raw.as_ptr()) };
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish()
    }
}

/// Closes a context that could not be fully probed.
struct Opened {
    library: &'static Library,
    raw: NonNull<sys::ibv_context>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: the context was opened by us and is not used after a failed probe.
        unsafe { (self.library.close_device)(self.raw.as_ptr()) };
    }
}

/// libibverbs' list of devices; pointers into it live as long as it.
struct DeviceList {
    library: &'static Library,
    raw: NonNull<*mut sys::ibv_device>,
    count: usize,
}

impl DeviceList {
    fn new(library: &'static Library) -> Result<DeviceList, VerbsError> {
        let mut count = 0;
        // SAFETY: `count` is ours.
        let raw = unsafe { (library.get_device_list)(&mut count) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| VerbsError::last("ibv_get_device_list", "this system"))?;
        Ok(DeviceList {
            library,
            raw,
            count: usize::try_from(count).unwrap_or(0),
        })
    }

    fn iter(&self) -> impl Iterator<Item = NonNull<sys::ibv_device>> + '_ {
        (0..self.count).filter_map(|index| {
            // SAFETY: the list has `count` entries.
            NonNull::new(unsafe { *self.raw.as_ptr().add(index) })
        })
    }

    fn name(&self, device: NonNull<sys::ibv_device>) -> String {
        // SAFETY: the device is of this list; its name is a NUL-terminated array within it.
        let name = unsafe { CStr::from_ptr((self.library.get_device_name)(device.as_ptr())) };
        name.to_string_lossy().into_owned()
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the list came from the same library; open contexts keep their devices.
        unsafe { (self.library.free_device_list)(self.raw.as_ptr()) };
    }
}

fn text(field: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = field
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| byte.cast_unsigned())
        .collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}
