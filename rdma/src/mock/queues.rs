//! The two queues of a mock queue pair: what they take, in which order it is carried out, and when not.

use std::collections::VecDeque;
use std::ptr::NonNull;

use super::fabric::Fabric;
use super::work::{Receive, Send, parts};
use crate::sys;

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

impl Fabric {
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
