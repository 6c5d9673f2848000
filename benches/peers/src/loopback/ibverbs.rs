//! The other side: the crate `ibverbs`.

use ibverbs::{
    CompletionQueue, Context, MemoryRegion, PreparedQueuePair, ProtectionDomain, QueuePair,
    devices, ibv_qp_type::IBV_QPT_RC, ibv_wc,
};

use super::{Count, Idle, Messages, NOT_READY_RETRIES, NOT_READY_TIMER, Path, RETRIES, TIMEOUT};
use crate::PeersError;

/// Completions taken at a time, as ours does.
const BATCH: usize = 32;
/// Tells receives from sends by `wr_id`.
const RECEIVE: u64 = 1 << 32;

/// The queue pairs of `ibverbs`.
pub struct Ibverbs {
    // Fields are dropped in this order: a queue pair that is gone uses no memory any more.
    sender: QueuePair<'static>,
    receiver: QueuePair<'static>,
    queue: &'static CompletionQueue<'static>,
    from: MemoryRegion<u8>,
    into: MemoryRegion<u8>,
    depth: u32,
}

impl Ibverbs {
    /// Connects two queue pairs of a device with each other. What they are made of stays until the
    /// process ends, since the crate's types borrow from each other.
    pub fn connect(path: &Path) -> Result<Self, PeersError> {
        let failed = PeersError::of::<std::io::Error>;
        let list = devices().map_err(failed("ibverbs: listing devices"))?;
        let named = list.iter().find(|device| {
            let name = device.name();
            name.is_some_and(|name| name.to_bytes() == path.device.as_bytes())
        });
        let device = named.ok_or_else(|| {
            PeersError::Unavailable(format!("ibverbs sees no device {}", path.device))
        })?;
        let context = device
            .open()
            .map_err(failed("ibverbs: opening the device"))?;
        let context: &'static Context = Box::leak(Box::new(context));
        let entries = i32::try_from(4 * path.depth).unwrap_or(i32::MAX);
        let queue = context
            .create_cq(entries, 0)
            .map_err(failed("ibverbs: making a completion queue"))?;
        let queue: &'static CompletionQueue<'static> = Box::leak(Box::new(queue));
        let pd = context
            .alloc_pd()
            .map_err(failed("ibverbs: making a protection domain"))?;
        let pd: &'static ProtectionDomain<'static> = Box::leak(Box::new(pd));
        let prepare = || {
            pd.create_qp(queue, queue, IBV_QPT_RC)
                .set_gid_index(path.gid_index.into())
                .set_max_send_wr(path.depth)
                .set_max_recv_wr(path.depth)
                .set_timeout(TIMEOUT)
                .set_retry_count(RETRIES)
                .set_rnr_retry(NOT_READY_RETRIES)
                .set_min_rnr_timer(NOT_READY_TIMER)
                .build()
                .map_err(failed("ibverbs: making a queue pair"))
        };
        let (sender, receiver) = (prepare()?, prepare()?);
        let ends = [sender.endpoint(), receiver.endpoint()];
        let connect = |pair: PreparedQueuePair<'static>, peer| {
            pair.handshake(peer)
                .map_err(failed("ibverbs: connecting a queue pair"))
        };
        let (sender, receiver) = (connect(sender, ends[1])?, connect(receiver, ends[0])?);
        let memory = || {
            pd.allocate(path.size as usize)
                .map_err(failed("ibverbs: registering memory"))
        };
        let mut ibverbs = Self {
            sender,
            receiver,
            queue,
            from: memory()?,
            into: memory()?,
            depth: path.depth,
        };
        for slot in 0..path.depth {
            ibverbs.receive(RECEIVE | u64::from(slot))?;
        }
        Ok(ibverbs)
    }

    #[inline(always)]
    fn receive(&mut self, id: u64) -> Result<(), PeersError> {
        // SAFETY: the memory is dropped after the queue pairs, whose end is the end of what is posted on
        // them, and nobody looks at its bytes before.
        unsafe { self.receiver.post_receive(&mut self.into, .., id) }
            .map_err(PeersError::of("ibverbs: posting a receive"))
    }
}

impl Messages for Ibverbs {
    fn send(&mut self, wanted: u64) -> Result<(), PeersError> {
        let mut count = Count::of(wanted);
        let mut completions = [ibv_wc::default(); BATCH];
        let mut idle = Idle::new();
        loop {
            while count.may_post(self.depth) {
                // SAFETY: as for receives.
                unsafe { self.sender.post_send(&mut self.from, .., count.posted) }
                    .map_err(PeersError::of("ibverbs: posting a message"))?;
                count.posted += 1;
            }
            if count.is_over() {
                return Ok(());
            }
            let mut any = false;
            loop {
                let done = self
                    .queue
                    .poll(&mut completions)
                    .map_err(PeersError::of("ibverbs: polling"))?;
                if done.is_empty() {
                    break;
                }
                any = true;
                for each in done {
                    if let Some((status, vendor)) = each.error() {
                        return Err(PeersError::Failed {
                            attempt: "ibverbs: a work request",
                            reason: format!("status {status}, vendor code {vendor}"),
                        });
                    }
                    if each.wr_id() & RECEIVE == 0 {
                        count.sent += 1;
                    } else {
                        self.receive(each.wr_id())?;
                        count.received += 1;
                    }
                }
            }
            idle.looked(any, "ibverbs: waiting for a completion")?;
        }
    }
}
