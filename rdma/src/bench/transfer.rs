//! Moves messages of one size for a while, from this end, to it, or both ways.
//!
//! The loop posts, polls and counts. It reads the clock about once a millisecond while messages are
//! moving, never for each of them.

mod pulse;

use std::time::Duration;

use super::channel::{Channel, unexpected};
use super::cpu::Used;
use super::end::End;
use super::lane::{Lane, Pattern};
use super::message::{Message, Until};
use super::plan::{Length, Plan, Verb};
use super::series::Series;
use super::{BenchError, Cpu};
use crate::verbs::{Settled, WorkCompletion};
use pulse::{Clock, Pace, Watch};

/// How long nothing may complete before that is an error.
pub(super) const STALLED: Duration = Duration::from_secs(10);
/// How often the other end hears that we are alive.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);
/// How often a person hears how it goes.
pub(super) const TELL: Duration = Duration::from_millis(200);
/// Empty polls before the processor is offered to others. Many, as who offers it is the last to get it
/// back; and without a pause between them, which may be an exit in a virtual machine.
const SPINS: u32 = 20_000;
/// Empty polls before the clock is read again.
const CLOCK_EVERY: u32 = 4096;

/// What one transfer moved.
#[derive(Debug, Clone)]
pub(super) struct Moved {
    /// Messages that this end sent, all of them completed; those received where it only receives.
    pub(super) messages: u64,
    /// From the first post to the last completion.
    pub(super) elapsed: Duration,
    pub(super) series: Series,
    pub(super) cpu: Cpu,
    /// Share of the loop's turns that found nothing to do.
    pub(super) idle: f64,
    /// Whether the rate had settled, where that was to be waited for.
    pub(super) settled: bool,
    /// What the peer says of its part.
    pub(super) peer: Option<Peer>,
}

/// What a peer says it sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) messages: u64,
    pub(super) seconds: f64,
    pub(super) cpu: Option<Cpu>,
}

/// Everything that moving messages of one size needs.
pub(super) struct Mover<'a, 's> {
    pub(super) end: &'a mut End,
    pub(super) channel: &'a mut Channel,
    pub(super) plan: &'a Plan,
    pub(super) bytes: u64,
    pub(super) pattern: Pattern,
    pub(super) lanes: &'a mut [Lane<'s>],
    /// Told the time and the messages so far, now and then.
    pub(super) tell: &'a mut dyn FnMut(Duration, u64),
}

/// How far a transfer is.
struct State {
    sends: bool,
    receives: bool,
    completed: u64,
    received: u64,
    open_lanes: usize,
    peer: Option<Peer>,
    told_peer: bool,
    clock: Clock,
}

impl State {
    fn count(&self) -> u64 {
        self.completed + self.received
    }

    fn is_over(&self) -> bool {
        let all_sent = !self.sends || self.open_lanes == 0;
        let all_received =
            !self.receives || self.peer.is_some_and(|peer| self.received >= peer.messages);
        all_sent && all_received
    }
}

