//! How the mock provider carries one work request out, and with which status it ends.

use super::fabric::Fabric;
use super::work::{Part, Receive, Send};
use crate::sys;

/// The status of a work request that fails.
type Failed = sys::ibv_wc_status;

/// The other end of a connection, as far as a transfer needs it.
struct Peer {
    number: u32,
    pd: usize,
    access: u32,
    queue: usize,
}

pub(super) fn gather(parts: &[Part]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        // SAFETY: a posted segment lies in memory that its poster keeps valid until it completes.
        bytes.extend_from_slice(unsafe {
            std::slice::from_raw_parts(part.address as *const u8, part.len as usize)
        });
    }
    bytes
}

fn put(address: u64, bytes: &[u8]) {
    // SAFETY: the address lies in a registered region, as checked by the caller, and the poster (or the
    // window's owner) keeps everyone else off these bytes.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}

fn take(address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: as for `put`.
    unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), len) };
    bytes
}

/// Spreads what arrived over the segments it was asked into.
pub(super) fn scatter(parts: &[Part], bytes: &[u8]) {
    let mut rest = bytes;
    for part in parts {
        let (now, later) = rest.split_at(rest.len().min(part.len as usize));
        put(part.address, now);
        rest = later;
    }
}

pub(super) fn room(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.len as usize).sum()
}

impl Fabric {
    pub(super) fn carry_out(&mut self, qp_number: u32, send: &Send) -> sys::ibv_wc_status {
        match self.try_carry_out(qp_number, send) {
            Ok(()) => sys::IBV_WC_SUCCESS,
            Err(status) => status,
        }
    }

    fn try_carry_out(&mut self, qp_number: u32, send: &Send) -> Result<(), Failed> {
        let own = self
            .queue_pairs
            .get(&qp_number)
            .ok_or(sys::IBV_WC_FATAL_ERR)?;
        if own.kind == sys::IBV_QPT_UD {
            return self.send_datagram(qp_number, send);
        }
        if matches!(send.opcode, sys::IBV_WR_BIND_MW | sys::IBV_WR_LOCAL_INV) {
            return self.change_window(qp_number, send);
        }
        let (pd, peer) = (own.pd, own.peer);
        let remote = self
            .queue_pairs
            .get(&peer)
            .filter(|remote| matches!(remote.state, sys::IBV_QPS_RTR | sys::IBV_QPS_RTS))
            .ok_or(sys::IBV_WC_RETRY_EXC_ERR)?;
        let peer = Peer {
            number: peer,
            pd: remote.pd,
            access: remote.access,
            queue: remote.receive_queue,
        };
        match send.opcode {
            sys::IBV_WR_SEND | sys::IBV_WR_SEND_WITH_IMM => {
                let bytes = self.outgoing(send, pd)?;
                self.deliver(&peer, send, &bytes)
            }
            sys::IBV_WR_RDMA_WRITE | sys::IBV_WR_RDMA_WRITE_WITH_IMM => {
                let bytes = self.outgoing(send, pd)?;
                self.reach(&peer, send, bytes.len(), sys::IBV_ACCESS_REMOTE_WRITE)?;
                if send.opcode == sys::IBV_WR_RDMA_WRITE_WITH_IMM {
                    self.deliver(&peer, send, &bytes)?;
                }
                put(send.remote.0, &bytes);
                Ok(())
            }
            sys::IBV_WR_RDMA_READ => {
                let len = room(&send.parts);
                self.reach(&peer, send, len, sys::IBV_ACCESS_REMOTE_READ)?;
                self.bring(send, pd, &take(send.remote.0, len))
            }
            sys::IBV_WR_ATOMIC_FETCH_AND_ADD | sys::IBV_WR_ATOMIC_CMP_AND_SWP => {
                if !send.remote.0.is_multiple_of(8) || room(&send.parts) != 8 {
                    self.fail(peer.number);
                    return Err(sys::IBV_WC_REM_INV_REQ_ERR);
                }
                self.reach(&peer, send, 8, sys::IBV_ACCESS_REMOTE_ATOMIC)?;
                let before = take(send.remote.0, 8);
                let word = u64::from_ne_bytes(before.as_slice().try_into().expect("eight bytes"));
                let after = match send.opcode {
                    sys::IBV_WR_ATOMIC_FETCH_AND_ADD => word.wrapping_add(send.operands.0),
                    _ if word == send.operands.0 => send.operands.1,
                    _ => word,
                };
                put(send.remote.0, &after.to_ne_bytes());
                self.bring(send, pd, &before)
            }
            _ => {
                self.fail(peer.number);
                Err(sys::IBV_WC_REM_INV_REQ_ERR)
            }
        }
    }

