//! Reads `/sys/class/infiniband`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::kernel_files::text;

use super::{Device, InventoryError, Port, PortGid};
use crate::verbs::{Gid, GidKind, LinkLayer};

const CLASS: &str = "sys/class/infiniband";

/// Reads a port's addresses, given its folder and link layer.
type ReadGids = fn(&Path, Option<&str>) -> Vec<PortGid>;

pub(super) fn devices(root: &Path, read_gids: ReadGids) -> Result<Vec<Device>, InventoryError> {
    let names = match entries(&root.join(CLASS)) {
        Ok(names) => names,
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let device = |name| device(root, name, read_gids);
    names.into_iter().map(device).collect()
}

/// What stands in the way of having a device, as far as can be told.
pub(super) fn why_none(root: &Path) -> String {
    if root.join(CLASS).is_dir() {
        "no RDMA device: the kernel has RDMA support, but no adapter's driver registered one. A net \
         device can be given soft-RoCE for trying things out: \
         `rdma link add rxe0 type rxe netdev eth0` (needs the rdma_rxe module)"
            .to_owned()
    } else {
        "no RDMA device: the kernel has no RDMA support loaded. Load it with `modprobe ib_uverbs` and the \
         adapter's driver (mlx5_ib, …); kernels for cloud machines may need linux-modules-extra. \
         Trackbed works without, over TCP"
            .to_owned()
    }
}

fn device(root: &Path, name: String, read_gids: ReadGids) -> Result<Device, InventoryError> {
    let folder = root.join(CLASS).join(&name);
    let physical = folder.join("device").is_dir();
    let numbers = match entries(&folder.join("ports")) {
        Ok(numbers) => numbers,
        // It was removed while we looked.
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    // Only what software makes of a net device has one.
    let parent = (!physical).then(|| text(&folder.join("parent"))).flatten();
    let mut ports: Vec<Port> = numbers
        .iter()
        .filter_map(|number| number.parse().ok())
        .map(|number: u32| {
            port(
                &folder.join("ports").join(number.to_string()),
                number,
                &parent,
                read_gids,
            )
        })
        .collect();
    ports.sort_by_key(|port| port.number);
    let bus = if physical {
        folder.join("device")
    } else {
        let net_device = parent.clone().or_else(|| ports.first()?.net_device.clone());
        root.join("sys/class/net")
            .join(net_device.unwrap_or_default())
            .join("device")
    };
    Ok(Device {
        node_type: text(&folder.join("node_type")).map(|text| after_number(&text)),
        node_guid: text(&folder.join("node_guid")),
        firmware: text(&folder.join("fw_ver")),
        model: text(&folder.join("hca_type")).or_else(|| text(&folder.join("board_id"))),
        is_virtual: !physical,
        pci_address: pci_address(&bus),
        numa_node: text(&bus.join("numa_node")).and_then(|node| node.parse().ok()),
        queue_depth_limit: None,
        ports,
        name,
    })
}

fn port(folder: &Path, number: u32, parent: &Option<String>, read_gids: ReadGids) -> Port {
    let link_layer = text(&folder.join("link_layer"));
    let gids = read_gids(folder, link_layer.as_deref());
    let net_device = gids
        .iter()
        .find_map(|gid| gid.net_device.clone())
        .or_else(|| parent.clone());
    Port {
        number,
        state: text(&folder.join("state")).map(|text| after_number(&text)),
        physical_state: text(&folder.join("phys_state")).map(|text| after_number(&text)),
        rate_gbps: text(&folder.join("rate"))
            .and_then(|text| text.split_whitespace().next()?.parse().ok()),
        lid: text(&folder.join("lid"))
            .and_then(|text| u16::from_str_radix(text.trim_start_matches("0x"), 16).ok()),
        active_mtu: None,
        max_mtu: None,
        link_layer,
        net_device,
        gids,
    }
}

pub(super) fn gids(folder: &Path, link_layer: Option<&str>) -> Vec<PortGid> {
    gids_in_order(folder, link_layer).collect()
}

/// The addresses of a port, by index, each read when it is asked for.
pub(super) fn gids_in_order(
    folder: &Path,
    link_layer: Option<&str>,
) -> impl Iterator<Item = PortGid> {
    let link_layer = match link_layer {
        Some("Ethernet") => LinkLayer::Ethernet,
        _ => LinkLayer::InfiniBand,
    };
    let names = entries(&folder.join("gids")).unwrap_or_default();
    let mut indexes: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    indexes.sort_unstable();
    indexes.into_iter().filter_map(move |index| {
        let name = index.to_string();
        let address: std::net::Ipv6Addr = text(&folder.join("gids").join(&name))?.parse().ok()?;
        let gid = Gid(address.octets());
        if gid.is_zero() {
            return None;
        }
        let attributes = folder.join("gid_attrs");
        Some(PortGid {
            index,
            gid: gid.to_string(),
            kind: text(&attributes.join("types").join(&name))
                .and_then(|text| GidKind::from_sysfs(&text, &gid, link_layer))
                .map(|kind| kind.to_string()),
            net_device: text(&attributes.join("ndevs").join(&name)),
        })
    })
}

/// Where a device's port has its files.
pub(super) fn port_folder(root: &Path, device: &str, number: u32) -> PathBuf {
    root.join(CLASS)
        .join(device)
        .join("ports")
        .join(number.to_string())
}

/// The last part of the link's target, when it is a PCI address.
fn pci_address(bus: &Path) -> Option<String> {
    let target = fs::read_link(bus).ok()?;
    let name = target.file_name()?.to_str()?;
    let (domain, rest) = name.split_once(':')?;
    let is_address = domain.len() >= 4
        && rest.len() == 7
        && name
            .chars()
            .all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
    is_address.then(|| name.to_owned())
}

/// sysfs writes `4: ACTIVE`.
fn after_number(text: &str) -> String {
    text.split_once(": ")
        .map_or(text, |(_, name)| name)
        .trim()
        .to_owned()
}

fn entries(folder: &Path) -> Result<Vec<String>, InventoryError> {
    let failed = |source| InventoryError {
        path: PathBuf::from(folder),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::Inventory;
    use super::*;

    /// A file tree in the shape of sysfs, with values recorded on real machines.
    struct Recorded(TempDir);

    impl Recorded {
        fn new() -> Recorded {
            Recorded(TempDir::new().expect("a temporary folder"))
        }

        fn file(&self, path: &str, text: &str) -> &Recorded {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            fs::write(path, text).expect("a file");
            self
        }

        fn link(&self, path: &str, target: &str) -> &Recorded {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            symlink(target, path).expect("a link");
            self
        }

        fn read(&self) -> Inventory {
            Inventory::read(self.0.path()).expect("an inventory")
        }
    }

    fn mlx5(tree: &Recorded) {
        let base = "sys/devices/pci0000:3a/0000:3b:00.0";
        tree.file(&format!("{base}/numa_node"), "1\n")
            .link(
                "sys/class/infiniband/mlx5_0/device",
                "../../../devices/pci0000:3a/0000:3b:00.0",
            )
            .file("sys/class/infiniband/mlx5_0/node_type", "1: CA\n")
            .file(
                "sys/class/infiniband/mlx5_0/node_guid",
                "b859:9f03:00a1:b2c4\n",
            )
            .file("sys/class/infiniband/mlx5_0/fw_ver", "16.35.2000\n")
            .file("sys/class/infiniband/mlx5_0/hca_type", "MT4119\n");
        let port = "sys/class/infiniband/mlx5_0/ports/1";
        let zero = "0000:0000:0000:0000:0000:0000:0000:0000\n";
        tree.file(&format!("{port}/state"), "4: ACTIVE\n")
            .file(&format!("{port}/phys_state"), "5: LinkUp\n")
            .file(&format!("{port}/rate"), "100 Gb/sec (4X EDR)\n")
            .file(&format!("{port}/link_layer"), "Ethernet\n")
            .file(&format!("{port}/lid"), "0x0\n")
            .file(
                &format!("{port}/gids/0"),
                "fe80:0000:0000:0000:ba59:9fff:fea1:b2c4\n",
            )
            .file(
                &format!("{port}/gids/3"),
                "0000:0000:0000:0000:0000:ffff:0a00:0005\n",
            )
            .file(&format!("{port}/gids/4"), zero)
            .file(&format!("{port}/gid_attrs/types/0"), "IB/RoCE v1\n")
            .file(&format!("{port}/gid_attrs/types/3"), "RoCE v2\n")
            .file(&format!("{port}/gid_attrs/ndevs/0"), "ens1f0\n")
            .file(&format!("{port}/gid_attrs/ndevs/3"), "ens1f0\n");
    }

    #[test]
    fn an_adapter_is_shown_with_its_place_and_its_addresses() {
        let tree = Recorded::new();
        mlx5(&tree);
        let inventory = tree.read();
        assert!(inventory.notes.is_empty());
        let device = &inventory.devices[0];
        assert_eq!(device.name, "mlx5_0");
        assert_eq!(device.pci_address.as_deref(), Some("0000:3b:00.0"));
        assert_eq!(device.numa_node, Some(1));
        assert_eq!(device.firmware.as_deref(), Some("16.35.2000"));
        assert!(!device.is_virtual);
        let port = &device.ports[0];
        assert_eq!(port.state.as_deref(), Some("ACTIVE"));
        assert_eq!(port.physical_state.as_deref(), Some("LinkUp"));
        assert_eq!(port.rate_gbps, Some(100.0));
        assert_eq!(port.net_device.as_deref(), Some("ens1f0"));
        let gids: Vec<_> = port
            .gids
            .iter()
            .map(|gid| (gid.index, gid.kind.as_deref().unwrap_or("?")))
            .collect();
        assert_eq!(gids, [(0, "rocev1"), (3, "rocev2-ipv4")]);
        assert_eq!(port.gids[1].gid, "::ffff:10.0.0.5");
    }

    #[test]
    fn soft_roce_is_virtual_and_found_by_its_net_device() {
        let tree = Recorded::new();
        let port = "sys/class/infiniband/rxe0/ports/1";
        tree.file("sys/class/infiniband/rxe0/node_type", "1: CA\n")
            .file("sys/class/infiniband/rxe0/parent", "eth1\n")
            .file("sys/class/infiniband/rxe0/fw_ver", "\n")
            .file(&format!("{port}/state"), "1: DOWN\n")
            .file(&format!("{port}/link_layer"), "Ethernet\n")
            .file("sys/devices/pci0000:00/0000:01:10.2/numa_node", "-1\n")
            .link(
                "sys/class/net/eth1/device",
                "../../../devices/pci0000:00/0000:01:10.2",
            );
        let inventory = tree.read();
        let device = &inventory.devices[0];
        assert!(device.is_virtual);
        assert_eq!(device.firmware, None);
        assert_eq!(device.pci_address.as_deref(), Some("0000:01:10.2"));
        assert_eq!(device.numa_node, None);
        assert_eq!(device.ports[0].net_device.as_deref(), Some("eth1"));
        assert_eq!(device.ports[0].state.as_deref(), Some("DOWN"));
    }

    #[test]
    fn infiniband_gids_are_not_taken_for_roce() {
        let tree = Recorded::new();
        let port = "sys/class/infiniband/ib0/ports/1";
        tree.file(&format!("{port}/link_layer"), "InfiniBand\n")
            .file(&format!("{port}/lid"), "0x1f\n")
            .file(
                &format!("{port}/gids/0"),
                "fe80:0000:0000:0000:0002:c903:00ef:5ec1\n",
            )
            .file(&format!("{port}/gid_attrs/types/0"), "IB/RoCE v1\n");
        let port = &tree.read().devices[0].ports[0];
        assert_eq!(port.lid, Some(31));
        assert_eq!(port.gids[0].kind.as_deref(), Some("infiniband"));
        assert_eq!(port.net_device, None);
    }

    #[test]
    fn without_devices_the_notes_say_what_to_do() {
        let tree = Recorded::new();
        let nothing = tree.read();
        assert!(nothing.devices.is_empty());
        assert!(
            nothing.notes[0].contains("modprobe ib_uverbs"),
            "{:?}",
            nothing.notes
        );
        fs::create_dir_all(tree.0.path().join(CLASS)).expect("folders");
        let empty = tree.read();
        assert!(empty.devices.is_empty());
        assert!(
            empty.notes[0].contains("rdma link add"),
            "{:?}",
            empty.notes
        );
    }

    #[test]
    fn a_half_written_tree_is_shown_as_far_as_it_goes() {
        let tree = Recorded::new();
        tree.file("sys/class/infiniband/odd/ports/1/rate", "nonsense\n")
            .file("sys/class/infiniband/odd/ports/x/state", "4: ACTIVE\n")
            .file(
                "sys/class/infiniband/odd/ports/1/gids/0",
                "not an address\n",
            );
        let inventory = tree.read();
        let port = &inventory.devices[0].ports[0];
        assert_eq!((port.rate_gbps, port.gids.len()), (None, 0));
        assert_eq!(inventory.devices[0].ports.len(), 1);
    }
}
