//! Hands out SR-IOV virtual functions (VFs) and shares of RDMA adapters that are known to work.
//!
//! What is in the machine is found, sorted into named pools, watched and probed; kubelet is told, and
//! gives it to pods. Data flows one way: what was found ([`function`]) becomes what is offered, by the
//! configuration alone; what is offered and healthy is allocated.

pub mod allocate;
pub mod config;
pub mod discover;
pub mod function;
pub mod journal;
pub mod offer;
pub mod settle;
