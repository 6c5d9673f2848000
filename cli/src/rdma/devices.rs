//! `trackbed rdma devices`.

use super::{print, print_json, table};
use crate::Output;
use crate::exit::Failure;
use clap::Args;
use trackbed_rdma::devices::{Device, Inventory, Port};

const AFTER_HELP: &str = "\
Examples:
  trackbed rdma devices
  trackbed rdma devices --output json | jq '.devices[].ports[] | select(.state != \"ACTIVE\")'

Without devices it says what is missing and ends with status 0; JSON then has an empty list.";

/// List RDMA devices: ports, state, addresses, net device, place in the machine
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DevicesArgs {
    /// The form of what is printed
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    output: Output,
}

pub(crate) fn run(args: DevicesArgs) -> Result<(), Failure> {
    let inventory = Inventory::here().map_err(Failure::unable)?;
    match args.output {
        Output::Json => print_json(&inventory),
        Output::Table => print(&text(&inventory)),
    }
}

fn text(inventory: &Inventory) -> String {
    let mut parts = Vec::new();
    if !inventory.devices.is_empty() {
        parts.push(devices(&inventory.devices));
        parts.push(addresses(&inventory.devices));
    }
    parts.extend(inventory.notes.iter().map(|note| format!("Note: {note}")));
    parts.join("\n\n")
}

fn devices(devices: &[Device]) -> String {
    let mut table = table(&[
        "DEVICE", "PORT", "STATE", "LINK", "RATE", "MTU", "NETDEV", "PCI", "NUMA", "FIRMWARE",
    ]);
    for device in devices {
        for port in &device.ports {
            table.add_row([
                name(device),
                port.number.to_string(),
                state(port),
                port.link_layer.clone().unwrap_or_else(unknown),
                port.rate_gbps
                    .map_or_else(unknown, |rate| format!("{rate} Gb/s")),
                mtu(port),
                port.net_device.clone().unwrap_or_else(unknown),
                device.pci_address.clone().unwrap_or_else(unknown),
                device
                    .numa_node
                    .map_or_else(unknown, |node| node.to_string()),
                device.firmware.clone().unwrap_or_else(unknown),
            ]);
        }
    }
    table.to_string()
}

fn addresses(devices: &[Device]) -> String {
    let mut table = table(&["DEVICE", "PORT", "INDEX", "GID", "TYPE", "NETDEV"]);
    for device in devices {
        for port in &device.ports {
            for gid in &port.gids {
                table.add_row([
                    device.name.clone(),
                    port.number.to_string(),
                    gid.index.to_string(),
                    gid.gid.clone(),
                    gid.kind.clone().unwrap_or_else(unknown),
                    gid.net_device.clone().unwrap_or_else(unknown),
                ]);
            }
        }
    }
    table.to_string()
}

fn name(device: &Device) -> String {
    if device.is_virtual {
        format!("{} (virtual)", device.name)
    } else {
        device.name.clone()
    }
}

fn state(port: &Port) -> String {
    match (&port.state, &port.physical_state) {
        (Some(state), Some(physical)) => format!("{state} ({physical})"),
        (Some(state), None) => state.clone(),
        _ => unknown(),
    }
}

fn mtu(port: &Port) -> String {
    match (port.active_mtu, port.max_mtu) {
        (Some(active), Some(max)) if active < max => format!("{active} (of {max})"),
        (Some(active), _) => active.to_string(),
        _ => unknown(),
    }
}

fn unknown() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trackbed_rdma::devices::PortGid;

    fn inventory() -> Inventory {
        let gid = PortGid {
            index: 3,
            gid: "::ffff:10.0.0.5".into(),
            kind: Some("rocev2-ipv4".into()),
            net_device: Some("ens1f0".into()),
        };
        let port = Port {
            number: 1,
            state: Some("ACTIVE".into()),
            physical_state: Some("LinkUp".into()),
            rate_gbps: Some(100.0),
            link_layer: Some("Ethernet".into()),
            lid: Some(0),
            active_mtu: Some(1024),
            max_mtu: Some(4096),
            net_device: Some("ens1f0".into()),
            gids: vec![gid],
        };
        let device = Device {
            name: "mlx5_0".into(),
            node_type: Some("CA".into()),
            node_guid: None,
            firmware: None,
            model: None,
            is_virtual: false,
            pci_address: Some("0000:3b:00.0".into()),
            numa_node: Some(1),
            queue_depth_limit: None,
            ports: vec![port],
        };
        Inventory {
            devices: vec![device],
            notes: vec!["look here".into()],
        }
    }

    #[test]
    fn a_person_sees_state_speed_place_addresses_and_notes() {
        let text = text(&inventory());
        for part in [
            "ACTIVE (LinkUp)",
            "100 Gb/s",
            "1024 (of 4096)",
            "0000:3b:00.0",
            "rocev2-ipv4",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert!(text.ends_with("Note: look here"));
    }

    #[test]
    fn without_devices_only_the_reason_is_printed() {
        let none = Inventory {
            devices: Vec::new(),
            notes: vec!["no RDMA device".into()],
        };
        assert_eq!(text(&none), "Note: no RDMA device");
        let json = serde_json::to_value(&none).expect("JSON");
        assert_eq!(json["devices"], serde_json::json!([]));
    }
}
