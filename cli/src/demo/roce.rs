//! RDMA devices for the nodes: soft-RoCE over each node's net device, and what the devices count.

use super::network::{NET_DEVICE, Network, Place, run_with_input};
use super::report::VerbsReport;
use crate::exit::Failure;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a new device may take until its port is active.
const ACTIVE_WITHIN: Duration = Duration::from_secs(10);

/// Payload of a packet: what an Ethernet of 9000 allows RoCE.
const PATH_MTU: u64 = 4096;

/// The counter of packets that arrived, as rxe names it.
const RECEIVED: &str = "rcvd_pkts";

/// And of their bytes, headers included.
const RECEIVED_BYTES: &str = "rcvd_bytes";

const INFINIBAND: &str = "/sys/class/infiniband";

/// The name of a node's device.
pub(crate) fn device_name(node: usize) -> String {
    format!("rxe{}", node + 1)
}

/// Makes a soft-RoCE device in each node's namespace and waits until all are active.
pub(crate) fn make_devices(network: &Network) -> Result<(), String> {
    if let Some(because) = &network.loopback_because {
        return Err(format!(
            "the nodes share loopback, where no RDMA device can be ({because})"
        ));
    }
    for (node, place) in network.places().iter().enumerate() {
        let device = device_name(node);
        let made = place.run(|| {
            let add = ["link", "add", &device, "type", "rxe", "netdev", NET_DEVICE];
            run_with_input("rdma", &add, "").and_then(|()| wait_active(&device))
        });
        made.map_err(|failure| failure.to_string())??;
    }
    Ok(())
}

/// The sentence for somebody who asked for verbs on a machine that has none.
pub(crate) fn no_verbs(why: &str) -> Failure {
    Failure::unable(format!(
        "the nodes cannot have RDMA devices here: {why}: `modprobe rdma_rxe` and run as root (from \
         Linux 7.1 on), or see it in a virtual machine with `hack/vm run -- trackbed demo \
         --fabric verbs`, or take --fabric tcp"
    ))
}

fn wait_active(device: &str) -> Result<(), String> {
    let state = Path::new(INFINIBAND).join(device).join("ports/1/state");
    let start = Instant::now();
    loop {
        let said = std::fs::read_to_string(&state);
        if said.as_ref().is_ok_and(|said| said.contains("ACTIVE")) {
            return Ok(());
        }
        if start.elapsed() > ACTIVE_WITHIN {
            let said = said.map_or_else(|error| error.to_string(), |said| said.trim().to_owned());
            return Err(format!("{device} port 1 did not become ACTIVE ({said})"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The counters of all devices at one moment, summed by name.
pub(crate) fn read_counters(network: &Network) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (node, place) in network.places().iter().enumerate() {
        let counters = read_device(place, &device_name(node));
        for (name, value) in counters.unwrap_or_default() {
            *sums.entry(name).or_default() += value;
        }
    }
    sums
}

/// As `rdma statistic` says: the device's hw_counters are not in the /sys of a network namespace.
fn read_device(place: &Place, device: &str) -> Result<BTreeMap<String, u64>, Failure> {
    let link = format!("{device}/1");
    let said = place.run(|| {
        Command::new("rdma")
            .args(["-j", "statistic", "show", "link", &link])
            .output()
    })?;
    let said = said.map(|output| output.stdout).unwrap_or_default();
    let links: Vec<BTreeMap<String, Value>> = serde_json::from_slice(&said).unwrap_or_default();
    let counters = links.into_iter().flatten();
    Ok(counters
        .filter(|(name, _)| name != "port")
        .filter_map(|(name, value)| Some((name, value.as_u64()?)))
        .collect())
}

/// What moved between two readings, beside the bytes that the verbs path counted.
pub(crate) fn compare(
    before: &BTreeMap<String, u64>,
    after: BTreeMap<String, u64>,
    fabric_bytes_received: u64,
) -> VerbsReport {
    let moved = |(name, value): (String, u64)| {
        let delta = value.saturating_sub(before.get(&name).copied().unwrap_or(0));
        (delta > 0).then_some((name, delta))
    };
    let hw_counters: BTreeMap<_, _> = after.into_iter().filter_map(moved).collect();
    let counted = |name: &str| hw_counters.get(name).copied();
    let packets_received = counted(RECEIVED).unwrap_or(0);
    // Not every kernel counts bytes too.
    let bytes_suffice = counted(RECEIVED_BYTES).is_none_or(|bytes| bytes >= fabric_bytes_received);
    let packets_suffice = packets_received.saturating_mul(PATH_MTU) >= fabric_bytes_received;
    VerbsReport {
        fabric_bytes_received,
        path_mtu: PATH_MTU,
        packets_received,
        agree: packets_suffice && bytes_suffice,
        hw_counters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(packets: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([
            (RECEIVED.to_owned(), packets),
            ("retry_exceeded_err".to_owned(), 2),
        ])
    }

    #[test]
    fn bytes_need_packets() {
        assert!(compare(&counters(10), counters(20), 10 * 4096).agree);
        assert!(!compare(&counters(10), counters(20), 10 * 4096 + 1).agree);
        assert!(!compare(&counters(10), counters(10), 1).agree);
    }

    #[test]
    fn bytes_need_as_many_counted_by_the_device() {
        let after = |bytes| {
            let mut counters = counters(100);
            counters.insert(RECEIVED_BYTES.to_owned(), bytes);
            counters
        };
        assert!(compare(&counters(0), after(5000), 4096).agree);
        assert!(!compare(&counters(0), after(4000), 4096).agree);
    }

    #[test]
    fn only_what_moved_is_told() {
        let report = compare(&counters(10), counters(20), 0);
        assert_eq!(
            report.hw_counters,
            BTreeMap::from([(RECEIVED.to_owned(), 10)])
        );
    }
}
