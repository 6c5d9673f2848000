//! Our side: `trackbed_rdma::verbs`.

use trackbed_rdma::verbs::{
    CompletionQueue, ConnectOptions, Context, GidChoice, MappingOptions, ProtectionDomain,
    QueuePair, QueuePairConfig, Scratch, ScratchPart, Segment, Settled, UnconnectedQueuePair, Work,
    WorkCompletion,
};

use super::{
    Count, Idle, Messages, NOT_READY_RETRIES, NOT_READY_TIMER, PATIENCE, Path, RETRIES, TIMEOUT,
};
use crate::PeersError;

/// How completions are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// By asking again and again.
    Polled,
    /// By sleeping until the next one when there is none.
    Events,
}

/// Our two queue pairs.
pub struct Ours {
    sender: QueuePair<ScratchPart, ScratchPart>,
    receiver: QueuePair<ScratchPart, ScratchPart>,
    queue: CompletionQueue,
    /// Payloads that no message has.
    spare: Vec<ScratchPart>,
    segments: [Segment; 1],
    waiting: Waiting,
    depth: u32,
}

impl Ours {
    /// Connects two queue pairs of a device with each other.
    pub fn connect(path: &Path, waiting: Waiting) -> Result<Self, PeersError> {
        let context = Context::open(&path.device)?;
        let port = context.local_port(None, &GidChoice::Index(path.gid_index.into()))?;
        let pd = ProtectionDomain::new(&context)?;
        let scratch = Scratch::mapped(&pd, 2 * path.size as usize, &MappingOptions::default())?;
        let config = QueuePairConfig {
            send_depth: path.depth,
            receive_depth: path.depth,
            segments: 1,
            ..QueuePairConfig::default()
        };
        // One more in each is the marker that tells when a failed queue pair is drained.
        let entries = 2 * (2 * path.depth + 1);
        let queue = match waiting {
            Waiting::Polled => CompletionQueue::new(&context, entries)?,
            Waiting::Events => CompletionQueue::with_events(&context, entries)?,
        };
        let make = || {
            let mut pair = UnconnectedQueuePair::new(&pd, &queue, port, &config)?;
            pair.attach(scratch.region())?;
            Ok::<_, PeersError>(pair)
        };
        let (sender, receiver) = (make()?, make()?);
        let ends = [sender.endpoint(), receiver.endpoint()];
        let options = ConnectOptions {
            timeout: TIMEOUT,
            retries: RETRIES,
            not_ready_retries: NOT_READY_RETRIES,
            not_ready_timer: NOT_READY_TIMER,
            ..ConnectOptions::default()
        };
        let connect = |pair: UnconnectedQueuePair<_, _>, peer| {
            pair.connect(peer, &options).map_err(|failed| failed.error)
        };
        let (sender, mut receiver) = (connect(sender, &ends[1])?, connect(receiver, &ends[0])?);
        let size = path.size as usize;
        let part = |at| {
            scratch
                .part(at, size)
                .expect("it was made for two messages")
        };
        let segments = [Segment::new(0, path.size)];
        for _ in 0..path.depth {
            receiver
                .post_receive(part(size), &segments)
                .map_err(PeersError::of("posting a receive of ours"))?;
        }
        Ok(Self {
            spare: (0..path.depth).map(|_| part(0)).collect(),
            sender,
            receiver,
            queue,
            segments,
            waiting,
            depth: path.depth,
        })
    }

    /// The next completion, if there is one now or, with events, soon.
    #[inline(always)]
    fn next(&mut self) -> Result<Option<WorkCompletion>, PeersError> {
        Ok(match self.waiting {
            Waiting::Polled => self.queue.poll()?,
            Waiting::Events => self.queue.wait(PATIENCE)?,
        })
    }

    #[inline(always)]
    fn settle(&mut self, done: WorkCompletion, count: &mut Count) -> Result<(), PeersError> {
        if done.qp_number() == self.sender.qp_number() {
            if let Settled::Sent(sent) = self.sender.settle(done) {
                let before = self.spare.len();
                if let Err(error) = sent.outcome() {
                    return Err(PeersError::of("a message of ours")(error));
                }
                self.spare.extend(sent);
                count.sent += (self.spare.len() - before) as u64;
            }
            return Ok(());
        }
        let received = match self.receiver.settle(done) {
            Settled::Received(received) => received,
            Settled::Sent(_) | Settled::Stale => return Ok(()),
        };
        received
            .outcome
            .map_err(PeersError::of("a receive of ours"))?;
        self.receiver
            .post_receive(received.payload, &self.segments)
            .map_err(PeersError::of("posting a receive of ours"))?;
        count.received += 1;
        Ok(())
    }
}

impl Messages for Ours {
    fn send(&mut self, wanted: u64) -> Result<(), PeersError> {
        let mut count = Count::of(wanted);
        let mut idle = Idle::new();
        loop {
            while count.may_post(self.depth)
                && let Some(payload) = self.spare.pop()
            {
                let mut batch = self.sender.batch();
                batch
                    .push(payload, &[Work::send(&self.segments).signaled()])
                    .map_err(PeersError::of("posting a message of ours"))?;
                batch
                    .commit()
                    .map_err(PeersError::of("posting a message of ours"))?;
                count.posted += 1;
            }
            if count.is_over() {
                return Ok(());
            }
            let mut any = false;
            let mut found = self.next()?;
            while let Some(done) = found {
                any = true;
                self.settle(done, &mut count)?;
                found = self.queue.poll()?;
            }
            idle.looked(any, "waiting for a completion of ours")?;
        }
    }
}
