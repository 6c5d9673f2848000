//! The states of a queue pair: initialised, connected with a peer by its address, and what it is in now.

use super::core::Core;
use super::{QueuePairConfig, QueuePairState};
use crate::sys;
use crate::verbs::endpoint::{ConnectOptions, Endpoint};
use crate::verbs::error::VerbsError;
use crate::verbs::port::LinkLayer;

impl<S, R> Core<S, R> {
    pub(super) fn initialise(&self, config: &QueuePairConfig) -> Result<(), VerbsError> {
        let right = |given, right| if given { right } else { 0 };
        let access = right(config.remote_writes, sys::IBV_ACCESS_REMOTE_WRITE)
            | right(config.remote_reads, sys::IBV_ACCESS_REMOTE_READ)
            | right(config.remote_atomics, sys::IBV_ACCESS_REMOTE_ATOMIC);
        let attributes = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_INIT,
            pkey_index: 0,
            port_num: self.local.port,
            qp_access_flags: access,
            ..Default::default()
        };
        let mask = sys::IBV_QP_PKEY_INDEX | sys::IBV_QP_PORT | sys::IBV_QP_ACCESS_FLAGS;
        self.modify(attributes, mask, "INIT")
    }

    pub(super) fn connect(
        &mut self,
        peer: &Endpoint,
        options: &ConnectOptions,
    ) -> Result<(), VerbsError> {
        self.check_peer(peer)?;
        let global = self.local.link_layer == LinkLayer::Ethernet || peer.lid == 0;
        let mut grh = sys::ibv_global_route::default();
        if global {
            grh.dgid.raw = peer.gid.0;
            grh.sgid_index = self.local.gid_index;
            grh.hop_limit = options.hop_limit;
            grh.traffic_class = options.traffic_class;
        }
        let ready_to_receive = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTR,
            path_mtu: self.local.mtu.min(peer.mtu).min(options.mtu).raw(),
            dest_qp_num: peer.qp_number,
            rq_psn: peer.packet_sequence,
            max_dest_rd_atomic: self.reads_in_flight,
            min_rnr_timer: options.not_ready_timer & 31,
            ah_attr: sys::ibv_ah_attr {
                grh,
                dlid: peer.lid,
                sl: options.service_level & 15,
                is_global: u8::from(global),
                port_num: self.local.port,
                ..Default::default()
            },
            ..Default::default()
        };
        let mask = sys::IBV_QP_AV
            | sys::IBV_QP_PATH_MTU
            | sys::IBV_QP_DEST_QPN
            | sys::IBV_QP_RQ_PSN
            | sys::IBV_QP_MAX_DEST_RD_ATOMIC
            | sys::IBV_QP_MIN_RNR_TIMER;
        self.modify(ready_to_receive, mask, &format!("RTR with {peer}"))?;
        let ready_to_send = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTS,
            timeout: options.timeout & 31,
            retry_cnt: options.retries & 7,
            rnr_retry: options.not_ready_retries & 7,
            sq_psn: self.packet_sequence,
            max_rd_atomic: self.send.reads_issued.min(peer.reads_in_flight),
            ..Default::default()
        };
        let mask = sys::IBV_QP_TIMEOUT
            | sys::IBV_QP_RETRY_CNT
            | sys::IBV_QP_RNR_RETRY
            | sys::IBV_QP_SQ_PSN
            | sys::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(ready_to_send, mask, "RTS")?;
        self.send.reads_issued = self.send.reads_issued.min(peer.reads_in_flight);
        Ok(())
    }

    /// What the device would refuse with a bare EINVAL, or accept and never deliver.
    fn check_peer(&self, peer: &Endpoint) -> Result<(), VerbsError> {
        let incompatible = |reason| {
            let (local, remote) = (self.endpoint().to_string(), peer.to_string());
            Err(VerbsError::Incompatible {
                local,
                remote,
                reason,
            })
        };
        match self.local.link_layer {
            LinkLayer::Ethernet if peer.lid != 0 => {
                incompatible("one end is on Ethernet, the other on InfiniBand")
            }
            LinkLayer::InfiniBand if peer.lid == 0 && peer.gid.is_zero() => {
                incompatible("the peer has neither a LID nor a GID")
            }
            LinkLayer::Ethernet if peer.gid.is_zero() => incompatible("the peer has no GID"),
            LinkLayer::Ethernet if peer.gid.ip().is_ipv4() != self.local.gid.ip().is_ipv4() => {
                incompatible(
                    "one end chose an IPv4 GID, the other an IPv6 one: choose one kind on both",
                )
            }
            _ => Ok(()),
        }
    }

    pub(super) fn state(&self) -> Result<QueuePairState, VerbsError> {
        self.pd.context().check_process()?;
        let mut attributes = sys::ibv_qp_attr::default();
        let mut initial = sys::ibv_qp_init_attr::default();
        // SAFETY: the queue pair and both structures are ours.
        let code = unsafe {
            (self.pd.context().library().query_qp)(
                self.raw.as_ptr(),
                &mut attributes,
                sys::IBV_QP_STATE.cast_signed(),
                &mut initial,
            )
        };
        if code != 0 {
            return Err(VerbsError::code("ibv_query_qp", self.object(), code));
        }
        Ok(match attributes.qp_state {
            sys::IBV_QPS_RESET => QueuePairState::Reset,
            sys::IBV_QPS_INIT => QueuePairState::Init,
            sys::IBV_QPS_RTR => QueuePairState::ReadyToReceive,
            sys::IBV_QPS_RTS => QueuePairState::ReadyToSend,
            sys::IBV_QPS_ERR => QueuePairState::Error,
            other => QueuePairState::Other(other),
        })
    }
}
