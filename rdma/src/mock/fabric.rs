//! What the mock provider keeps: queue pairs and their work requests, queues, regions, due events.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::events::Event;
use super::shared_receive::SharedReceives;
use super::transfer::gather;
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
    /// With which errno a context, by its descriptor, refuses the next registration.
    pub(super) refuse_registration: HashMap<RawFd, i32>,
    /// The upper parts of the keys of windows.
    pub(super) windows: HashSet<u32>,
    /// With which errno a context, by its descriptor, refuses once to destroy a window.
    pub(super) refuse_window_end: HashMap<RawFd, i32>,
    /// The structures of queue pairs, by their numbers.
    pub(super) structures: HashMap<u32, usize>,
    numbers: u32,
}

pub(super) struct QueuePair {
    pub(super) state: sys::ibv_qp_state,
    pub(super) peer: u32,
    pub(super) pd: usize,
    pub(super) access: u32,
    pub(super) kind: sys::ibv_qp_type,
    pub(super) queue_key: u32,
    pub(super) send_queue: usize,
    pub(super) receive_queue: usize,
    pub(super) depths: (usize, usize),
    pub(super) refuse_destruction: Option<i32>,
    sends: VecDeque<Send>,
    pub(super) receives: VecDeque<Receive>,
    /// The address of its shared receive queue's structure.
    pub(super) shared_receives: Option<usize>,
    held: bool,
    /// Work requests to carry out all the same.
    steps: u32,
    refuse_sends: Option<(u32, i32)>,
    pub(super) fail_next: Option<sys::ibv_wc_status>,
    pub(super) complete_twice: bool,
    /// Whether a send waits until the peer has a receive for it, however long that takes.
    pub(super) waits_for_receives: bool,
    /// Who waits for a receive of this one.
    awaited_by: Option<u32>,
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
    pub(super) holder: Holder,
}

/// Whose way to some memory a key is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// That of the memory's owner, and of peers: a region's.
    Region,
    /// Of the peers of a whole protection domain: a window's of type 1.
    Domain,
    /// Of the peer of one queue pair: a window's of type 2.
    QueuePair(u32),
}

/// What a window is to be opened on.
#[derive(Clone, Copy, Default)]
pub(super) struct Window {
    pub(super) rkey: u32,
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) access: u32,
    /// Of type 1, the key that it had before.
    pub(super) before: Option<u32>,
}

#[derive(Clone)]
pub(super) struct Part {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) lkey: u32,
}

pub(super) struct Send {
    pub(super) id: u64,
    pub(super) opcode: sys::ibv_wr_opcode,
    pub(super) signaled: bool,
    pub(super) immediate: u32,
    pub(super) remote: (u64, u32),
    /// What is added or compared with, and what is swapped in.
    pub(super) operands: (u64, u64),
    /// Of no meaning where no window is to be opened.
    pub(super) window: Window,
    /// The queue pair and key that a datagram goes to; of no meaning on a connection.
    pub(super) datagram: (u32, u32),
    pub(super) inline: Option<Vec<u8>>,
    pub(super) parts: Vec<Part>,
}

pub(super) struct Receive {
    pub(super) id: u64,
    pub(super) parts: Vec<Part>,
}

impl Send {
    /// What a classic work request says.
    ///
    /// # Safety
    /// The work request must be a valid one.
    pub(super) unsafe fn of(request: &sys::ibv_send_wr) -> Send {
        // SAFETY: the caller vouches for the request.
        let parts = unsafe { parts(request.sg_list, request.num_sge) };
        let inline = request.send_flags & sys::IBV_SEND_INLINE != 0;
        let is_atomic = matches!(
            request.opcode,
            sys::IBV_WR_ATOMIC_FETCH_AND_ADD | sys::IBV_WR_ATOMIC_CMP_AND_SWP
        );
        // SAFETY: all variants of the unions are plain integers.
        let (immediate, rdma, atomic, ud, bind) = unsafe {
            (
                request.__bindgen_anon_1.imm_data,
                request.wr.rdma,
                request.wr.atomic,
                request.wr.ud,
                request.__bindgen_anon_2.bind_mw,
            )
        };
        Send {
            id: request.wr_id,
            opcode: request.opcode,
            signaled: request.send_flags & sys::IBV_SEND_SIGNALED != 0,
            immediate,
            remote: if is_atomic {
                (atomic.remote_addr, atomic.rkey)
            } else {
                (rdma.remote_addr, rdma.rkey)
            },
            operands: if is_atomic {
                (atomic.compare_add, atomic.swap)
            } else {
                (0, 0)
            },
            window: Window {
                rkey: bind.rkey,
                start: bind.bind_info.addr,
                len: bind.bind_info.length,
                access: bind.bind_info.mw_access_flags,
                before: None,
            },
            datagram: (ud.remote_qpn, ud.remote_qkey),
            inline: inline.then(|| gather(&parts)),
            parts,
        }
    }

    fn completion_opcode(&self) -> sys::ibv_wc_opcode {
        match self.opcode {
            sys::IBV_WR_RDMA_WRITE | sys::IBV_WR_RDMA_WRITE_WITH_IMM => sys::IBV_WC_RDMA_WRITE,
            sys::IBV_WR_RDMA_READ => sys::IBV_WC_RDMA_READ,
            sys::IBV_WR_BIND_MW => sys::IBV_WC_BIND_MW,
            sys::IBV_WR_LOCAL_INV => sys::IBV_WC_LOCAL_INV,
            sys::IBV_WR_ATOMIC_FETCH_AND_ADD => sys::IBV_WC_FETCH_ADD,
            sys::IBV_WR_ATOMIC_CMP_AND_SWP => sys::IBV_WC_COMP_SWAP,
            _ => sys::IBV_WC_SEND,
        }
    }
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

