//! Queue pairs that the connection manager has negotiated the attributes of.

use std::sync::Arc;

use super::{QueuePair, UnconnectedQueuePair};
use crate::sys;
use crate::verbs::context::Context;
use crate::verbs::error::VerbsError;
use crate::verbs::memory::{Sink, Source};
use crate::verbs::port::LocalPort;

/// Attributes of a queue pair and which of them are set.
type Attributes = (sys::ibv_qp_attr, u32);

impl<S: Source, R: Sink> UnconnectedQueuePair<S, R> {
    /// The device it is on.
    pub fn context(&self) -> &Arc<Context> {
        self.core.context()
    }

    /// The port it is on.
    pub fn local_port(&self) -> LocalPort {
        self.core.local_port()
    }

    /// Connects with the peer that the attributes name.
    pub(in crate::verbs) fn connect_managed(
        self,
        (mut initial, _): Attributes,
        (receive, receive_mask): Attributes,
        (send, send_mask): Attributes,
    ) -> Result<QueuePair<S, R>, VerbsError> {
        if initial.pkey_index != 0 {
            // It was made for the default partition, the connection is in another one.
            initial.qp_state = sys::IBV_QPS_INIT;
            self.core.modify(initial, sys::IBV_QP_PKEY_INDEX, "INIT")?;
        }
        self.core
            .modify(receive, receive_mask, "RTR, by librdmacm")?;
        self.core.modify(send, send_mask, "RTS, by librdmacm")?;
        Ok(QueuePair { core: self.core })
    }
}
