//! What the mock provider keeps, and how it carries work requests out.

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::events::Event;
use super::shared_receive::SharedReceives;
use crate::sys;

/// All mock objects of the process, by the numbers that the C structures carry.
#[derive(Default)]
pub(super) struct Fabric {
    pub(super) queue_pairs: HashMap<u32, QueuePair>,
    pub(super) queues: HashMap<usize, Queue>,
    pub(super) regions: HashMap<u32, Region>,
    /// By the address of the queue's structure.
    pub(super) shared_receives: HashMap<usize, SharedReceives>,
    pub(super) due: HashMap<RawFd, VecDeque<usize>>,
    /// What waits to be taken, by the descriptor of the context that reports it.
    pub(super) events: HashMap<RawFd, VecDeque<Event>>,
    /// The descriptor that events of an object are reported on, by the address of its structure.
    pub(super) reporters: HashMap<usize, RawFd>,
    /// Events and notifications of an object that were taken and not acknowledged.
    pub(super) taken: HashMap<usize, u32>,
    /// The structures of queue pairs, by their numbers.
    pub(super) structures: HashMap<u32, usize>,
    numbers: u32,
}

pub(super) struct QueuePair {
    pub(super) state: sys::ibv_qp_state,
    pub(super) peer: u32,
    pub(super) pd: usize,
    pub(super) access: u32,
    pub(super) send_queue: usize,
    pub(super) receive_queue: usize,
    pub(super) depths: (usize, usize),
    pub(super) refuse_destruction: Option<i32>,
    sends: VecDeque<Send>,
    pub(super) receives: VecDeque<Receive>,
    /// The address of its shared receive queue's structure.
    pub(super) shared_receives: Option<usize>,
    held: bool,
    refuse_sends: Option<(u32, i32)>,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) entries: VecDeque<sys::ibv_wc>,
    pub(super) capacity: usize,
    pub(super) channel: Option<RawFd>,
    pub(super) armed: bool,
    pub(super) overrun: bool,
    /// What the queue's owner calls it.
    pub(super) tag: u64,
}

pub(super) struct Region {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) access: u32,
    pub(super) pd: usize,
}

#[derive(Clone)]
pub(super) struct Part {
    address: u64,
    len: u32,
    lkey: u32,
}

struct Send {
    id: u64,
    opcode: sys::ibv_wr_opcode,
    signaled: bool,
    immediate: u32,
    remote: (u64, u32),
    inline: Option<Vec<u8>>,
    parts: Vec<Part>,
}

pub(super) struct Receive {
    pub(super) id: u64,
    pub(super) parts: Vec<Part>,
}

static FABRIC: LazyLock<Mutex<Fabric>> = LazyLock::new(Mutex::default);

pub(super) fn lock() -> MutexGuard<'static, Fabric> {
    // A test that failed while it held the lock says nothing about the others.
    FABRIC.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
/// The list must be a valid one of `count` segments.
pub(super) unsafe fn parts(list: *const sys::ibv_sge, count: i32) -> Vec<Part> {
    (0..usize::try_from(count).unwrap_or(0))
        .map(|index| {
            // SAFETY: the caller vouches for the list.
            let segment = unsafe { *list.add(index) };
            Part {
                address: segment.addr,
                len: segment.length,
                lkey: segment.lkey,
            }
        })
        .collect()
}

