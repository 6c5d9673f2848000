//! A node's machine, kubelet and device plugin together.

mod discovery;
mod kubelet;
mod ports;
mod support;
