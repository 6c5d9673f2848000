//! The functions of libibverbs.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::bindings::*;
use super::library::{Source, library};

library! {
    /// The functions of libibverbs that we call: the system's, or those of [`crate::mock`].
    Library from Source {
        library: "libibverbs.so.1",
        packages: "libibverbs1 and ibverbs-providers (Debian, Ubuntu) or libibverbs (Fedora, RHEL)",
    };
    required {
        get_device_list = ibv_get_device_list(*mut c_int) -> *mut *mut ibv_device;
        free_device_list = ibv_free_device_list(*mut *mut ibv_device);
        get_device_name = ibv_get_device_name(*mut ibv_device) -> *const c_char;
        get_device_guid = ibv_get_device_guid(*mut ibv_device) -> u64;
        open_device = ibv_open_device(*mut ibv_device) -> *mut ibv_context;
        close_device = ibv_close_device(*mut ibv_context) -> c_int;
        query_device = ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        query_port = ibv_query_port(*mut ibv_context, u8, *mut _compat_ibv_port_attr) -> c_int;
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
        create_srq = ibv_create_srq(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
        modify_srq = ibv_modify_srq(*mut ibv_srq, *mut ibv_srq_attr, c_int) -> c_int;
        query_srq = ibv_query_srq(*mut ibv_srq, *mut ibv_srq_attr) -> c_int;
        destroy_srq = ibv_destroy_srq(*mut ibv_srq) -> c_int;
        create_ah = ibv_create_ah(*mut ibv_pd, *mut ibv_ah_attr) -> *mut ibv_ah;
        destroy_ah = ibv_destroy_ah(*mut ibv_ah) -> c_int;
        fork_init = ibv_fork_init() -> c_int;
        event_type_str = ibv_event_type_str(ibv_event_type) -> *const c_char;
        wc_status_str = ibv_wc_status_str(ibv_wc_status) -> *const c_char;
        get_async_event = ibv_get_async_event(*mut ibv_context, *mut ibv_async_event) -> c_int;
        ack_async_event = ibv_ack_async_event(*mut ibv_async_event);
    }
    optional {
        /// Since rdma-core 31; without it GID types come from sysfs.
        query_gid_ex = _ibv_query_gid_ex(*mut ibv_context, u32, u32, *mut ibv_gid_entry, u32, usize) -> c_int;
        /// As the one before it, for all entries of all ports in one system call.
        query_gid_table = _ibv_query_gid_table(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize;
        /// Since rdma-core 24; without it there is no extended work-request interface.
        qp_to_qp_ex = ibv_qp_to_qp_ex(*mut ibv_qp) -> *mut ibv_qp_ex;
        /// Since rdma-core 24; needed for access flags that a provider may ignore.
        reg_mr_iova2 = ibv_reg_mr_iova2(*mut ibv_pd, *mut c_void, usize, u64, c_uint) -> *mut ibv_mr;
        /// Since rdma-core 13.
        rereg_mr = ibv_rereg_mr(*mut ibv_mr, c_int, *mut ibv_pd, *mut c_void, usize, c_int) -> c_int;
        /// Since rdma-core 36.
        is_fork_initialized = ibv_is_fork_initialized() -> ibv_fork_status;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::LoadError;

    #[test]
    fn a_missing_library_says_what_to_install() {
        let missing = Source {
            library: "libibverbs-that-is-not-there.so.1",
            packages: "libibverbs1",
        };
        let text = Library::open(&missing)
            .expect_err("no such library")
            .to_string();
        assert!(
            text.contains("libibverbs1") && text.contains("TCP"),
            "{text}"
        );
    }

    #[test]
    fn a_library_without_verbs_is_named_as_such() {
        let libc = Source {
            library: "libc.so.6",
            packages: "libibverbs1",
        };
        let error = Library::open(&libc).expect_err("libc has no verbs");
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
