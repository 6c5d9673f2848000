//! Asking the evictor for room, and waiting for it.

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use futures_timer::Delay;

use super::{Holding, Reservation, Room, Short};

/// How long a write waits for the evictor; then the chunk is served without being stored.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a write that waits looks whether there is room.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long nobody asks again after the evictor has found nothing that it may evict.
const FRUITLESS_FOR: Duration = Duration::from_secs(1);

/// What the evictor is asked for.
#[derive(Default)]
pub(super) struct Asked {
    /// Bytes wanted by those who wait, and by which bound.
    waiting: HashMap<Short, u64>,
    /// Bounds for which nothing could be evicted a moment ago.
    fruitless: HashMap<Short, Instant>,
    /// Rounds that the evictor has begun, and ended.
    begun: u64,
    ended: u64,
}

impl Room {
    /// Reserves bytes for a version. Where there is no room, waits while the evictor makes some; the
    /// bound that is met if it can't.
    pub(crate) async fn reserve<'a>(
        &'a self,
        holding: &'a Holding,
        bytes: u64,
    ) -> Result<Reservation<'a>, Short> {
        let mut short = match self.try_reserve(holding, bytes) {
            Ok(reservation) => return Ok(reservation),
            Err(short) => short,
        };
        let began = Instant::now();
        while let Some(waiting) = self.ask(&short, bytes) {
            while !waiting.is_answered() && began.elapsed() < PATIENCE {
                Delay::new(LOOK_EVERY).await;
            }
            drop(waiting);
            match self.try_reserve(holding, bytes) {
                Ok(reservation) => return Ok(reservation),
                // Another bound, or others were quicker.
                Err(other) if began.elapsed() < PATIENCE => short = other,
                Err(other) => return Err(other),
            }
        }
        Err(short)
    }

    /// The disk has no space left for a version, whatever was reckoned: waits while the evictor frees
    /// some, and says whether it did.
    pub(crate) async fn free_some(&self) -> bool {
        let short = Short::Disk(100);
        let Some(waiting) = self.ask(&short, 0) else {
            return false;
        };
        let began = Instant::now();
        while !waiting.is_answered() && began.elapsed() < PATIENCE {
            Delay::new(LOOK_EVERY).await;
        }
        !self.is_fruitless(&short)
    }

    /// Asks the evictor for room. `None` if it has none, or there is nobody to ask.
    fn ask<'a>(&'a self, short: &Short, bytes: u64) -> Option<Waiting<'a>> {
        if !self.is_evicting() || self.is_fruitless(short) {
            return None;
        }
        let answered_by = {
            let mut asked = self.asked.lock();
            *asked.waiting.entry(short.clone()).or_default() += bytes;
            asked.begun + 1
        };
        self.wake();
        Some(Waiting {
            room: self,
            short: short.clone(),
            bytes,
            answered_by,
        })
    }

    fn is_fruitless(&self, short: &Short) -> bool {
        let mut asked = self.asked.lock();
        let fruitless = &mut asked.fruitless;
        fruitless.retain(|_, since| since.elapsed() < FRUITLESS_FOR);
        fruitless.contains_key(short)
    }

    /// A round of evicting begins. What is to be made room for: bounds, and the bytes that are wanted. What exceeds a bound
    /// without anybody waiting for it is part of it: budgets are lowered at times.
    pub(crate) fn begin_round(&self) -> Vec<(Short, u64)> {
        let mut wanted = {
            let mut asked = self.asked.lock();
            asked.begun += 1;
            asked.waiting.clone()
        };
        let tenants = self.quotas.tenants().map(Some).chain([None]);
        for short in tenants.filter_map(|tenant| self.exceeded(tenant, 0, 0)) {
            wanted.entry(short).or_default();
        }
        wanted.into_iter().collect()
    }

    /// Whether a bound leaves room for what is wanted, beside what is reserved.
    pub(crate) fn is_met(&self, short: &Short, wanted: u64) -> bool {
        let all = self.reserved.load(SeqCst).saturating_add(wanted);
        let exceeded = match short.tenant() {
            Some(tenant) => self.exceeded(Some(tenant), 0, wanted),
            None => self.exceeded(None, all, 0),
        };
        // Exceeding another bound is another's matter.
        exceeded.is_none_or(|other| other.tenant() != short.tenant())
    }

    /// To be called when a round of evicting has ended: those that asked look again.
    pub(crate) fn round_ends(&self, fruitless: Vec<Short>) {
        let mut asked = self.asked.lock();
        asked.ended = asked.begun;
        for short in fruitless {
            asked.fruitless.insert(short, Instant::now());
        }
    }
}

/// Somebody who waits for room.
struct Waiting<'a> {
    room: &'a Room,
    short: Short,
    bytes: u64,
    /// The round that will have looked at it.
    answered_by: u64,
}

impl Waiting<'_> {
    /// Whether there is room now, or the evictor has done what it can.
    fn is_answered(&self) -> bool {
        let room = self.room;
        let met = self.short != Short::Disk(100) && room.is_met(&self.short, self.bytes);
        met || room.asked.lock().ended >= self.answered_by
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut asked = self.room.asked.lock();
        if let Some(bytes) = asked.waiting.get_mut(&self.short) {
            *bytes -= self.bytes;
            if *bytes == 0 {
                asked.waiting.remove(&self.short);
            }
        }
    }
}
