//! Tries a device for real: opens it and moves bytes from it to itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use trackbed_rdma::verbs::{
    Access, CompletionQueue, ConnectOptions, Context, Endpoint, GidChoice, Mapping, MemoryRegion,
    Piece, ProtectionDomain, QueuePairConfig, Segment, Settled, UnconnectedQueuePair, Work,
};

use crate::discover::{Needs, needs};
use crate::function::PciAddress;

/// How long the bytes may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// How many there are.
const BYTES: usize = 4096;

/// Tries devices that no pod has.
pub trait Probe: Send + Sync {
    /// Why the device at `address` does not work, if it does not. May block for seconds.
    fn probe(&self, address: PciAddress) -> Result<(), String>;
}

/// By verbs, from the device to itself; what has no RDMA device must have its net device.
#[derive(Debug)]
pub struct VerbsProbe {
    /// Below which `/sys` and `/dev` lie.
    pub root: PathBuf,
}

impl Probe for VerbsProbe {
    fn probe(&self, address: PciAddress) -> Result<(), String> {
        let Needs {
            net_devices, rdma, ..
        } = needs(&self.root, address).map_err(|error| error.to_string())?;
        match rdma {
            Some(rdma) => loopback(&rdma).map_err(|why| format!("{rdma}: {why}")),
            None if net_devices.is_empty() => Err("it has no net device".to_owned()),
            None => Ok(()),
        }
    }
}

/// Sends bytes from a device to itself and compares what arrives.
pub fn loopback(device: &str) -> Result<(), String> {
    fn said(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let context = Context::open(device).map_err(said)?;
    let pd = ProtectionDomain::new(&context).map_err(said)?;
    let mut queue = CompletionQueue::with_events(&context, 16).map_err(said)?;
    let (mapping, mut pieces) = Mapping::split(BYTES, 2).map_err(said)?;
    let region = MemoryRegion::register(&pd, mapping, Access::LocalWrite).map_err(said)?;
    let half = || {
        let port = context
            .local_port(None, &GidChoice::Automatic)
            .map_err(said)?;
        let config = QueuePairConfig {
            send_depth: 2,
            receive_depth: 2,
            ..QueuePairConfig::default()
        };
        let mut pair: UnconnectedQueuePair<Piece, Piece> =
            UnconnectedQueuePair::new(&pd, &queue, port, &config).map_err(said)?;
        pair.attach(&region).map_err(said)?;
        Ok::<_, String>(pair)
    };
    let (sender, mut receiver) = (half()?, half()?);
    let (Some(mut sent), Some(arrives)) = (pieces.pop(), pieces.pop()) else {
        return Err("no memory".to_owned());
    };
    // Other bytes each time: what an earlier probe has left does not pass.
    let seed = Instant::now().elapsed().subsec_nanos() as usize ^ std::process::id() as usize;
    for (at, byte) in sent.iter_mut().enumerate() {
        *byte = ((at + seed) * 31 % 251) as u8;
    }
    let expected = sent.to_vec();
    let all = [Segment::new(0, BYTES as u32)];
    receiver.post_receive(arrives, &all).map_err(said)?;
    let (to_receiver, to_sender): (Endpoint, Endpoint) = (receiver.endpoint(), sender.endpoint());
    let options = ConnectOptions::default();
    let mut receiver = receiver
        .connect(&to_sender, &options)
        .map_err(|failed| said(failed.error))?;
    let mut sender = sender
        .connect(&to_receiver, &options)
        .map_err(|failed| said(failed.error))?;
    let mut batch = sender.batch();
    batch
        .push(sent, &[Work::send(&all).signaled()])
        .map_err(said)?;
    batch.commit().map_err(said)?;
    let began = Instant::now();
    let (mut left, mut arrived) = (true, None);
    while left || arrived.is_none() {
        if began.elapsed() > DEADLINE {
            return Err(format!("{BYTES} bytes did not arrive within {DEADLINE:?}"));
        }
        let Some(done) = queue.poll().map_err(said)? else {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        };
        let pair = if done.qp_number() == sender.qp_number() {
            &mut sender
        } else {
            &mut receiver
        };
        match pair.settle(done) {
            Settled::Sent(sent) => {
                (*sent.outcome()).map_err(said)?;
                left = false;
            }
            Settled::Received(received) => {
                received.outcome.map_err(said)?;
                arrived = Some(received.payload);
            }
            Settled::Stale => {}
        }
    }
    if arrived.is_some_and(|piece| piece[..] == expected[..]) {
        Ok(())
    } else {
        Err("other bytes arrived than were sent".to_owned())
    }
}
