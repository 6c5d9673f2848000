//! What a device can do at most, and requests beyond it refused before they reach the driver, which
//! would only say "invalid argument".

use super::error::VerbsError;
use crate::sys;

/// Between whom a device's atomics are atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atomics {
    /// It has none.
    None,
    /// Between operations through this device.
    WithinDevice,
    /// Also with the processors and other devices.
    WithinSystem,
}

/// Which operations may use memory that isn't pinned (on-demand paging), for one kind of queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct PagedOperations {
    pub send: bool,
    pub receive: bool,
    pub write: bool,
    pub read: bool,
    pub atomic: bool,
    pub shared_receive: bool,
}

/// What a device can do with memory that isn't pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OnDemandPaging {
    /// Whether it can at all.
    pub supported: bool,
    /// Whether one region may span the whole address space.
    pub implicit: bool,
    /// On reliable connections.
    pub reliable: PagedOperations,
    /// With datagrams.
    pub datagram: PagedOperations,
}

/// Limits of a device, probed when it was opened (`ibv_query_device` and `ibv_query_device_ex`). What an
/// older library or kernel doesn't tell is as if the device hadn't got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Number of physical ports.
    pub ports: u8,
    /// Work requests a queue may hold.
    pub queue_depth: u32,
    /// Segments a work request may have.
    pub segments: u32,
    /// Entries a completion queue may hold.
    pub completion_queue_entries: u32,
    /// Bytes one memory region may span.
    pub region_bytes: u64,
    /// Number of memory regions.
    pub regions: u32,
    /// Number of queue pairs.
    pub queue_pairs: u32,
    /// Reads and atomics a queue pair serves at a time.
    pub reads_in_flight: u8,
    /// Reads and atomics a queue pair has on their way at a time; it holds more of them back.
    pub reads_issued: u8,
    /// What its atomics are good for.
    pub atomics: Atomics,
    /// Number of shared receive queues.
    pub shared_receive_queues: u32,
    /// Receives a shared receive queue may hold.
    pub shared_receive_depth: u32,
    /// Segments a receive of a shared receive queue may have.
    pub shared_receive_segments: u32,
    /// Number of memory windows.
    pub memory_windows: u32,
    /// Whether it has memory windows of type 1, open to a protection domain.
    pub windows_of_type_1: bool,
    /// Whether it has memory windows of type 2, open to one queue pair.
    pub windows_of_type_2: bool,
    /// Number of address handles.
    pub address_handles: u32,
    /// What it can do without pinning memory.
    pub on_demand_paging: OnDemandPaging,
    /// Bytes of memory on the device itself that can be allocated.
    pub device_memory_bytes: u64,
    /// The bits that count in a completion's time stamp; 0 when it takes none.
    pub completion_timestamp_mask: u64,
    /// Ticks of its clock in a millisecond, for time stamps.
    pub clock_kilohertz: u64,
    /// Its capabilities as bits of `enum ibv_device_cap_flags` and `IBV_DEVICE_EX_*`.
    pub capability_flags: u64,
    /// What it can do with raw packets, as bits of `enum ibv_raw_packet_caps`.
    pub raw_packet_flags: u32,
}

impl DeviceLimits {
    /// Probes an open context.
    ///
    /// # Safety
    /// The context must be open and of this library.
    pub(super) unsafe fn probe(
        library: &sys::Library,
        context: *mut sys::ibv_context,
        name: &str,
    ) -> Result<(DeviceLimits, sys::ibv_device_attr), VerbsError> {
        let mut attributes = sys::ibv_device_attr_ex::default();
        // SAFETY: the caller vouches for the context.
        let query = unsafe { sys::extended_operation!(context, query_device_ex) };
        let input = sys::ibv_query_device_ex_input::default();
        let code = match query {
            // SAFETY: the context is open, both structures are ours, and as large as we say.
            Some(query) => unsafe {
                query(context, &input, &mut attributes, size_of_val(&attributes))
            },
            None => libc::EOPNOTSUPP,
        };
        match code.saturating_abs() {
            0 => {}
            libc::EOPNOTSUPP | libc::ENOSYS => {
                attributes = sys::ibv_device_attr_ex::default();
                // SAFETY: the context is open and the attributes are ours.
                let code = unsafe { (library.query_device)(context, &mut attributes.orig_attr) };
                if code != 0 {
                    return Err(VerbsError::code("ibv_query_device", name, code));
                }
            }
            _ => return Err(VerbsError::code("ibv_query_device_ex", name, code)),
        }
        Ok((limits(&attributes), attributes.orig_attr))
    }

