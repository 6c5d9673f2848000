//! Hands out SR-IOV virtual functions (VFs) and shares of RDMA adapters that are known to work.
//!
//! What is in the machine is found, sorted into named pools, watched and probed; kubelet is told, and
//! gives it to pods. Data flows one way: what is found ([`discover`]) becomes what is offered ([`offer`]),
//! by the configuration ([`config`]) alone; who has what is decided in one place ([`allocate`]), which
//! knows nothing of kubelet or of the machine; and [`kubelet`] speaks to kubelet. [`plugin`] runs it all.

pub mod allocate;
pub mod config;
pub mod discover;
pub mod events;
pub mod function;
pub mod journal;
pub mod kubelet;
pub mod metrics;
pub mod offer;
pub mod plugin;
pub mod port_watch;
pub mod probe;
pub mod settle;
pub mod sriov;
pub mod state;