    pub(super) fn step(&mut self, qp_number: u32, count: u32) {
        if let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) {
            queue_pair.steps = queue_pair.steps.saturating_add(count);
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

    pub(super) fn fail_next(&mut self, qp_number: u32, status: sys::ibv_wc_status) {
        if let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) {
            queue_pair.fail_next = Some(status);
        }
    }

    pub(super) fn complete_twice(&mut self, qp_number: u32) {
        if let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) {
            queue_pair.complete_twice = true;
        }
    }

    /// How many of `wanted` work requests a queue pair takes now, and with which errno it refuses the
    /// next one.
    pub(super) fn admit(&mut self, qp_number: u32, wanted: usize) -> (usize, i32) {
        let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) else {
            return (0, libc::EINVAL);
        };
        if !matches!(queue_pair.state, sys::IBV_QPS_RTS | sys::IBV_QPS_ERR) {
            return (0, libc::EINVAL);
        }
        let room = queue_pair.depths.0.saturating_sub(queue_pair.sends.len());
        match queue_pair.refuse_sends {
            Some((left, errno)) if (left as usize) < wanted.min(room) => {
                queue_pair.refuse_sends = None;
                (left as usize, errno)
            }
            Some((left, errno)) => {
                let taken = wanted.min(room);
                queue_pair.refuse_sends = Some((left - taken as u32, errno));
                (taken, libc::ENOMEM)
            }
            None => (wanted.min(room), libc::ENOMEM),
        }
    }

    /// Takes a work request that was admitted.
    pub(super) fn take_send(&mut self, qp_number: u32, send: Send) {
        if let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) {
            queue_pair.sends.push_back(send);
        }
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
        let waiting = queue_pair.awaited_by.take();
        if queue_pair.state == sys::IBV_QPS_ERR {
            self.fail(qp_number);
        }
        if let Some(sender) = waiting {
            self.work_off(sender);
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
            if queue_pair.held && queue_pair.steps == 0 {
                return;
            }
            let Some(send) = queue_pair.sends.pop_front() else {
                return;
            };
            queue_pair.steps = queue_pair.steps.saturating_sub(1);
            let queue = queue_pair.send_queue;
            let status = match queue_pair.fail_next.take() {
                Some(status) => status,
                None => self.carry_out(qp_number, &send),
            };
            if status == sys::IBV_WC_RNR_RETRY_EXC_ERR && self.wait_for_receive(qp_number) {
                if let Some(queue_pair) = self.queue_pairs.get_mut(&qp_number) {
                    queue_pair.sends.push_front(send);
                }
                return;
            }
            if status != sys::IBV_WC_SUCCESS || send.signaled {
                let done = sys::ibv_wc {
                    wr_id: send.id,
                    opcode: send.completion_opcode(),
                    ..Default::default()
                };
                self.complete(queue, qp_number, status, done);
                if self.take_double(qp_number) {
                    self.complete(queue, qp_number, status, done);
                }
            }
            if status != sys::IBV_WC_SUCCESS {
                return self.fail(qp_number);
            }
        }
    }

    /// Has the peer's next receive go on with this queue pair, if it may wait for one.
    fn wait_for_receive(&mut self, qp_number: u32) -> bool {
        let waits = self.queue_pairs.get(&qp_number);
        let Some(peer) = waits
            .filter(|pair| pair.waits_for_receives)
            .map(|pair| pair.peer)
        else {
            return false;
        };
        match self.queue_pairs.get_mut(&peer) {
            Some(peer) => peer.awaited_by = Some(qp_number),
            None => return false,
        }
        true
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

    /// Whether the next completion shall come twice.
    fn take_double(&mut self, qp_number: u32) -> bool {
        self.queue_pairs
            .get_mut(&qp_number)
            .is_some_and(|queue_pair| std::mem::take(&mut queue_pair.complete_twice))
    }

    pub(super) fn complete(
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
    pub(super) fn covers(&self, parts: &[Part], pd: usize, access: u32) -> bool {
        parts
            .iter()
            .all(|part| self.allows(part.lkey, part.address, part.len.into(), (pd, None), access))
    }

    /// Whether a key opens this range, with these rights, to a user: a protection domain, and the number
    /// of the queue pair when it is a peer that asks.
    pub(super) fn allows(
        &self,
        key: u32,
        address: u64,
        len: u64,
        (pd, peer): (usize, Option<u32>),
        access: u32,
    ) -> bool {
        self.regions.get(&key).is_some_and(|region| {
            let open = match region.holder {
                Holder::Region => true,
                Holder::Domain => peer.is_some(),
                Holder::QueuePair(number) => peer == Some(number),
            };
            region.pd == pd
                && open
                && region.access & access == access
                && address >= region.start
                && address
                    .checked_add(len)
                    .is_some_and(|end| end <= region.start + region.len)
        })
    }
}

impl QueuePair {
    pub(super) fn new(pd: usize, attributes: &sys::ibv_qp_init_attr) -> QueuePair {
        QueuePair {
            state: sys::IBV_QPS_RESET,
            peer: 0,
            pd,
            access: 0,
            kind: attributes.qp_type,
            queue_key: 0,
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
            steps: 0,
            refuse_sends: None,
            fail_next: None,
            complete_twice: false,
            waits_for_receives: false,
            awaited_by: None,
        }
    }
}