    /// Refuses more of `what` than the device has.
    pub(super) fn check(
        &self,
        device: &str,
        what: &'static str,
        wanted: u64,
        limit: u64,
    ) -> Result<(), VerbsError> {
        if wanted <= limit {
            return Ok(());
        }
        Err(VerbsError::OverLimit {
            device: device.to_owned(),
            what,
            wanted,
            limit,
        })
    }

    pub(super) fn check_atomics(&self, device: &str) -> Result<(), VerbsError> {
        match self.atomics {
            Atomics::None => Err(VerbsError::Lacking {
                device: device.to_owned(),
                what: "atomic operations",
            }),
            Atomics::WithinDevice | Atomics::WithinSystem => Ok(()),
        }
    }
}

fn limits(attributes: &sys::ibv_device_attr_ex) -> DeviceLimits {
    let classic = &attributes.orig_attr;
    let positive = |value: i32| u32::try_from(value).unwrap_or(0);
    let flags = u64::from(classic.device_cap_flags) | attributes.device_cap_flags_ex;
    let has = |flag: u32| flags & u64::from(flag) != 0;
    let paging = &attributes.odp_caps;
    DeviceLimits {
        ports: classic.phys_port_cnt,
        queue_depth: positive(classic.max_qp_wr),
        segments: positive(classic.max_sge),
        completion_queue_entries: positive(classic.max_cqe),
        region_bytes: classic.max_mr_size,
        regions: positive(classic.max_mr),
        queue_pairs: positive(classic.max_qp),
        reads_in_flight: u8::try_from(classic.max_qp_rd_atom).unwrap_or(u8::MAX),
        reads_issued: u8::try_from(classic.max_qp_init_rd_atom).unwrap_or(u8::MAX),
        atomics: match classic.atomic_cap {
            sys::IBV_ATOMIC_HCA => Atomics::WithinDevice,
            sys::IBV_ATOMIC_GLOB => Atomics::WithinSystem,
            _ => Atomics::None,
        },
        shared_receive_queues: positive(classic.max_srq),
        shared_receive_depth: positive(classic.max_srq_wr),
        shared_receive_segments: positive(classic.max_srq_sge),
        memory_windows: positive(classic.max_mw),
        windows_of_type_1: has(sys::IBV_DEVICE_MEM_WINDOW),
        windows_of_type_2: has(sys::IBV_DEVICE_MEM_WINDOW_TYPE_2A)
            || has(sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B),
        address_handles: positive(classic.max_ah),
        on_demand_paging: OnDemandPaging {
            supported: paging.general_caps & u64::from(sys::IBV_ODP_SUPPORT) != 0,
            implicit: paging.general_caps & u64::from(sys::IBV_ODP_SUPPORT_IMPLICIT) != 0,
            reliable: paged(paging.per_transport_caps.rc_odp_caps),
            datagram: paged(paging.per_transport_caps.ud_odp_caps),
        },
        device_memory_bytes: attributes.max_dm_size,
        completion_timestamp_mask: attributes.completion_timestamp_mask,
        clock_kilohertz: attributes.hca_core_clock,
        capability_flags: flags,
        raw_packet_flags: attributes.raw_packet_caps,
    }
}

fn paged(bits: u32) -> PagedOperations {
    let has = |bit| bits & bit != 0;
    PagedOperations {
        send: has(sys::IBV_ODP_SUPPORT_SEND),
        receive: has(sys::IBV_ODP_SUPPORT_RECV),
        write: has(sys::IBV_ODP_SUPPORT_WRITE),
        read: has(sys::IBV_ODP_SUPPORT_READ),
        atomic: has(sys::IBV_ODP_SUPPORT_ATOMIC),
        shared_receive: has(sys::IBV_ODP_SUPPORT_SRQ_RECV),
    }
}
