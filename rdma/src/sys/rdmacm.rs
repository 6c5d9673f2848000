//! The functions of librdmacm, the connection manager.

use std::ffi::{c_char, c_int, c_void};

use libc::sockaddr;

use super::bindings::*;
use super::library::{Source, library};

library! {
    /// The functions of librdmacm that we call.
    ConnectionManager from Source {
        library: "librdmacm.so.1",
        packages: "librdmacm1 (Debian, Ubuntu) or librdmacm (Fedora, RHEL)",
    };
    required {
        create_event_channel = rdma_create_event_channel() -> *mut rdma_event_channel;
        destroy_event_channel = rdma_destroy_event_channel(*mut rdma_event_channel);
        get_cm_event = rdma_get_cm_event(*mut rdma_event_channel, *mut *mut rdma_cm_event) -> c_int;
        ack_cm_event = rdma_ack_cm_event(*mut rdma_cm_event) -> c_int;
        event_str = rdma_event_str(rdma_cm_event_type) -> *const c_char;
        create_id = rdma_create_id(*mut rdma_event_channel, *mut *mut rdma_cm_id, *mut c_void, rdma_port_space) -> c_int;
        destroy_id = rdma_destroy_id(*mut rdma_cm_id) -> c_int;
        destroy_ep = rdma_destroy_ep(*mut rdma_cm_id);
        migrate_id = rdma_migrate_id(*mut rdma_cm_id, *mut rdma_event_channel) -> c_int;
        set_option = rdma_set_option(*mut rdma_cm_id, c_int, c_int, *mut c_void, usize) -> c_int;
        bind_addr = rdma_bind_addr(*mut rdma_cm_id, *mut sockaddr) -> c_int;
        resolve_addr = rdma_resolve_addr(*mut rdma_cm_id, *mut sockaddr, *mut sockaddr, c_int) -> c_int;
        resolve_route = rdma_resolve_route(*mut rdma_cm_id, c_int) -> c_int;
        listen = rdma_listen(*mut rdma_cm_id, c_int) -> c_int;
        connect = rdma_connect(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        accept = rdma_accept(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        reject = rdma_reject(*mut rdma_cm_id, *const c_void, u8) -> c_int;
        disconnect = rdma_disconnect(*mut rdma_cm_id) -> c_int;
        notify = rdma_notify(*mut rdma_cm_id, ibv_event_type) -> c_int;
        get_src_port = rdma_get_src_port(*mut rdma_cm_id) -> u16;
        get_dst_port = rdma_get_dst_port(*mut rdma_cm_id) -> u16;
    }
    optional {
        /// Since rdma-core 19: completes a connection whose queue pair its user brought up.
        establish = rdma_establish(*mut rdma_cm_id) -> c_int;
        /// Since rdma-core 19: the attributes to bring a queue pair up with.
        init_qp_attr = rdma_init_qp_attr(*mut rdma_cm_id, *mut ibv_qp_attr, *mut c_int) -> c_int;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::LoadError;

    #[test]
    fn every_function_is_found_where_the_library_is_installed() {
        match ConnectionManager::system() {
            Ok(_) | Err(LoadError::Missing { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_missing_connection_manager_says_what_to_install() {
        let missing = Source {
            library: "librdmacm-that-is-not-there.so.1",
            packages: "librdmacm1",
        };
        let error = ConnectionManager::open(&missing).expect_err("no such library");
        assert!(matches!(error, LoadError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("librdmacm1"), "{error}");
    }
}
