//! Single flight under a model checker: the very file that the cache uses, its lock swapped for the
//! checker's, under a scheduler that tries many orders of events.
//!
//! The checker is shuttle and not loom: waiting is done by futures and the channels of the crate
//! `futures`, which shuttle interleaves at every lock and every await, and loom can't without models
//! of them. Small cases are tried in every order there is, larger ones in many, the same in each run.
#![allow(dead_code)]

#[path = "../../src/fill/flight.rs"]
mod flight;

/// The checker's locks.
pub(crate) mod sync {
    pub(crate) use shuttle_parking_lot::Mutex;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use flight::{Flights, Lead};
use shuttle::future::{JoinHandle, block_on, spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

/// What is wanted; the work's result says how often it was done before.
const CHUNK: u32 = 7;

/// Work that several want, and how it goes.
#[derive(Default)]
struct Work {
    flights: Flights<u32, usize>,
    /// How many are at it now.
    at_it: AtomicUsize,
    done: AtomicUsize,
}

/// How work ends.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    /// With a result.
    Well,
    /// Whoever does it is dropped, at any moment or before it began.
    BrokenOff,
}

struct AtIt(Arc<Work>);

impl Drop for AtIt {
    fn drop(&mut self) {
        self.0.at_it.fetch_sub(1, SeqCst);
    }
}

/// What the leader has a task do, as a fill does.
fn begin(work: &Arc<Work>, lead: Lead<u32, usize>, ends: Ends) -> JoinHandle<()> {
    let working = Arc::clone(work);
    let task = spawn(async move {
        // After the guard below, so that it is dropped before: a task that is dropped gives up its
        // work first and its lead then.
        let lead = lead;
        assert_eq!(working.at_it.fetch_add(1, SeqCst), 0, "two are at it");
        let at_it = AtIt(Arc::clone(&working));
        yield_now().await;
        let result = working.done.fetch_add(1, SeqCst);
        drop(at_it);
        lead.finish(result);
    });
    if ends == Ends::BrokenOff {
        task.abort();
    }
    task
}

/// Somebody who wants it, and what came.
fn wants(work: &Arc<Work>, ends: Ends) -> thread::JoinHandle<Option<usize>> {
    let work = Arc::clone(work);
    thread::spawn(move || {
        let (arrival, lead) = work.flights.join(CHUNK);
        // Whether it leads or not, what it asks is answered alike.
        if let Some(lead) = lead {
            drop(begin(&work, lead, ends));
        }
        block_on(arrival).ok()
    })
}

fn answered(waiting: Vec<thread::JoinHandle<Option<usize>>>, work: &Work) -> Vec<Option<usize>> {
    let answers = waiting.into_iter().map(|one| one.join().expect("it holds"));
    let answers: Vec<_> = answers.collect();
    let done = work.done.load(SeqCst);
    assert!(answers.iter().flatten().all(|&result| result < done));
    assert!(!work.flights.has(&CHUNK), "nobody is at it any more");
    answers
}

fn all_get_the_result() {
    let work = Arc::new(Work::default());
    let waiting = (0..2).map(|_| wants(&work, Ends::Well)).collect();
    let answers = answered(waiting, &work);
    assert!(answers.iter().all(Option::is_some), "{answers:?}");
}

fn who_is_broken_off_strands_nobody() {
    let work = Arc::new(Work::default());
    let waiting = (0..2).map(|_| wants(&work, Ends::BrokenOff)).collect();
    answered(waiting, &work);
    // The next to ask begins anew.
    let next = vec![wants(&work, Ends::Well)];
    assert!(answered(next, &work)[0].is_some());
}

fn many_come_and_go() {
    let work = Arc::new(Work::default());
    let waiting = (0..4).map(|_| {
        let ends = match thread_rng().gen_range(0..3) {
            0 => Ends::BrokenOff,
            _ => Ends::Well,
        };
        wants(&work, ends)
    });
    let waiting = waiting.collect();
    // One who leaves before it has come.
    let (left, lead) = work.flights.join(CHUNK);
    drop(left);
    if let Some(lead) = lead {
        drop(begin(&work, lead, Ends::Well));
    }
    for answer in answered_by_now(waiting) {
        assert!(answer.is_none_or(|result| result < work.done.load(SeqCst)));
    }
}

/// As [`answered`], where somebody who doesn't wait may still be at it.
fn answered_by_now(waiting: Vec<thread::JoinHandle<Option<usize>>>) -> Vec<Option<usize>> {
    let answers = waiting.into_iter().map(|one| one.join().expect("it holds"));
    answers.collect()
}

fn main() {
    println!("model: of two who want a chunk one fetches it, for both");
    shuttle::check_dfs(all_get_the_result, Some(20_000));
    println!("model: a fill that is broken off at any moment strands nobody");
    shuttle::check_dfs(who_is_broken_off_strands_nobody, Some(20_000));
    println!("model: many come and go");
    shuttle::check_random(many_come_and_go, 2000);
    shuttle::check_pct(many_come_and_go, 2000, 3);
}
