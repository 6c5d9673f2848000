//! One end of a measurement: its queue pairs, its completion queue and its memory.

use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::BenchError;
use super::channel::Channel;
use super::memory::{Areas, Side};
use super::message::Address;
use super::plan::{Measure, Plan, PlanError, Verb};
use super::target::Target;
use crate::verbs::{
    CompletionQueue, Context, Endpoint, LocalPort, ProtectionDomain, QueuePair, QueuePairConfig,
    RemoteAddress, RemoteMemory, ScratchPart, Segment, UnconnectedQueuePair, WorkCompletion,
};

/// Messages of a latency measurement that may wait for their completion while the next go to and fro.
pub(super) const LATENCY_DEPTH: u32 = 32;
/// Receives posted for a latency measurement.
const LATENCY_RECEIVES: u32 = 16;

/// How long to sleep at most when waiting for an event, in milliseconds.
const NAP: u16 = 100;

/// One end, connected.
pub(super) struct End {
    pub(super) side: Side,
    pub(super) lanes: Vec<QueuePair<ScratchPart, ScratchPart>>,
    pub(super) queue: CompletionQueue,
    pub(super) areas: Areas,
    /// The peer's window, where it has one.
    remote: Option<RemoteMemory>,
    /// Queue pair numbers and the lanes they are of, in order of the numbers.
    numbers: Vec<(u32, usize)>,
    pub(super) inline_bytes: u32,
    /// Messages that came while the transfer before theirs was not over on this end.
    pub(super) early: u64,
}

/// One end, before it knows the other.
pub(super) struct Half {
    side: Side,
    lanes: Vec<UnconnectedQueuePair<ScratchPart, ScratchPart>>,
    queue: CompletionQueue,
    areas: Areas,
}

impl Half {
    pub(super) fn new(
        context: &Arc<Context>,
        port: LocalPort,
        plan: &Plan,
        side: Side,
        target: &Target,
    ) -> Result<Half, BenchError> {
        let config = config(plan, side);
        check_device(context, port.port, plan, &config)?;
        let pd = ProtectionDomain::new(context)?;
        // One more in each lane is the marker that tells when a failed queue pair is drained.
        let entries = (config.send_depth + 1 + config.receive_depth) * plan.queue_pairs;
        let queue = if plan.events {
            CompletionQueue::with_events(context, entries)?
        } else {
            CompletionQueue::new(context, entries)?
        };
        let areas = Areas::new(&pd, plan, side, target.memory, target.numa)?;
        let mut lanes = Vec::new();
        for _ in 0..plan.queue_pairs {
            let mut lane = UnconnectedQueuePair::new(&pd, &queue, port, &config)?;
            lane.attach(areas.source.region())?;
            lane.attach(areas.sink.region())?;
            lanes.push(lane);
        }
        Ok(Half {
            side,
            lanes,
            queue,
            areas,
        })
    }

    pub(super) fn address(&self) -> Address {
        let endpoints: Vec<Endpoint> = self
            .lanes
            .iter()
            .map(UnconnectedQueuePair::endpoint)
            .collect();
        let window = self.areas.window.as_ref().map(|window| window.remote());
        Address::new(&endpoints, window.as_ref())
    }

    /// Connects each queue pair with the peer's of the same position.
    pub(super) fn connect(self, peer: &Address, plan: &Plan) -> Result<End, BenchError> {
        let stranger = |reason| BenchError::Stranger { reason };
        let (endpoints, remote) = peer.decode().map_err(stranger)?;
        if endpoints.len() != self.lanes.len() {
            let reason = format!(
                "it has {} queue pairs where {} are due",
                endpoints.len(),
                self.lanes.len()
            );
            return Err(stranger(reason));
        }
        check_window(plan, self.side, remote.as_ref())?;
        let options = plan.connect_options();
        let mut lanes = Vec::new();
        for (lane, endpoint) in self.lanes.into_iter().zip(&endpoints) {
            let connected = lane.connect(endpoint, &options);
            lanes.push(connected.map_err(|failed| failed.error)?);
        }
        let mut numbers: Vec<(u32, usize)> =
            lanes.iter().map(QueuePair::qp_number).zip(0..).collect();
        numbers.sort_unstable();
        let inline_bytes = lanes.first().map_or(0, |lane| lane.granted().inline_bytes);
        Ok(End {
            side: self.side,
            lanes,
            queue: self.queue,
            areas: self.areas,
            remote,
            numbers,
            inline_bytes,
            early: 0,
        })
    }
}

impl End {
    /// The lane that a completion is of; `None` for one that is none of ours.
    #[inline]
    pub(super) fn lane_of(&self, done: &WorkCompletion) -> Option<usize> {
        let number = done.qp_number();
        match self.numbers.as_slice() {
            [(only, lane)] => (*only == number).then_some(*lane),
            all => {
                let found = all.binary_search_by_key(&number, |entry| entry.0).ok()?;
                Some(all[found].1)
            }
        }
    }

    /// Where messages of a lane go to or come from in the peer's memory.
    pub(super) fn target(&self, lane: usize, bytes: u64) -> Result<RemoteAddress, BenchError> {
        self.remote
            .and_then(|remote| remote.at(self.areas.at(lane), bytes))
            .ok_or_else(|| BenchError::Stranger {
                reason: "its memory window is too small".to_owned(),
            })
    }

    /// A part to send from.
    pub(super) fn source_part(&self, bytes: u64) -> Result<ScratchPart, BenchError> {
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.areas.source.part(0, len).ok_or_else(|| no_part(bytes))
    }

