//! Facts about one port and its net device.

use std::path::Path;

use super::Scope;
use crate::check::counters::Counters;
use crate::check::dcb;
use crate::check::facts::{FlowControl, LinkRate, Load, NetDevice, PortFacts};
use crate::devices::{Device, Port};
use crate::kernel_files;

pub(super) fn read(scope: &Scope<'_>, device: &Device, folder: &Path, port: &Port) -> PortFacts {
    let ports = folder.join("ports").join(port.number.to_string());
    let net = port
        .net_device
        .as_deref()
        .map(|name| net_device(scope.root, name));
    let is_ethernet = port.link_layer.as_deref() == Some("Ethernet");
    let flow = match &net {
        Some(net) if is_ethernet && !device.is_virtual => flow(scope, &net.name),
        _ => FlowControl::default(),
    };
    PortFacts {
        number: port.number,
        rate: kernel_files::text(&ports.join("rate")).and_then(|text| rate(&text)),
        net,
        flow,
        counters: Counters::read(&ports),
        load: Load::Skipped,
    }
}

/// No port has more Gb/s than this for many years: a larger number is garbage.
const FASTEST: f64 = 100_000.0;

/// `100 Gb/sec (4X EDR)`.
fn rate(text: &str) -> Option<LinkRate> {
    let gbps: f64 = text.split_whitespace().next()?.parse().ok()?;
    if !(gbps > 0.0 && gbps <= FASTEST) {
        return None;
    }
    let inside = text
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map_or("", |(inside, _)| inside);
    let mut words = inside.split_whitespace();
    Some(LinkRate {
        gbps,
        lanes: words
            .next()
            .and_then(|word| word.strip_suffix('X')?.parse().ok()),
        generation: words.next().map(str::to_owned),
    })
}

fn net_device(root: &Path, name: &str) -> NetDevice {
    let folder = root.join("sys/class/net").join(name);
    NetDevice {
        name: name.to_owned(),
        mtu: kernel_files::value(&folder.join("mtu")),
        speed_mbps: kernel_files::value(&folder.join("speed")),
        duplex: kernel_files::text(&folder.join("duplex")).filter(|text| text != "unknown"),
    }
}

fn flow(scope: &Scope<'_>, net_device: &str) -> FlowControl {
    let ecn = scope
        .root
        .join("sys/class/net")
        .join(net_device)
        .join("ecn");
    let notifying = priorities(&ecn.join("roce_np/enable"));
    let reacting = priorities(&ecn.join("roce_rp/enable"));
    FlowControl {
        pfc: scope
            .live
            .then(|| dcb::priorities(net_device).map_err(|error| error.to_string())),
        ecn: notifying.zip(reacting).map(|(np, rp)| np & rp),
        pause: scope.live.then(|| dcb::pause(net_device).ok()).flatten(),
    }
}

/// A folder with a file for each priority that holds 0 or 1, as mlx5's driver has it.
fn priorities(folder: &Path) -> Option<u8> {
    let mut found = None;
    for priority in 0..8u8 {
        if let Some(on) = kernel_files::value::<u8>(&folder.join(priority.to_string())) {
            *found.get_or_insert(0) |= u8::from(on != 0) << priority;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read_as_drivers_print_them() {
        let full = rate("100 Gb/sec (4X EDR)").expect("a rate");
        assert_eq!((full.gbps, full.lanes), (100.0, Some(4)));
        assert_eq!(full.generation.as_deref(), Some("EDR"));
        let slow = rate("2.5 Gb/sec (1X SDR)").expect("a rate");
        assert_eq!((slow.gbps, slow.lanes), (2.5, Some(1)));
        assert_eq!(rate("25 Gb/sec").expect("a rate").lanes, None);
        for garbage in ["", "fast", "NaN Gb/sec", "-1 Gb/sec", "9e99 Gb/sec (X )"] {
            assert_eq!(rate(garbage), None, "{garbage}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_rates_never_panic(text in ".{0,40}") {
            rate(&text);
        }
    }
}
