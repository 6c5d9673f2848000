//! The C interface of libibverbs and librdmacm: types and constants generated from rdma-core's headers,
//! and the libraries themselves, opened at run time.
//!
//! Nothing links against them, so one binary builds without system packages and starts on nodes
//! without RDMA; [`Library::system`] and [`ConnectionManager::system`] say what to install
//! where one is missing. What a data path calls (post, poll, request notification) never goes through a
//! library but through the operation tables in each context and queue pair, exactly as the headers'
//! inline functions do, so opening it late costs nothing.
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
mod ibverbs;
#[cfg(test)]
mod layout;
mod library;
mod rdmacm;

pub use bindings::*;
pub use ibverbs::Library;
pub use library::LoadError;
pub use rdmacm::ConnectionManager;

use std::ffi::c_void;
use std::mem::offset_of;

/// What `ibv_context::abi_compat` holds when the context is the tail of a [`verbs_context`].
pub const VERBS_ABI_IS_EXTENDED: *mut c_void = usize::MAX as *mut c_void;

/// The extended operation of a context that stands in this field of [`verbs_context`], when its provider
/// has one: `extended_operation!(context, create_qp_ex)` is an `Option` of the field's function.
///
/// The table grows at its front, so an older library's is shorter than ours: its `sz`, which stands
/// right before the embedded context, says whether the field is there at all. The context must be an
/// open one of libibverbs, or a table shaped like one.
macro_rules! extended_operation {
    ($context:expr, $operation:ident) => {
        $crate::sys::extended_field(
            $context,
            std::mem::offset_of!($crate::sys::verbs_context, $operation),
            |table: &$crate::sys::verbs_context| table.$operation,
        )
    };
}
pub(crate) use extended_operation;

/// What [`extended_operation`] does; `offset` is the field's, and `type_of` only gives its type.
///
/// # Safety
/// `context` must be an open context of libibverbs, or a table shaped like one; `type_of` must name the
/// field at `offset`.
pub(crate) unsafe fn extended_field<F: Copy>(
    context: *mut ibv_context,
    offset: usize,
    _type_of: fn(&verbs_context) -> Option<F>,
) -> Option<F> {
    // SAFETY: the caller vouches for the context.
    if unsafe { (*context).abi_compat } != VERBS_ABI_IS_EXTENDED {
        return None;
    }
    let head = offset_of!(verbs_context, context);
    let size_at = head - offset_of!(verbs_context, sz);
    // SAFETY: an extended context is embedded in a verbs_context whose last field before it is `sz`.
    let size = unsafe { context.byte_sub(size_at).cast::<usize>().read() };
    if size < size_of::<verbs_context>() - offset {
        return None;
    }
    // SAFETY: `sz` covers the field, so it lies inside the provider's allocation; it has this type.
    unsafe { context.byte_sub(head - offset).cast::<Option<F>>().read() }
}