    /// A part of a lane to receive or read into.
    pub(super) fn sink_part(&self, lane: usize, bytes: u64) -> Result<ScratchPart, BenchError> {
        let (at, len) = (usize::try_from(self.areas.at(lane)), usize::try_from(bytes));
        at.ok()
            .zip(len.ok())
            .and_then(|(at, len)| self.areas.sink.part(at, len))
            .ok_or_else(|| no_part(bytes))
    }

    /// Posts as many receives of this size as there is room for.
    pub(super) fn fill_receives(&mut self, bytes: u64) -> Result<(), BenchError> {
        for lane in 0..self.lanes.len() {
            for _ in 0..self.lanes[lane].receive_room() {
                let part = self.sink_part(lane, bytes)?;
                self.receive(lane, part, bytes)?;
            }
        }
        Ok(())
    }

    /// Posts one receive.
    #[inline]
    pub(super) fn receive(
        &mut self,
        lane: usize,
        part: ScratchPart,
        bytes: u64,
    ) -> Result<(), BenchError> {
        self.lanes[lane]
            .post_receive(part, &[segment(bytes)])
            .map_err(|rejected| BenchError::Post {
                bytes,
                reason: rejected.to_string(),
            })
    }

    /// Sleeps until the notification that was asked for, or a message, or for a moment.
    pub(super) fn nap(&mut self, channel: &Channel) -> Result<(), BenchError> {
        if let Some(event) = self.queue.event_fd() {
            let mut interest = [
                PollFd::new(event, PollFlags::POLLIN),
                PollFd::new(channel.descriptor(), PollFlags::POLLIN),
            ];
            match poll(&mut interest, PollTimeout::from(NAP)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(BenchError::Channel {
                        doing: "sleeping until something completes",
                        source: errno.into(),
                    });
                }
            }
        }
        self.queue.drain_events()?;
        Ok(())
    }

    /// Work requests on all lanes whose completion hasn't come.
    pub(super) fn outstanding(&self) -> u32 {
        self.lanes.iter().map(|lane| lane.outstanding().0).sum()
    }
}

/// All of a message.
pub(super) fn segment(bytes: u64) -> Segment {
    Segment::new(0, u32::try_from(bytes).unwrap_or(u32::MAX))
}

fn no_part(bytes: u64) -> BenchError {
    BenchError::Post {
        bytes,
        reason: "it is larger than the memory that was registered for it".to_owned(),
    }
}

fn config(plan: &Plan, side: Side) -> QueuePairConfig {
    let latency = plan.measure == Measure::Latency;
    let receives = plan.verb == Verb::Send && side.receives(plan);
    QueuePairConfig {
        send_depth: match (side.sends(plan), latency) {
            (false, _) => 1,
            (true, true) => LATENCY_DEPTH,
            (true, false) => plan.depth,
        },
        receive_depth: match (receives, latency) {
            (false, _) => 1,
            (true, true) => LATENCY_RECEIVES,
            (true, false) => plan.receive_depth,
        },
        segments: 1,
        inline_bytes: if plan.verb.is_fetch() { 0 } else { plan.inline },
        remote_writes: plan.verb == Verb::Write && side.receives(plan),
        remote_reads: plan.verb == Verb::Read && side.receives(plan),
        remote_atomics: plan.verb == Verb::Atomic && side.receives(plan),
        ..QueuePairConfig::default()
    }
}

/// Refuses a peer without the memory that its part needs.
fn check_window(plan: &Plan, side: Side, remote: Option<&RemoteMemory>) -> Result<(), BenchError> {
    if plan.verb == Verb::Send || !side.sends(plan) {
        return Ok(());
    }
    let found = remote.map_or(0, |remote| remote.len);
    let due = plan.largest().saturating_mul(plan.queue_pairs.into());
    if found < due {
        let reason = format!("its memory window has only {found} bytes, {due} are due");
        return Err(BenchError::Stranger { reason });
    }
    Ok(())
}

/// Refuses early and with the limit's name what a device would refuse with EINVAL.
fn check_device(
    context: &Context,
    port: u8,
    plan: &Plan,
    config: &QueuePairConfig,
) -> Result<(), BenchError> {
    let limits = context.limits();
    let pairs = u64::from(plan.queue_pairs);
    let send_depth = u64::from(config.send_depth) + 1;
    let receive_depth = u64::from(config.receive_depth);
    let checks = [
        (
            "queue depth (one is ours)",
            u64::from(limits.queue_depth),
            send_depth,
            "give a smaller --depth",
        ),
        (
            "receive depth",
            u64::from(limits.queue_depth),
            receive_depth,
            "give a smaller --receive-depth",
        ),
        (
            "number of queue pairs",
            u64::from(limits.queue_pairs),
            pairs,
            "give fewer --queue-pairs",
        ),
        (
            "number of completion queue entries",
            u64::from(limits.completion_queue_entries),
            (send_depth + receive_depth).saturating_mul(pairs),
            "give fewer --queue-pairs, or a smaller --depth and --receive-depth",
        ),
        (
            "message size in bytes",
            u64::from(context.port(port)?.max_message_bytes),
            plan.largest(),
            "give a --size up to that",
        ),
        (
            "memory region in bytes",
            limits.region_bytes,
            plan.largest().saturating_mul(pairs),
            "give a smaller --size or fewer --queue-pairs",
        ),
    ];
    for (what, limit, wanted, remedy) in checks {
        if wanted > limit {
            let device = context.name().to_owned();
            return Err(PlanError::Device {
                device,
                what,
                limit,
                wanted,
                remedy,
            }
            .into());
        }
    }
    Ok(())
}
