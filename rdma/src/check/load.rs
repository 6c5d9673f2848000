//! A load on each port, from the device to itself, with its counters read before and after.

use std::path::Path;
use std::time::Duration;

use super::counters::Counters;
use super::facts::{Facts, Load, Verbs};
use crate::bench::{self, BenchError, DeviceChoice, Length, Measure, Plan, Target, Verb};

/// How much load.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// For how long on each port.
    pub time: Duration,
}

/// Loads each port that is active, one after the other, and notes what came of it. `progress` hears
/// which port is next.
pub fn load(facts: &mut Facts, options: &LoadOptions, progress: &mut dyn FnMut(&str)) {
    for device in &mut facts.devices {
        if device.verbs != Verbs::Opened {
            continue;
        }
        for port in &mut device.ports {
            let state = device
                .device
                .ports
                .iter()
                .find(|known| known.number == port.number)
                .and_then(|known| known.state.as_deref());
            let Ok(number) = u8::try_from(port.number) else {
                continue;
            };
            if state != Some("ACTIVE") {
                continue;
            }
            let name = &device.device.name;
            progress(&format!("{name}/{number}"));
            let folder = Path::new("/sys/class/infiniband")
                .join(name)
                .join("ports")
                .join(port.number.to_string());
            // What happened between gathering and now is not the load's.
            port.counters = Counters::read(&folder);
            let outcome = on_port(name, number, options);
            let after = Counters::read(&folder);
            port.load = match outcome {
                Ok(row) => Load::Ran {
                    row: Box::new(row),
                    after,
                },
                Err(error) if error.is_setup() => Load::Unable(error.to_string()),
                Err(error) => Load::Broke {
                    reason: error.to_string(),
                    after,
                },
            };
        }
    }
}

fn on_port(device: &str, port: u8, options: &LoadOptions) -> Result<bench::Row, BenchError> {
    let target = Target {
        device: DeviceChoice::Named(device.to_owned()),
        port: Some(port),
        ..Target::default()
    };
    let milliseconds = u64::try_from(options.time.as_millis()).unwrap_or(u64::MAX);
    let plan = Plan {
        length: Length::Milliseconds(milliseconds),
        ..Plan::new(Verb::Write, Measure::Bandwidth)
    };
    let report = bench::run_local(&target, &target, &plan, &mut |_| {})?;
    report
        .rows
        .into_iter()
        .next()
        .ok_or_else(|| BenchError::Stranger {
            reason: "it ended without a result".to_owned(),
        })
}
