//! Asks the provider for a queue pair: with the extended work-request operations, or without.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::sys;
use crate::verbs::completion::SharedQueue;
use crate::verbs::error::VerbsError;
use crate::verbs::limits::Atomics;
use crate::verbs::memory::ProtectionDomain;
use crate::verbs::post::{Kind, PostingInterface, WorkRequests};

/// A new queue pair of the adapter, not yet owned by anything.
pub(in crate::verbs) struct Made {
    pub(in crate::verbs) raw: NonNull<sys::ibv_qp>,
    pub(in crate::verbs) work: WorkRequests,
    /// Bytes it takes inline at most.
    pub(in crate::verbs) inline_bytes: u32,
}

/// What is asked for.
pub(in crate::verbs) struct Wanted {
    /// Atomics only count where the device has some.
    pub(in crate::verbs) kind: Kind,
    pub(in crate::verbs) capacities: sys::ibv_qp_cap,
    pub(in crate::verbs) interface: Option<PostingInterface>,
    /// Null when it has receives of its own.
    pub(in crate::verbs) shared_receives: *mut sys::ibv_srq,
    /// What events name it by: null, or a pointer that stays good until it is destroyed.
    pub(in crate::verbs) tag: *mut c_void,
}

/// Makes a queue pair with all its completions on one queue.
pub(in crate::verbs) fn create(
    pd: &Arc<ProtectionDomain>,
    queue: &SharedQueue,
    wanted: &Wanted,
) -> Result<Made, VerbsError> {
    let interface = wanted.interface;
    let with_atomics = Kind::Connected { atomics: true };
    let without = Kind::Connected { atomics: false };
    let has_atomics = pd.context().limits().atomics != Atomics::None;
    // What can be had, best first: a provider without atomics refuses them at the extended call.
    let kinds: &[Kind] = match wanted.kind {
        Kind::Connected { atomics: true } if has_atomics => &[with_atomics, without],
        Kind::Connected { .. } => &[without],
        Kind::Datagrams => &[Kind::Datagrams],
    };
    if interface != Some(PostingInterface::Classic) {
        let made = kinds
            .iter()
            .find_map(|kind| extended(pd, queue, wanted, *kind));
        if let Some(made) = made {
            return Ok(made);
        }
        if interface.is_some() {
            return Err(VerbsError::NoOperation {
                device: pd.context().name().to_owned(),
                operation: "create_qp_ex with ibv_wr_* operations",
            });
        }
    }
    classic(pd, queue, wanted, kinds[0])
}

/// `None` when library or provider doesn't have all that is asked for, or refuses the queue pair: the
/// classic call then says why.
fn extended(
    pd: &Arc<ProtectionDomain>,
    queue: &SharedQueue,
    wanted: &Wanted,
    kind: Kind,
) -> Option<Made> {
    let context = pd.context();
    let library = context.library();
    let to_extended = library.qp_to_qp_ex?;
    // SAFETY: the context is open.
    let create = unsafe { sys::extended_operation!(context.as_ptr(), create_qp_ex) }?;
    let mut attributes = sys::ibv_qp_init_attr_ex {
        qp_context: wanted.tag,
        send_cq: queue.as_ptr(),
        recv_cq: queue.as_ptr(),
        srq: wanted.shared_receives,
        cap: wanted.capacities,
        qp_type: kind.queue_pair_type(),
        comp_mask: sys::IBV_QP_INIT_ATTR_PD | sys::IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
        pd: pd.as_ptr(),
        send_ops_flags: u64::from(kind.operations()),
        ..Default::default()
    };
    // SAFETY: protection domain and queue are alive and of this context; the attributes are ours.
    let raw = NonNull::new(unsafe { create(context.as_ptr(), &mut attributes) })?;
    // SAFETY: the queue pair was just made.
    let found = NonNull::new(unsafe { to_extended(raw.as_ptr()) })
        // SAFETY: it is the same queue pair, whose owner keeps it as long as the operations.
        .and_then(|found| unsafe { WorkRequests::extended(found, kind) });
    let Some(work) = found else {
        // SAFETY: the queue pair was just made and is not used.
        unsafe { (library.destroy_qp)(raw.as_ptr()) };
        return None;
    };
    Some(Made {
        raw,
        work,
        inline_bytes: attributes.cap.max_inline_data,
    })
}

fn classic(
    pd: &Arc<ProtectionDomain>,
    queue: &SharedQueue,
    wanted: &Wanted,
    kind: Kind,
) -> Result<Made, VerbsError> {
    let context = pd.context();
    let mut attributes = sys::ibv_qp_init_attr {
        qp_context: wanted.tag,
        send_cq: queue.as_ptr(),
        recv_cq: queue.as_ptr(),
        srq: wanted.shared_receives,
        cap: wanted.capacities,
        qp_type: kind.queue_pair_type(),
        sq_sig_all: 0,
    };
    // SAFETY: protection domain and queue are alive and of one context.
    let raw = unsafe { (context.library().create_qp)(pd.as_ptr(), &mut attributes) };
    let capacities = wanted.capacities;
    let raw = NonNull::new(raw).ok_or_else(|| {
        VerbsError::last(
            "ibv_create_qp",
            format!(
                "{} ({}, depth {} and {}, {} segments, {} bytes inline)",
                context.name(),
                match kind {
                    Kind::Connected { .. } => "connected",
                    Kind::Datagrams => "datagrams",
                },
                capacities.max_send_wr,
                capacities.max_recv_wr,
                capacities.max_send_sge,
                capacities.max_inline_data
            ),
        )
    })?;
    let (depth, segments) = (capacities.max_send_wr, capacities.max_send_sge);
    let post_send = context.operations().post_send;
    // SAFETY: the queue pair was just made, and its owner keeps it as long as the operations.
    let work = unsafe { WorkRequests::classic(raw, post_send, depth, segments, kind) };
    Ok(Made {
        raw,
        work,
        inline_bytes: attributes.cap.max_inline_data,
    })
}