    /// The bytes of a send or write.
    pub(super) fn outgoing(&self, send: &Send, pd: usize) -> Result<Vec<u8>, Failed> {
        match &send.inline {
            Some(bytes) => Ok(bytes.clone()),
            None if self.covers(&send.parts, pd, 0) => Ok(gather(&send.parts)),
            None => Err(sys::IBV_WC_LOC_PROT_ERR),
        }
    }

    /// Checks that the peer lets us do this to so many of its bytes.
    fn reach(&mut self, peer: &Peer, send: &Send, len: usize, right: u32) -> Result<(), Failed> {
        let (address, rkey) = send.remote;
        let allowed = len == 0
            || peer.access & right != 0
                && self.allows(
                    rkey,
                    address,
                    len as u64,
                    (peer.pd, Some(peer.number)),
                    right,
                );
        if allowed {
            return Ok(());
        }
        self.fail(peer.number);
        Err(sys::IBV_WC_REM_ACCESS_ERR)
    }

    /// Puts what a read or an atomic brings where it was asked to.
    fn bring(&self, send: &Send, pd: usize, bytes: &[u8]) -> Result<(), Failed> {
        if !self.covers(&send.parts, pd, sys::IBV_ACCESS_LOCAL_WRITE) {
            return Err(sys::IBV_WC_LOC_PROT_ERR);
        }
        scatter(&send.parts, bytes);
        Ok(())
    }

    /// Completes a receive of the peer: with the message, or with a write's immediate.
    fn deliver(&mut self, peer: &Peer, send: &Send, bytes: &[u8]) -> Result<(), Failed> {
        let receive: Receive = self
            .next_receive(peer.number)
            .ok_or(sys::IBV_WC_RNR_RETRY_EXC_ERR)?;
        let mut done = sys::ibv_wc {
            wr_id: receive.id,
            byte_len: bytes.len() as u32,
            opcode: sys::IBV_WC_RECV,
            ..Default::default()
        };
        if matches!(
            send.opcode,
            sys::IBV_WR_SEND_WITH_IMM | sys::IBV_WR_RDMA_WRITE_WITH_IMM
        ) {
            done.wc_flags = sys::IBV_WC_WITH_IMM;
            done.__bindgen_anon_1.imm_data = send.immediate;
        }
        if send.opcode == sys::IBV_WR_RDMA_WRITE_WITH_IMM {
            done.opcode = sys::IBV_WC_RECV_RDMA_WITH_IMM;
        } else {
            let failure = if room(&receive.parts) < bytes.len() {
                Some((sys::IBV_WC_LOC_LEN_ERR, sys::IBV_WC_REM_INV_REQ_ERR))
            } else if !self.covers(&receive.parts, peer.pd, sys::IBV_ACCESS_LOCAL_WRITE) {
                Some((sys::IBV_WC_LOC_PROT_ERR, sys::IBV_WC_REM_OP_ERR))
            } else {
                None
            };
            if let Some((theirs, ours)) = failure {
                self.complete(peer.queue, peer.number, theirs, done);
                self.fail(peer.number);
                return Err(ours);
            }
            scatter(&receive.parts, bytes);
        }
        self.complete(peer.queue, peer.number, sys::IBV_WC_SUCCESS, done);
        Ok(())
    }
}