impl Mover<'_, '_> {
    /// Moves messages until `until` says so. `sends` and `receives` are what this end does with queue
    /// pairs; `hears` is whether the peer reports its part.
    pub(super) fn run(&mut self, until: Until, hears: bool) -> Result<Moved, BenchError> {
        let (sends, passive) = (self.end.side.sends(self.plan), self.plan.verb != Verb::Send);
        let receives = !passive && self.end.side.receives(self.plan);
        let pairs = self.lanes.len() as u64;
        let share = |index: u64| match until {
            Until::Length(Length::Iterations(count)) => {
                Some(count / pairs + u64::from(index < count % pairs))
            }
            _ => None,
        };
        for (lane, index) in self.lanes.iter_mut().zip(0..) {
            lane.begin(if sends { share(index) } else { Some(0) });
        }
        let used = Used::now();
        let mut state = State {
            sends,
            receives,
            completed: 0,
            received: std::mem::take(&mut self.end.early),
            open_lanes: self
                .lanes
                .iter()
                .filter(|lane| !lane.count.is_done())
                .count(),
            peer: None,
            told_peer: !sends,
            clock: Clock::new(),
        };
        let mut watch = Watch::new(until);
        let mut turns = (0u64, 0u64);
        let mut pace = Pace::new(self.plan.rate, self.bytes);
        if sends {
            self.post_all(&mut pace, &state)?;
        }
        let mut spins = 0u32;
        let mut ended = Duration::ZERO;
        loop {
            let mut busy = false;
            while let Some(done) = self.end.queue.poll()? {
                busy = true;
                self.absorb(done, &mut state, &mut pace)?;
                // Messages may complete as fast as they are posted.
                if state.clock.is_due(state.count()) {
                    break;
                }
            }
            if sends && pace.is_some() {
                busy |= self.post_all(&mut pace, &state)?;
            }
            if !state.told_peer && state.open_lanes == 0 {
                ended = state.clock.read(state.count());
                self.report(&mut state, ended, used, hears)?;
            }
            if state.is_over() {
                break;
            }
            turns.0 += 1;
            if busy {
                spins = 0;
                if !state.clock.is_due(state.count()) {
                    continue;
                }
            } else {
                turns.1 += 1;
                spins = spins.wrapping_add(1);
                if self.plan.events && pace.is_none() {
                    self.sleep(&mut state, &mut pace)?;
                } else if !spins.is_multiple_of(CLOCK_EVERY) {
                    // Soft-RoCE needs the processor to make progress.
                    if spins.is_multiple_of(SPINS) {
                        std::thread::yield_now();
                    }
                    if pace.is_none() {
                        continue;
                    }
                }
            }
            let now = state.clock.read(state.count());
            self.look(now, busy, &mut watch, &mut state, hears)?;
            if watch.closed {
                // A lane that has nothing on its way is done by being closed.
                self.close(&mut state);
                if sends {
                    self.post_all(&mut None, &state)?;
                }
            }
        }
        if !sends {
            ended = state.clock.read(state.count());
            self.channel.send(&Message::Sent {
                messages: state.received,
                seconds: ended.as_secs_f64(),
                cpu: used.until_now(ended, state.received, self.bytes),
            })?;
        }
        while hears && state.peer.is_none() {
            let message = self
                .channel
                .receive("waiting for its part of the transfer")?;
            self.hear(message, &mut state)?;
        }
        if let Some(peer) = state.peer.filter(|_| receives) {
            self.end.early = state.received.saturating_sub(peer.messages);
        }
        let messages = if sends {
            state.completed
        } else {
            state.received
        };
        Ok(Moved {
            messages,
            elapsed: ended,
            series: watch.series,
            cpu: used.until_now(ended, messages, self.bytes),
            idle: turns.1 as f64 / turns.0.max(1) as f64,
            settled: watch.settled,
            peer: state.peer,
        })
    }

    /// Takes one completion in, and posts what it made room for.
    #[inline]
    fn absorb(
        &mut self,
        done: WorkCompletion,
        state: &mut State,
        pace: &mut Option<Pace>,
    ) -> Result<(), BenchError> {
        let bytes = self.bytes;
        let failed = |source| BenchError::Transfer { bytes, source };
        let Some(index) = self.end.lane_of(&done) else {
            return Ok(());
        };
        let (pair, lane) = (&mut self.end.lanes[index], &mut self.lanes[index]);
        let (count, received) = match pair.settle(done) {
            Settled::Sent(sent) => {
                (*sent.outcome()).map_err(failed)?;
                let count = u64::from(sent.work_requests());
                lane.free.extend(sent);
                (count, None)
            }
            Settled::Received(received) => (0, Some(received)),
            Settled::Stale => return Ok(()),
        };
        let Some(received) = received else {
            lane.count.completed += count;
            state.completed += count;
            if pace.is_none() {
                lane.post(pair, &self.pattern, u64::MAX)
                    .map_err(|reason| BenchError::Post { bytes, reason })?;
            }
            if lane.count.is_done() {
                state.open_lanes = state.open_lanes.saturating_sub(1);
            }
            return Ok(());
        };
        let completion = received.outcome.map_err(failed)?;
        if u64::from(completion.bytes) != bytes {
            return Err(BenchError::Corrupted { bytes });
        }
        state.received += 1;
        self.end
            .receive(index, received.payload, self.plan.largest())
    }

