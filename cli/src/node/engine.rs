//! What whoever runs the cache's engine in a process needs of the system: memory, a thread, signals.

use crate::exit::Failure;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use tokio::signal::unix::{SignalKind, signal};
use trackbed_cache::agent::MIN_SLOTS;
use trackbed_cache::seal::SLOT_BYTES;
use trackbed_rdma::shard::{Shard, ShardConfig};
use trackbed_rdma::slab::Slab;

/// SIGTERM and SIGINT, from now on.
pub(crate) fn ending() -> Result<tokio::sync::mpsc::Receiver<()>, Failure> {
    let refuse = |error: io::Error| Failure::failed(format!("cannot handle signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(refuse)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(refuse)?;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Nobody waits any more: the node ends already.
        let _ = sender.send(()).await;
    });
    Ok(receiver)
}

/// Pinned memory is bounded by RLIMIT_MEMLOCK for whoever lacks CAP_IPC_LOCK: as much of it as
/// the system grants.
pub(crate) fn raise_memory_lock_limit() {
    let raised = getrlimit(Resource::RLIMIT_MEMLOCK)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard));
    if let Err(errno) = raised {
        tracing::debug!(%errno, "the limit of locked memory stays as it is");
    }
}

/// The data path's memory and the thread that drives its ring.
pub(crate) fn start_shard(memory: u64) -> Result<Shard, Failure> {
    let slots = usize::try_from(memory).unwrap_or(usize::MAX) / SLOT_BYTES;
    if slots < MIN_SLOTS {
        return Err(Failure::usage(format!(
            "--memory of {} bytes holds {slots} chunks: give at least {} MiB",
            memory,
            (MIN_SLOTS * SLOT_BYTES).div_ceil(1 << 20)
        )));
    }
    let slab = Slab::new("node", SLOT_BYTES, slots).map_err(Failure::unable)?;
    Shard::start(ShardConfig::new("shard-0", slab)).map_err(Failure::unable)
}
