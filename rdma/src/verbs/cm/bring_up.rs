//! Brings a queue pair up with the attributes that the connection manager has negotiated.

use super::error::ConnectError;
use super::id::Id;
use crate::sys;
use crate::verbs::{ConnectOptions, QueuePair, Sink, Source, UnconnectedQueuePair};

/// Reads and atomics under way, as agreed with the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Depths {
    /// Those of the peer that our end serves at a time.
    pub(super) served: u8,
    /// Those of ours.
    pub(super) asked: u8,
}

/// Takes the queue pair to ready-to-send. The path, the peer's number and the packet sequence numbers
/// are the connection manager's; how losses are treated is ours to say. The end that accepts has
/// decided on the depths itself.
pub(super) fn bring_up<S: Source, R: Sink>(
    id: &mut Id,
    queue_pair: UnconnectedQueuePair<S, R>,
    path: &ConnectOptions,
    depths: Option<Depths>,
) -> Result<QueuePair<S, R>, ConnectError> {
    let initial = id.queue_pair_attributes(sys::IBV_QPS_INIT)?;
    let (mut receive, receive_mask) = id.queue_pair_attributes(sys::IBV_QPS_RTR)?;
    receive.min_rnr_timer = path.not_ready_timer & 31;
    let (mut send, send_mask) = id.queue_pair_attributes(sys::IBV_QPS_RTS)?;
    send.timeout = path.timeout & 31;
    send.retry_cnt = path.retries & 7;
    send.rnr_retry = path.not_ready_retries & 7;
    if let Some(Depths { served, asked }) = depths {
        receive.max_dest_rd_atomic = served;
        send.max_rd_atomic = asked;
    }
    Ok(queue_pair.connect_managed(initial, (receive, receive_mask), (send, send_mask))?)
}