    /// Posts on all lanes what there is room for and the pace allows; whether that was anything.
    fn post_all(&mut self, pace: &mut Option<Pace>, state: &State) -> Result<bool, BenchError> {
        let bytes = self.bytes;
        let mut any = false;
        for (lane, pair) in self.lanes.iter_mut().zip(&mut self.end.lanes) {
            let allowed = pace
                .as_ref()
                .map_or(u64::MAX, |pace| pace.allowed(&state.clock));
            let posted = lane
                .post(pair, &self.pattern, allowed)
                .map_err(|reason| BenchError::Post { bytes, reason })?;
            if let Some(pace) = pace {
                pace.posted += posted;
            }
            any |= posted > 0;
        }
        Ok(any)
    }

    fn close(&mut self, state: &mut State) {
        for lane in self.lanes.iter_mut() {
            lane.count.close();
        }
        let open = self.lanes.iter().filter(|lane| !lane.count.is_done());
        state.open_lanes = open.count();
    }

    /// What is looked at about once a millisecond.
    fn look(
        &mut self,
        now: Duration,
        busy: bool,
        watch: &mut Watch,
        state: &mut State,
        hears: bool,
    ) -> Result<(), BenchError> {
        let count = if state.sends {
            state.completed
        } else {
            state.received
        };
        watch.look(now, count, state.peer.is_some());
        if now.saturating_sub(watch.heard) > HEARTBEAT {
            watch.heard = now;
            self.channel.send(&Message::Alive)?;
        }
        if now.saturating_sub(watch.told) > TELL {
            watch.told = now;
            (self.tell)(now, count);
        }
        if !busy || watch.until == Until::Peer {
            // What comes after its part is not for us.
            while hears
                && state.peer.is_none()
                && let Some(message) = self.channel.try_receive("moving messages")?
            {
                watch.quiet_since = None;
                self.hear(message, state)?;
            }
        }
        if busy {
            watch.quiet_since = None;
        } else if now.saturating_sub(*watch.quiet_since.get_or_insert(now)) > STALLED {
            return Err(BenchError::Stalled {
                bytes: self.bytes,
                outstanding: self.end.outstanding(),
                waited: STALLED,
            });
        }
        Ok(())
    }

    /// Tells the peer that our part is done.
    fn report(
        &mut self,
        state: &mut State,
        ended: Duration,
        used: Used,
        hears: bool,
    ) -> Result<(), BenchError> {
        state.told_peer = true;
        // A server that only holds memory is not waiting for anything.
        if !hears {
            return Ok(());
        }
        self.channel.send(&Message::Sent {
            messages: state.completed,
            seconds: ended.as_secs_f64(),
            cpu: used.until_now(ended, state.completed, self.bytes),
        })
    }

    fn hear(&mut self, message: Message, state: &mut State) -> Result<(), BenchError> {
        match message {
            Message::Alive => Ok(()),
            Message::Sent {
                messages,
                seconds,
                cpu,
            } if seconds.is_finite() && seconds >= 0.0 => {
                state.peer = Some(Peer {
                    messages,
                    seconds,
                    cpu: cpu.checked(),
                });
                Ok(())
            }
            other => Err(unexpected(&other, "its part of the transfer")),
        }
    }

    /// Sleeps until there is a completion or a message, or for a moment.
    fn sleep(&mut self, state: &mut State, pace: &mut Option<Pace>) -> Result<(), BenchError> {
        // What came before the notification was asked for causes none.
        if self.end.queue.arm()?
            && let Some(done) = self.end.queue.poll()?
        {
            return self.absorb(done, state, pace);
        }
        // A message is looked at by the caller.
        self.end.nap(self.channel)
    }
}
