//! One end of a latency measurement: says a message, hears the answer.

use std::time::{Duration, Instant};

use super::watchdog::Watchdog;
use crate::bench::BenchError;
use crate::bench::channel::{Channel, unexpected};
use crate::bench::end::{End, LATENCY_DEPTH, segment};
use crate::bench::message::Message;
use crate::bench::plan::{AtomicKind, Plan, Verb};
use crate::bench::transfer::STALLED;
use crate::verbs::{RemoteAddress, ScratchPart, Segment, Settled, Work};

/// The mark of the last round.
pub(super) const LAST: u8 = 255;
/// One message in this many asks for a completion, where nobody waits for it.
const SIGNAL_EVERY: u64 = 8;
/// Looks at memory or at a queue without an answer before one at the clock.
const LOOKS: u32 = 20_000;
/// Without an answer for so long, this end offers its processor to others, which the other end may be waiting
/// for. Rounds are shorter: what is done for a late answer may be why the next one is late.
const LATE: Duration = Duration::from_millis(1);
/// Without an answer for so long, it looks whether the other end is still there: a system call each time.
const MISSED: Duration = Duration::from_millis(5);
/// How long what the other end has to say of a failure is waited for. It goes together with what the adapter
/// says, in either order.
const GRACE: Duration = Duration::from_millis(300);

/// Never zero, never [`LAST`], and different from the last few rounds'.
pub(super) fn mark(round: u64) -> u8 {
    (round % 250) as u8 + 1
}

pub(super) struct Player<'a> {
    end: &'a mut End,
    channel: &'a mut Channel,
    plan: &'a Plan,
    bytes: u64,
    last_byte: usize,
    target: Option<RemoteAddress>,
    segments: [Segment; 1],
    free: Vec<ScratchPart>,
    /// Where messages were received: posted again while the answer is on its way, and not before it.
    heard: Vec<ScratchPart>,
    /// Messages received and not heard yet.
    arrived: u32,
    /// Rounds begun, or messages said.
    total: u64,
    /// Both ends have heard the last message: what the other end says next is for whoever comes after.
    over: bool,
    quiet_since: Option<Instant>,
    /// Wakes it when nothing will, where it sleeps.
    watchdog: Option<Watchdog>,
}

