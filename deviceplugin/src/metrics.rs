//! What the plugin counts, as Prometheus reads it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::allocate::Health;
use crate::state::{State, count};

/// Upper bounds of the allocation latency's buckets, in seconds.
const BOUNDS: [f64; 8] = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.1, 1.0];

/// Live numbers.
#[derive(Debug, Default)]
pub struct Counters {
    allocations: AtomicU64,
    refusals: AtomicU64,
    registrations: AtomicU64,
    to_unhealthy: AtomicU64,
    to_healthy: AtomicU64,
    latency: [AtomicU64; BOUNDS.len()],
    latency_nanos: AtomicU64,
}

impl Counters {
    /// Kubelet asked for devices: what came of it, and how long it took.
    pub fn allocated(&self, given: bool, took: Duration) {
        let outcome = if given {
            &self.allocations
        } else {
            &self.refusals
        };
        outcome.fetch_add(1, Relaxed);
        for (bound, bucket) in BOUNDS.iter().zip(&self.latency) {
            if took.as_secs_f64() <= *bound {
                bucket.fetch_add(1, Relaxed);
            }
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.latency_nanos.fetch_add(nanos, Relaxed);
    }

    /// Kubelet knows a pool.
    pub fn registered(&self) {
        self.registrations.fetch_add(1, Relaxed);
    }

    /// A device's health has changed.
    pub fn turned(&self, health: &Health) {
        let to = match health {
            Health::Healthy => &self.to_healthy,
            Health::Unhealthy(_) => &self.to_unhealthy,
        };
        to.fetch_add(1, Relaxed);
    }
}

/// All numbers in Prometheus' text format.
pub fn text(state: &State) -> String {
    let counters = &state.counters;
    let mut text = String::new();
    let mut counter = |name: &str, help: &str, value: &AtomicU64| {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} counter\n{name} {}",
            value.load(Relaxed)
        );
    };
    counter(
        "trackbed_deviceplugin_allocations_total",
        "Calls of kubelet by which devices were given to a container",
        &counters.allocations,
    );
    counter(
        "trackbed_deviceplugin_refused_allocations_total",
        "Calls of kubelet for devices that were refused",
        &counters.refusals,
    );
    counter(
        "trackbed_deviceplugin_registrations_total",
        "Times that kubelet took a pool on",
        &counters.registrations,
    );
    counter(
        "trackbed_deviceplugin_turned_unhealthy_total",
        "Times that a device stopped being fit to be given",
        &counters.to_unhealthy,
    );
    counter(
        "trackbed_deviceplugin_turned_healthy_total",
        "Times that a device became fit to be given again",
        &counters.to_healthy,
    );
    histogram(counters, &mut text);
    let name = "trackbed_deviceplugin_devices";
    let _ = writeln!(
        text,
        "# HELP {name} Devices by resource, and whether they are fit\n# TYPE {name} gauge"
    );
    for pool in state.status() {
        let (well, not) = count(&pool.devices);
        let resource = &pool.resource;
        for (health, value) in [("healthy", well), ("unhealthy", not)] {
            let _ = writeln!(
                text,
                "{name}{{resource=\"{resource}\",health=\"{health}\"}} {value}"
            );
        }
    }
    let name = "trackbed_deviceplugin_device_held";
    let _ = writeln!(
        text,
        "# HELP {name} Devices that a pod has, with its name\n# TYPE {name} gauge"
    );
    for pool in state.status() {
        for device in &pool.devices {
            let pod = device.holder.as_ref().and_then(|it| it.pod.as_ref());
            if let Some(pod) = pod {
                let _ = writeln!(
                    text,
                    "{name}{{resource=\"{}\",device=\"{}\",namespace=\"{}\",pod=\"{}\"}} 1",
                    pool.resource, device.id, pod.namespace, pod.name
                );
            }
        }
    }
    text
}

fn histogram(counters: &Counters, text: &mut String) {
    let name = "trackbed_deviceplugin_allocate_seconds";
    let _ = writeln!(
        text,
        "# HELP {name} How long kubelet's calls for devices took\n# TYPE {name} histogram"
    );
    for (bound, bucket) in BOUNDS.iter().zip(&counters.latency) {
        let _ = writeln!(
            text,
            "{name}_bucket{{le=\"{bound}\"}} {}",
            bucket.load(Relaxed)
        );
    }
    let all = counters.allocations.load(Relaxed) + counters.refusals.load(Relaxed);
    let sum = Duration::from_nanos(counters.latency_nanos.load(Relaxed)).as_secs_f64();
    let _ = writeln!(
        text,
        "{name}_bucket{{le=\"+Inf\"}} {all}\n{name}_sum {sum}\n{name}_count {all}"
    );
}
