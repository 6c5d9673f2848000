//! Carries a plan out: all ports at the same time, and all or none of it.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Setting, Step, Switch};
use crate::function::PciAddress;

/// How long a port may take to have its functions: 125 of some adapters take more than a minute.
const DEADLINE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A change that was not made, or could not be.
#[derive(Debug, Error)]
#[error("{step}: {source}{}", match .undone {
    true => "; every port is as it was before",
    false => "; and not every port could be put back: `trackbed device-plugin plan` shows what is left to do",
})]
pub struct ApplyError {
    /// What was attempted.
    pub step: Step,
    /// Whether all is as it was.
    pub undone: bool,
    /// What the system said.
    pub source: io::Error,
}

/// Carries out all steps, the ports at the same time; if one fails, those that are done are undone. Blocks.
pub fn apply(steps: &[Step], switch: &dyn Switch) -> Result<(), ApplyError> {
    let outcomes = at_once(steps, |step| {
        bring(step.physical, step.to, &step.wanted, switch)
    });
    let failed = outcomes.into_iter().zip(steps);
    let failed = failed.filter_map(|(outcome, step)| Some((outcome.err()?, step)));
    let Some((source, step)) = failed.into_iter().next() else {
        return Ok(());
    };
    let undone = at_once(steps, |step| {
        bring(step.physical, step.from, &step.before, switch)
    });
    Err(ApplyError {
        step: step.clone(),
        undone: undone.iter().all(Result::is_ok),
        source,
    })
}

fn at_once(steps: &[Step], change: impl Fn(&Step) -> io::Result<()> + Sync) -> Vec<io::Result<()>> {
    thread::scope(|scope| {
        let threads: Vec<_> = steps
            .iter()
            .map(|step| scope.spawn(|| change(step)))
            .collect();
        let broke = |_| Err(io::Error::other("the thread that changed it broke"));
        let join = |it: thread::ScopedJoinHandle<'_, _>| it.join().unwrap_or_else(broke);
        threads.into_iter().map(join).collect()
    })
}

/// Makes a port have so many virtual functions, set like this, and reads back that they are.
fn bring(
    physical: PciAddress,
    count: u32,
    settings: &[Vec<Setting>],
    switch: &dyn Switch,
) -> io::Result<()> {
    number(physical, count, switch)?;
    if settings.iter().all(Vec::is_empty) {
        return Ok(());
    }
    let now = switch.port(physical)?.functions;
    for (index, wanted) in (0..).zip(settings) {
        let now = now.get(index as usize).map_or(&[][..], Vec::as_slice);
        let different = wanted.iter().filter(|setting| !now.contains(setting));
        let mut set: Vec<Setting> = different.copied().collect();
        if set.iter().any(Setting::is_read_at_bind) {
            // Its net device is a new one then, with an MTU of its own.
            let mtu = |all: &[Setting]| {
                let mut mtus = all.iter().filter(|it| matches!(it, Setting::Mtu(_)));
                mtus.next().copied()
            };
            set.retain(|it| !matches!(it, Setting::Mtu(_)));
            set.extend(mtu(wanted).or_else(|| mtu(now)));
        }
        if !set.is_empty() {
            switch.set(physical, index, &set)?;
        }
    }
    let now = switch.port(physical)?.functions;
    for (index, wanted) in (0..).zip(settings) {
        let now = now.get(index as usize).map_or(&[][..], Vec::as_slice);
        for setting in wanted {
            if !now.contains(setting) {
                let (name, told) = (setting.name(), setting.like(now));
                let told = told.map_or("nothing".to_owned(), Setting::to_string);
                return Err(io::Error::other(format!(
                    "virtual function {index}: {name} was set to {setting}, and what is read back is {told}"
                )));
            }
        }
    }
    Ok(())
}

fn number(physical: PciAddress, to: u32, switch: &dyn Switch) -> io::Result<()> {
    if switch.count(physical)? == to {
        return Ok(());
    }
    switch.set_count(physical, 0)?;
    if to > 0 {
        switch.set_count(physical, to)?;
    }
    // Most drivers return when all are there, some before.
    let began = Instant::now();
    while switch.count(physical)? != to {
        if began.elapsed() > DEADLINE {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("they are not there after {DEADLINE:?}"),
            ));
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