impl<'a> Player<'a> {
    pub(super) fn new(
        end: &'a mut End,
        channel: &'a mut Channel,
        plan: &'a Plan,
        bytes: u64,
    ) -> Result<Player<'a>, BenchError> {
        let parts = (0..LATENCY_DEPTH).map(|_| {
            if plan.verb.is_fetch() {
                end.sink_part(0, bytes)
            } else {
                end.source_part(bytes)
            }
        });
        let free = parts.collect::<Result<_, _>>()?;
        let target = match plan.verb {
            Verb::Send => None,
            Verb::Write | Verb::Read | Verb::Atomic => Some(end.target(0, bytes)?),
        };
        let watchdog = if plan.events {
            Some(Watchdog::start(end.lanes[0].breaker(), channel)?)
        } else {
            None
        };
        Ok(Player {
            end,
            channel,
            plan,
            bytes,
            last_byte: usize::try_from(bytes - 1).unwrap_or(usize::MAX),
            target,
            segments: [segment(bytes)],
            free,
            heard: Vec::with_capacity(LATENCY_DEPTH as usize),
            arrived: 0,
            total: 0,
            over: false,
            quiet_since: None,
            watchdog,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A round of the client.
    #[inline]
    pub(super) fn round(&mut self) -> Result<(), BenchError> {
        if self.plan.verb.is_fetch() {
            return self.fetch();
        }
        let mark = mark(self.total);
        self.say(mark)?;
        self.hear(mark).map(drop)
    }

    /// Ends the rounds on both ends; how many messages this end said.
    pub(super) fn finish(mut self) -> Result<u64, BenchError> {
        if !self.plan.verb.is_fetch() {
            self.say(LAST)?;
            self.hear(LAST)?;
        }
        self.settle_all()
    }

    pub(super) fn say_alive(&mut self) -> Result<(), BenchError> {
        self.channel.send(&Message::Alive)
    }

    /// Writes or sends a message that ends with this mark.
    #[inline]
    pub(super) fn say(&mut self, mark: u8) -> Result<(), BenchError> {
        let part = self.part()?;
        let bytes = self.bytes;
        // The last message that was sent from here has been heard, so nobody reads this byte any more.
        if !self.end.areas.source.copy_in(self.last_byte, &[mark]) {
            return Err(refused(bytes, "it is larger than its memory"));
        }
        let work = match self.target {
            Some(target) => Work::write(target, &self.segments),
            None => Work::send(&self.segments),
        };
        self.total += 1;
        let work = if mark == LAST || self.total.is_multiple_of(SIGNAL_EVERY) {
            work.signaled()
        } else {
            work
        };
        let mut batch = self.end.lanes[0].batch();
        batch
            .push(part, &[work])
            .map_err(|error| refused(bytes, error))?;
        batch.commit().map_err(|error| refused(bytes, error))?;
        // The message is on its way, and with it there is time for the rest.
        self.receive_again()?;
        if self.free.len() <= LATENCY_DEPTH as usize / 2 {
            self.poll()?;
        }
        Ok(())
    }

    #[inline]
    fn receive_again(&mut self) -> Result<(), BenchError> {
        for part in self.heard.drain(..) {
            self.end.receive(0, part, self.plan.largest())?;
        }
        Ok(())
    }

    /// Waits for a message with the mark that is due, or with the last one; which it was.
    #[inline]
    pub(super) fn hear(&mut self, due: u8) -> Result<u8, BenchError> {
        self.quiet_since = None;
        if self.plan.verb == Verb::Send {
            while self.arrived == 0 {
                self.wait()?;
            }
            self.arrived -= 1;
            let found = self.end.areas.sink.byte(self.last_byte);
            return match found {
                Some(found) if found == due || found == LAST => Ok(found),
                _ => Err(BenchError::Corrupted { bytes: self.bytes }),
            };
        }
        let mut looks = 0u32;
        loop {
            let window = self.end.areas.window.as_ref();
            match window.and_then(|window| window.byte(self.last_byte)) {
                Some(found) if found == due || found == LAST => return Ok(found),
                _ => {}
            }
            looks += 1;
            // Without a pause, which would be part of the latency: in a virtual machine it may be an exit.
            if looks < LOOKS {
                continue;
            }
            looks = 0;
            // A failed write of ours is why no answer comes.
            self.poll()?;
            self.idle()?;
        }
    }

    /// Reads from the other end's memory, or counts in it, and waits for what comes back.
    #[inline]
    fn fetch(&mut self) -> Result<(), BenchError> {
        self.quiet_since = None;
        let part = self.part()?;
        let bytes = self.bytes;
        let Some(target) = self.target else {
            return Err(refused(bytes, "the other end has no memory for it"));
        };
        let value = self.total;
        self.total += 1;
        let mut batch = self.end.lanes[0].batch();
        match (self.plan.verb, self.plan.atomic) {
            (Verb::Atomic, AtomicKind::FetchAdd) => batch.push_fetch_add(part, 0, target, 1),
            (Verb::Atomic, AtomicKind::CompareSwap) => {
                batch.push_compare_swap(part, 0, target, value, value.wrapping_add(1))
            }
            _ => batch.push_read(part, target, &self.segments),
        }
        .map_err(|error| refused(bytes, error))?;
        batch.commit().map_err(|error| refused(bytes, error))?;
        while self.end.lanes[0].outstanding().0 > 0 {
            self.wait()?;
        }
        Ok(())
    }

    fn part(&mut self) -> Result<ScratchPart, BenchError> {
        self.quiet_since = None;
        loop {
            match self.free.pop() {
                Some(part) => return Ok(part),
                None => self.wait()?,
            }
        }
    }

    /// Waits until all messages are completed, which the last one asks for; how many were said.
    pub(super) fn settle_all(&mut self) -> Result<u64, BenchError> {
        self.quiet_since = None;
        self.over = true;
        while self.end.lanes[0].outstanding().0 > 0 {
            self.wait()?;
        }
        self.receive_again()?;
        Ok(self.total)
    }

    /// Looks at the queue until there is something, for a while.
    #[inline]
    fn wait(&mut self) -> Result<(), BenchError> {
        let mut polls = 0u32;
        loop {
            if self.poll()? {
                return Ok(());
            }
            polls += 1;
            if self.plan.events {
                if self.sleep()? {
                    return Ok(());
                }
            } else if polls >= LOOKS {
                return self.idle();
            }
        }
    }

    /// Takes in a completion, if there is one; whether there was. One and no more: looking for another,
    /// which a round seldom has, would be part of its latency.
    #[inline]
    fn poll(&mut self) -> Result<bool, BenchError> {
        match self.take_in() {
            Ok(any) => Ok(any),
            Err(error) => Err(self.explain(error)),
        }
    }

    #[inline]
    fn take_in(&mut self) -> Result<bool, BenchError> {
        let bytes = self.bytes;
        let failed = |source| BenchError::Transfer { bytes, source };
        let Some(done) = self.end.queue.poll()? else {
            return Ok(false);
        };
        let received = match self.end.lanes[0].settle(done) {
            Settled::Sent(sent) => {
                (*sent.outcome()).map_err(failed)?;
                self.free.extend(sent);
                return Ok(true);
            }
            Settled::Received(received) => received,
            Settled::Stale => return Ok(true),
        };
        let completion = received.outcome.map_err(failed)?;
        if u64::from(completion.bytes) != bytes {
            return Err(BenchError::Corrupted { bytes });
        }
        self.arrived += 1;
        self.heard.push(received.payload);
        Ok(true)
    }

    /// Nothing has come for a while: lets others work, and sees whether the other end is still there.
    #[cold]
    fn idle(&mut self) -> Result<(), BenchError> {
        let now = Instant::now();
        let quiet = now.duration_since(*self.quiet_since.get_or_insert(now));
        if quiet > LATE {
            std::thread::yield_now();
        }
        if quiet > MISSED && !self.over {
            self.listen()?;
        }
        if quiet > STALLED {
            return Err(self.stalled());
        }
        Ok(())
    }

    /// The other end says nothing during rounds, unless it gives up.
    fn listen(&mut self) -> Result<(), BenchError> {
        match self.channel.try_receive("waiting for its answer")? {
            None | Some(Message::Alive) => Ok(()),
            Some(other) => Err(unexpected(&other, "its answer")),
        }
    }

    /// Sleeps until there is a completion; whether anything had completed before.
    fn sleep(&mut self) -> Result<bool, BenchError> {
        // What came before the notification was asked for causes none.
        if self.end.queue.arm()? && self.poll()? {
            return Ok(true);
        }
        self.end.queue.sleep_until_notified()?;
        if let Some(watchdog) = &self.watchdog {
            watchdog.pet();
        }
        Ok(false)
    }

    /// Why work requests failed: where the watchdog ended them, for its reason and not for their own;
    /// else with what the other end says of it, which may be why. Wrong bytes are wrong whatever it says.
    #[cold]
    fn explain(&mut self, error: BenchError) -> BenchError {
        let BenchError::Transfer { bytes, source } = error else {
            return error;
        };
        let barked = self.watchdog.as_ref().is_some_and(Watchdog::barked);
        let deadline = Instant::now() + GRACE;
        let told = loop {
            match self.channel.try_receive("waiting for its answer") {
                Ok(Some(_)) if Instant::now() < deadline => {}
                Ok(None) if barked => return self.stalled(),
                Ok(None) if self.channel.becomes_ready_by(deadline) => {}
                Ok(_) => return BenchError::Transfer { bytes, source },
                Err(told) => break told,
            }
        };
        if barked {
            return told;
        }
        BenchError::Together {
            bytes,
            source,
            told: Box::new(told),
        }
    }

    fn stalled(&self) -> BenchError {
        BenchError::Stalled {
            bytes: self.bytes,
            outstanding: self.end.outstanding(),
            waited: STALLED,
        }
    }
}

#[cold]
fn refused(bytes: u64, reason: impl std::fmt::Display) -> BenchError {
    BenchError::Post {
        bytes,
        reason: reason.to_string(),
    }
}
