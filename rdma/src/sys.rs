//! The C interface of libibverbs: types and constants generated from rdma-core's headers, and the
//! library itself, opened at run time.
//!
//! Nothing links against libibverbs, so one binary builds without system packages and starts on nodes
//! without RDMA; [`Library::system`] says what to install where it is missing. What a data path calls
//! (post, poll, request notification) never goes through the library but through the operation table
//! in each context, exactly as the headers' inline functions do, so opening it late costs nothing.
//!
//! Everything here is as unsafe as C: [`crate::verbs`] is the layer to use.

#[allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    dead_code,
    unused_imports,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
mod bindings;
mod library;

pub use bindings::*;
pub use library::{Library, LoadError};

use std::ffi::c_void;
use std::mem::offset_of;

/// What `ibv_context::abi_compat` holds when the context is the tail of a [`verbs_context`].
pub const VERBS_ABI_IS_EXTENDED: *mut c_void = usize::MAX as *mut c_void;

/// The signature of `verbs_context::query_port`.
pub type QueryPort = unsafe extern "C" fn(*mut ibv_context, u8, *mut ibv_port_attr, usize) -> i32;

/// The extended `query_port` operation of a context, when its provider has one.
///
/// A [`verbs_context`] grows at its front, so an older library's is shorter than ours: its `sz`, which
/// stands right before the embedded context, says whether the field is there at all.
///
/// # Safety
/// `context` must be an open context of libibverbs, or a table shaped like one.
pub unsafe fn extended_query_port(context: *mut ibv_context) -> Option<QueryPort> {
    // SAFETY: the caller vouches for the context.
    if unsafe { (*context).abi_compat } != VERBS_ABI_IS_EXTENDED {
        return None;
    }
    let head = offset_of!(verbs_context, context);
    let size_at = head - offset_of!(verbs_context, sz);
    let field_at = head - offset_of!(verbs_context, query_port);
    // SAFETY: an extended context is embedded in a verbs_context whose last field before it is `sz`.
    let size = unsafe { context.byte_sub(size_at).cast::<usize>().read() };
    if size < size_of::<verbs_context>() - offset_of!(verbs_context, query_port) {
        return None;
    }
    // SAFETY: `sz` covers the field, so it lies inside the provider's allocation.
    unsafe {
        context
            .byte_sub(field_at)
            .cast::<Option<QueryPort>>()
            .read()
    }
}