fn gather(parts: &[Part]) -> Vec<u8> {
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

pub(super) fn signal(fd: RawFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: an eventfd of ours takes eight bytes.
    unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}

impl Fabric {
    /// A number for a queue pair or key, never used twice.
    pub(super) fn number(&mut self) -> u32 {
        self.numbers += 1;
        0x100 + self.numbers
    }

    pub(super) fn hold(&mut self, qp_number: u32, held: bool) {
        if let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) {
            queue_pair.held = held;
        }
        self.work_off(qp_number);
    }

    pub(super) fn refuse_sends_after(&mut self, qp_number: u32, taken: u32, errno: i32) {
        if let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) {
            queue_pair.refuse_sends = Some((taken, errno));
        }
    }

    pub(super) fn refuse_destruction(&mut self, qp_number: u32, errno: i32) {
        if let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) {
            queue_pair.refuse_destruction = Some(errno);
        }
    }

    /// Takes one work request, or says with which errno not.
    ///
    /// # Safety
    /// The work request must be a valid one.
    pub(super) unsafe fn take_send(
        &mut self,
        qp_number: u32,
        request: &sys::ibv_send_wr,
    ) -> Result<(), i32> {
        let queue_pair = self.queue_pairs.get_mut(&qp_number).ok_or(libc::EINVAL)?;
        if !matches!(queue_pair.state, sys::IBV_QPS_RTS | sys::IBV_QPS_ERR) {
            return Err(libc::EINVAL);
        }
        match &mut queue_pair.refuse_sends {
            Some((0, errno)) => {
                let errno = *errno;
                queue_pair.refuse_sends = None;
                return Err(errno);
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        if queue_pair.sends.len() >= queue_pair.depths.0 {
            return Err(libc::ENOMEM);
        }
        // SAFETY: the caller vouches for the request.
        let parts = unsafe { parts(request.sg_list, request.num_sge) };
        let inline = request.send_flags & sys::IBV_SEND_INLINE != 0;
        queue_pair.sends.push_back(Send {
            id: request.wr_id,
            opcode: request.opcode,
            signaled: request.send_flags & sys::IBV_SEND_SIGNALED != 0,
            // SAFETY: all variants of both unions are plain integers.
            immediate: unsafe { request.__bindgen_anon_1.imm_data },
            // SAFETY: as above.
            remote: unsafe { (request.wr.rdma.remote_addr, request.wr.rdma.rkey) },
            inline: inline.then(|| gather(&parts)),
            parts,
        });
        Ok(())
    }

    /// Takes one receive, or says with which errno not.
    ///
    /// # Safety
    /// The work request must be a valid one.
    pub(super) unsafe fn take_receive(
        &mut self,
        qp_number: u32,
        request: &sys::ibv_recv_wr,
    ) -> Result<(), i32> {
        let queue_pair = self.queue_pairs.get_mut(&qp_number).ok_or(libc::EINVAL)?;
        if queue_pair.state == sys::IBV_QPS_RESET {
            return Err(libc::EINVAL);
        }
        if queue_pair.receives.len() >= queue_pair.depths.1 {
            return Err(libc::ENOMEM);
        }
        // SAFETY: the caller vouches for the request.
        let parts = unsafe { parts(request.sg_list, request.num_sge) };
        queue_pair.receives.push_back(Receive {
            id: request.wr_id,
            parts,
        });
        if queue_pair.state == sys::IBV_QPS_ERR {
            self.fail(qp_number);
        }
        Ok(())
    }

    /// Carries out what a queue pair may, in order.
    pub(super) fn work_off(&mut self, qp_number: u32) {
        loop {
            let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) else {
                return;
            };
            if queue_pair.state == sys::IBV_QPS_ERR {
                return self.fail(qp_number);
            }
            if queue_pair.held {
                return;
            }
            let Some(send) = queue_pair.sends.pop_front() else {
                return;
            };
            let (queue, status) = (queue_pair.send_queue, self.carry_out(qp_number, &send));
            if status != sys::IBV_WC_SUCCESS || send.signaled {
                let opcode = match send.opcode {
                    sys::IBV_WR_RDMA_WRITE | sys::IBV_WR_RDMA_WRITE_WITH_IMM => {
                        sys::IBV_WC_RDMA_WRITE
                    }
                    sys::IBV_WR_RDMA_READ => sys::IBV_WC_RDMA_READ,
                    _ => sys::IBV_WC_SEND,
                };
                let done = sys::ibv_wc {
                    wr_id: send.id,
                    opcode,
                    ..Default::default()
                };
                self.complete(queue, qp_number, status, done);
            }
            if status != sys::IBV_WC_SUCCESS {
                return self.fail(qp_number);
            }
        }
    }

    /// Takes a queue pair to the error state; everything on it is flushed, signalled or not.
    pub(super) fn fail(&mut self, qp_number: u32) {
        let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) else {
            return;
        };
        let takes_no_more =
            queue_pair.state != sys::IBV_QPS_ERR && queue_pair.shared_receives.is_some();
        queue_pair.state = sys::IBV_QPS_ERR;
        let (send_queue, receive_queue) = (queue_pair.send_queue, queue_pair.receive_queue);
        let sends: Vec<u64> = queue_pair.sends.drain(..).map(|send| send.id).collect();
        let receives: Vec<u64> = queue_pair
            .receives
            .drain(..)
            .map(|receive| receive.id)
            .collect();
        let flushed = sends.into_iter().map(|id| (send_queue, id));
        for (queue, wr_id) in flushed.chain(receives.into_iter().map(|id| (receive_queue, id))) {
            let done = sys::ibv_wc {
                wr_id,
                ..Default::default()
            };
            self.complete(queue, qp_number, sys::IBV_WC_WR_FLUSH_ERR, done);
        }
        if takes_no_more && let Some(structure) = self.structures.get(&qp_number).copied() {
            self.report_object(structure, sys::IBV_EVENT_QP_LAST_WQE_REACHED);
        }
    }

    fn complete(
        &mut self,
        queue: usize,
        qp_number: u32,
        status: sys::ibv_wc_status,
        done: sys::ibv_wc,
    ) {
        let Some(target) = self.queues.get_mut(&queue) else {
            return;
        };
        if target.entries.len() >= target.capacity {
            target.overrun = true;
            self.report_object(queue, sys::IBV_EVENT_CQ_ERR);
            return;
        }
        target.entries.push_back(sys::ibv_wc {
            qp_num: qp_number,
            status,
            ..done
        });
        if let Some(channel) = target.channel
            && target.armed
        {
            target.armed = false;
            self.due.entry(channel).or_default().push_back(queue);
            signal(channel);
        }
    }

    /// Whether all parts lie in regions of the protection domain with these rights.
    fn covers(&self, parts: &[Part], pd: usize, access: u32) -> bool {
        parts
            .iter()
            .all(|part| self.allows(part.lkey, part.address, part.len.into(), pd, access))
    }

    fn allows(&self, key: u32, address: u64, len: u64, pd: usize, access: u32) -> bool {
        self.regions.get(&key).is_some_and(|region| {
            region.pd == pd
                && region.access & access == access
                && address >= region.start
                && address
                    .checked_add(len)
                    .is_some_and(|end| end <= region.start + region.len)
        })
    }

    fn carry_out(&mut self, qp_number: u32, send: &Send) -> sys::ibv_wc_status {
        let Some(own) = self.queue_pairs.get(&qp_number) else {
            return sys::IBV_WC_FATAL_ERR;
        };
        if send.inline.is_none() && !self.covers(&send.parts, own.pd, 0) {
            return sys::IBV_WC_LOC_PROT_ERR;
        }
        let bytes = send.inline.clone().unwrap_or_else(|| gather(&send.parts));
        let peer = own.peer;
        let Some(remote) = self.queue_pairs.get(&peer) else {
            return sys::IBV_WC_RETRY_EXC_ERR;
        };
        if !matches!(remote.state, sys::IBV_QPS_RTR | sys::IBV_QPS_RTS) {
            return sys::IBV_WC_RETRY_EXC_ERR;
        }
        let immediate = matches!(
            send.opcode,
            sys::IBV_WR_SEND_WITH_IMM | sys::IBV_WR_RDMA_WRITE_WITH_IMM
        );
        let is_write = matches!(
            send.opcode,
            sys::IBV_WR_RDMA_WRITE | sys::IBV_WR_RDMA_WRITE_WITH_IMM
        );
        let is_send = matches!(send.opcode, sys::IBV_WR_SEND | sys::IBV_WR_SEND_WITH_IMM);
        if !is_write && !is_send {
            self.fail(peer);
            return sys::IBV_WC_REM_INV_REQ_ERR;
        }
        let (address, rkey) = send.remote;
        let right = sys::IBV_ACCESS_REMOTE_WRITE;
        if is_write
            && !bytes.is_empty()
            && !(remote.access & right != 0
                && self.allows(rkey, address, bytes.len() as u64, remote.pd, right))
        {
            self.fail(peer);
            return sys::IBV_WC_REM_ACCESS_ERR;
        }
        let remote_pd = remote.pd;
        let remote_queue = remote.receive_queue;
        let receive = if is_send || immediate {
            match self.next_receive(peer) {
                Some(receive) => Some(receive),
                None => return sys::IBV_WC_RNR_RETRY_EXC_ERR,
            }
        } else {
            None
        };
        let mut done = sys::ibv_wc {
            byte_len: bytes.len() as u32,
            ..Default::default()
        };
        if immediate {
            done.wc_flags = sys::IBV_WC_WITH_IMM;
            done.__bindgen_anon_1.imm_data = send.immediate;
        }
        if is_write {
            put(address, &bytes);
            done.opcode = sys::IBV_WC_RECV_RDMA_WITH_IMM;
        } else if let Some(receive) = &receive {
            done.opcode = sys::IBV_WC_RECV;
            done.wr_id = receive.id;
            let room: usize = receive.parts.iter().map(|part| part.len as usize).sum();
            let status = if room < bytes.len() {
                Some((sys::IBV_WC_LOC_LEN_ERR, sys::IBV_WC_REM_INV_REQ_ERR))
            } else if !self.covers(&receive.parts, remote_pd, sys::IBV_ACCESS_LOCAL_WRITE) {
                Some((sys::IBV_WC_LOC_PROT_ERR, sys::IBV_WC_REM_OP_ERR))
            } else {
                None
            };
            if let Some((theirs, ours)) = status {
                self.complete(remote_queue, peer, theirs, done);
                self.fail(peer);
                return ours;
            }
            let mut rest = &bytes[..];
            for part in &receive.parts {
                let (now, later) = rest.split_at(rest.len().min(part.len as usize));
                put(part.address, now);
                rest = later;
            }
        }
        if let Some(receive) = receive {
            done.wr_id = receive.id;
            self.complete(remote_queue, peer, sys::IBV_WC_SUCCESS, done);
        }
        sys::IBV_WC_SUCCESS
    }
}

impl QueuePair {
    pub(super) fn new(pd: usize, attributes: &sys::ibv_qp_init_attr) -> QueuePair {
        QueuePair {
            state: sys::IBV_QPS_RESET,
            peer: 0,
            pd,
            access: 0,
            send_queue: attributes.send_cq as usize,
            receive_queue: attributes.recv_cq as usize,
            depths: (
                attributes.cap.max_send_wr as usize,
                attributes.cap.max_recv_wr as usize,
            ),
            refuse_destruction: None,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            shared_receives: NonNull::new(attributes.srq).map(|queue| queue.as_ptr() as usize),
            held: false,
            refuse_sends: None,
        }
    }
}
