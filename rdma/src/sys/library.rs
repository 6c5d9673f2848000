//! Opens `libibverbs.so.1` and resolves the functions we call in it, once per process.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use thiserror::Error;

use super::bindings;
use super::bindings::{
    ibv_async_event, ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_device_attr, ibv_gid,
    ibv_gid_entry, ibv_mr, ibv_pd, ibv_qp, ibv_qp_attr, ibv_qp_init_attr,
};

/// Its ABI has been stable since 2005; providers are plugins that it loads itself.
const SONAME: &str = "libibverbs.so.1";

/// Why verbs can't be used in this process.
#[derive(Debug, Clone, Error)]
pub enum LoadError {
    /// The library isn't installed, or can't be loaded.
    #[error(
        "cannot open {SONAME}: {reason}; to use RDMA install libibverbs1 and ibverbs-providers \
         (Debian, Ubuntu) or libibverbs (Fedora, RHEL); everything else works without, over TCP"
    )]
    Missing {
        /// What the dynamic loader said.
        reason: String,
    },
    /// The library lacks a function that every release since 2010 has.
    #[error(
        "{SONAME} has no {symbol}: {reason}; it is too old or not rdma-core's: update libibverbs1"
    )]
    Symbol {
        /// The function looked for.
        symbol: &'static str,
        /// What the dynamic loader said.
        reason: String,
    },
}

macro_rules! library {
    (
        required { $( $field:ident = $symbol:ident ( $( $argument:ty ),* ) $( -> $result:ty )?; )* }
        optional { $( $late:ident = $late_symbol:ident ( $( $late_argument:ty ),* ) $( -> $late_result:ty )?; )* }
    ) => {
        /// The functions of libibverbs that we call: the system's, or those of [`crate::mock`].
        #[allow(missing_docs)]
        #[derive(Debug, Clone, Copy)]
        pub struct Library {
            $( pub $field: unsafe extern "C" fn( $( $argument ),* ) $( -> $result )?, )*
            $( pub $late: Option<unsafe extern "C" fn( $( $late_argument ),* ) $( -> $late_result )?>, )*
        }

        // The signatures above are those of the headers: checked by the compiler, never linked.
        const _: () = {
            $( let _: unsafe extern "C" fn( $( $argument ),* ) $( -> $result )? = bindings::$symbol; )*
            $( let _: unsafe extern "C" fn( $( $late_argument ),* ) $( -> $late_result )? = bindings::$late_symbol; )*
        };

        impl Library {
            fn resolve(library: &libloading::Library) -> Result<Library, LoadError> {
                Ok(Library {
                    // SAFETY: the symbol's type is the one its header declares (checked above).
                    $( $field: unsafe { symbol(library, stringify!($symbol)) }?, )*
                    // SAFETY: as above.
                    $( $late: unsafe { symbol(library, stringify!($late_symbol)) }.ok(), )*
                })
            }
        }
    };
}

library! {
    required {
        get_device_list = ibv_get_device_list(*mut c_int) -> *mut *mut ibv_device;
        free_device_list = ibv_free_device_list(*mut *mut ibv_device);
        get_device_name = ibv_get_device_name(*mut ibv_device) -> *const c_char;
        get_device_guid = ibv_get_device_guid(*mut ibv_device) -> u64;
        open_device = ibv_open_device(*mut ibv_device) -> *mut ibv_context;
        close_device = ibv_close_device(*mut ibv_context) -> c_int;
        query_device = ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        query_port = ibv_query_port(*mut ibv_context, u8, *mut bindings::_compat_ibv_port_attr) -> c_int;
        query_gid = ibv_query_gid(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
        alloc_pd = ibv_alloc_pd(*mut ibv_context) -> *mut ibv_pd;
        dealloc_pd = ibv_dealloc_pd(*mut ibv_pd) -> c_int;
        reg_mr = ibv_reg_mr(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
        dereg_mr = ibv_dereg_mr(*mut ibv_mr) -> c_int;
        create_comp_channel = ibv_create_comp_channel(*mut ibv_context) -> *mut ibv_comp_channel;
        destroy_comp_channel = ibv_destroy_comp_channel(*mut ibv_comp_channel) -> c_int;
        create_cq = ibv_create_cq(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
        destroy_cq = ibv_destroy_cq(*mut ibv_cq) -> c_int;
        get_cq_event = ibv_get_cq_event(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
        ack_cq_events = ibv_ack_cq_events(*mut ibv_cq, c_uint);
        create_qp = ibv_create_qp(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
        modify_qp = ibv_modify_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
        query_qp = ibv_query_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int;
        destroy_qp = ibv_destroy_qp(*mut ibv_qp) -> c_int;
        get_async_event = ibv_get_async_event(*mut ibv_context, *mut ibv_async_event) -> c_int;
        ack_async_event = ibv_ack_async_event(*mut ibv_async_event);
    }
    optional {
        // Since rdma-core 31; without it GID types come from sysfs.
        query_gid_ex = _ibv_query_gid_ex(*mut ibv_context, u32, u32, *mut ibv_gid_entry, u32, usize) -> c_int;
    }
}

/// Resolves one function.
///
/// # Safety
/// `F` must be the function pointer type of the symbol.
unsafe fn symbol<F: Copy>(
    library: &libloading::Library,
    symbol: &'static str,
) -> Result<F, LoadError> {
    // SAFETY: the caller gives the symbol's type.
    unsafe { library.get::<F>(symbol) }
        .map(|found| *found)
        .map_err(|error| LoadError::Symbol {
            symbol,
            reason: error.to_string(),
        })
}

impl Library {
    /// The system's libibverbs, opened on first use and kept for the life of the process.
    pub fn system() -> Result<&'static Library, LoadError> {
        static SYSTEM: OnceLock<Result<Library, LoadError>> = OnceLock::new();
        SYSTEM
            .get_or_init(|| Library::open(SONAME))
            .as_ref()
            .map_err(LoadError::clone)
    }

    fn open(name: &str) -> Result<Library, LoadError> {
        // SAFETY: libibverbs has no load-time side effects beyond reading its configuration.
        let library =
            unsafe { libloading::Library::new(name) }.map_err(|error| LoadError::Missing {
                reason: error.to_string(),
            })?;
        let functions = Library::resolve(&library)?;
        // Providers start threads and register destructors: it is never unloaded.
        std::mem::forget(library);
        Ok(functions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_says_what_to_install() {
        let error =
            Library::open("libibverbs-that-is-not-there.so.1").expect_err("no such library");
        let text = error.to_string();
        assert!(
            text.contains("libibverbs1") && text.contains("TCP"),
            "{text}"
        );
    }

    #[test]
    fn a_library_without_verbs_is_named_as_such() {
        let error = Library::open("libc.so.6").expect_err("libc has no verbs");
        assert!(
            matches!(
                error,
                LoadError::Symbol {
                    symbol: "ibv_get_device_list",
                    ..
                }
            ),
            "{error}"
        );
    }
}
