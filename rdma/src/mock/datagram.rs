//! Datagrams of the mock provider: delivered when there is a queue pair of the number and key with a
//! receive posted, else lost without a word.

use std::ffi::c_int;
use std::ptr::null_mut;

use super::calls::fail;
use super::devices::gid;
use super::fabric::Fabric;
use super::transfer::{room, scatter};
use super::work::Send;
use crate::sys;

/// As [`super::calls`] reports the port's.
const MTU: usize = 1024;
const HEADER_BYTES: usize = 40;

impl Fabric {
    pub(super) fn send_datagram(
        &mut self,
        qp_number: u32,
        send: &Send,
    ) -> Result<(), sys::ibv_wc_status> {
        let own = self
            .queue_pairs
            .get(&qp_number)
            .ok_or(sys::IBV_WC_FATAL_ERR)?;
        let bytes = self.outgoing(send, own.pd)?;
        if bytes.len() > MTU {
            return Err(sys::IBV_WC_LOC_LEN_ERR);
        }
        let (to, key) = send.datagram;
        let there = self.queue_pairs.get(&to).filter(|there| {
            there.kind == sys::IBV_QPT_UD
                && there.queue_key == key
                && matches!(there.state, sys::IBV_QPS_RTR | sys::IBV_QPS_RTS)
        });
        let Some((queue, pd)) = there.map(|there| (there.receive_queue, there.pd)) else {
            return Ok(());
        };
        let Some(receive) = self.next_receive(to) else {
            return Ok(());
        };
        let mut done = sys::ibv_wc {
            wr_id: receive.id,
            byte_len: (HEADER_BYTES + bytes.len()) as u32,
            opcode: sys::IBV_WC_RECV,
            src_qp: qp_number,
            wc_flags: sys::IBV_WC_GRH,
            ..Default::default()
        };
        if send.opcode == sys::IBV_WR_SEND_WITH_IMM {
            done.wc_flags |= sys::IBV_WC_WITH_IMM;
            done.__bindgen_anon_1.imm_data = send.immediate;
        }
        let status = if room(&receive.parts) < HEADER_BYTES + bytes.len() {
            sys::IBV_WC_LOC_LEN_ERR
        } else if !self.covers(&receive.parts, pd, sys::IBV_ACCESS_LOCAL_WRITE) {
            sys::IBV_WC_LOC_PROT_ERR
        } else {
            let mut all = header();
            all.extend_from_slice(&bytes);
            scatter(&receive.parts, &all);
            sys::IBV_WC_SUCCESS
        };
        self.complete(queue, to, status, done);
        if status != sys::IBV_WC_SUCCESS {
            self.fail(to);
        }
        Ok(())
    }
}

/// What stands before a datagram: an IPv4 header in its last 20 bytes, from and to the one address that
/// mock ports have.
fn header() -> Vec<u8> {
    let mut header = vec![0; HEADER_BYTES];
    let address = gid(3).map_or([0; 16], |(_, raw)| raw);
    header[20] = 0x45;
    header[32..36].copy_from_slice(&address[12..]);
    header[36..40].copy_from_slice(&address[12..]);
    header
}

pub(super) unsafe extern "C" fn create_ah(
    pd: *mut sys::ibv_pd,
    attributes: *mut sys::ibv_ah_attr,
) -> *mut sys::ibv_ah {
    // SAFETY: both are the caller's.
    let (context, attributes) = unsafe { ((*pd).context, &*attributes) };
    // SAFETY: a GID is 16 plain bytes.
    let nowhere = unsafe { attributes.grh.dgid.raw } == [0; 16];
    if attributes.is_global == 0 || nowhere {
        fail(libc::EINVAL);
        return null_mut();
    }
    Box::into_raw(Box::new(sys::ibv_ah {
        context,
        pd,
        handle: 0,
    }))
}

pub(super) unsafe extern "C" fn destroy_ah(handle: *mut sys::ibv_ah) -> c_int {
    // SAFETY: a box of create_ah's.
    drop(unsafe { Box::from_raw(handle) });
    0
}
