//! What RDMA hardware (and soft-RoCE) this machine has.
//!
//! [`Inventory::read`] takes everything from sysfs, which needs no library and no privilege;
//! [`Inventory::here`] adds what only verbs know, where libibverbs is installed. An empty inventory is
//! not an error: its notes say what is missing and what to do about it.

mod sysfs;

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::verbs::{self, Context, GidKind, VerbsError};

/// Why the inventory could not be taken.
#[derive(Debug, Error)]
#[error("cannot read {}: {source}; is sysfs mounted, and readable for this user?", .path.display())]
pub struct InventoryError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// All RDMA devices, and what is worth knowing besides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inventory {
    /// The devices, by name.
    pub devices: Vec<Device>,
    /// What is missing and what to do, for a person to read.
    pub notes: Vec<String>,
}

/// One RDMA device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    /// Its name, such as `mlx5_0` or `rxe0`.
    pub name: String,
    /// What it is: `CA`, `RNIC` or `switch`.
    pub node_type: Option<String>,
    /// Its node GUID, as sysfs prints it.
    pub node_guid: Option<String>,
    /// Its firmware version.
    pub firmware: Option<String>,
    /// Its model, as the driver names it.
    pub model: Option<String>,
    /// Whether it is made of software, on a net device.
    #[serde(rename = "virtual")]
    pub is_virtual: bool,
    /// PCI address; of a virtual device, that of its net device.
    pub pci_address: Option<String>,
    /// NUMA node, likewise; `None` where the platform doesn't say.
    pub numa_node: Option<u32>,
    /// Deepest queue a queue pair may have, when verbs could be asked.
    pub queue_depth_limit: Option<u32>,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// One port of a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Port {
    /// Its number, from 1.
    pub number: u32,
    /// `ACTIVE`, `DOWN`, `INIT`, `ARMED`, …
    pub state: Option<String>,
    /// `LinkUp`, `Disabled`, `Polling`, …
    pub physical_state: Option<String>,
    /// Rate in Gb/s; what the driver claims, which for virtual devices means nothing.
    pub rate_gbps: Option<f64>,
    /// `Ethernet` or `InfiniBand`.
    pub link_layer: Option<String>,
    /// The local identifier, 0 on Ethernet.
    pub lid: Option<u16>,
    /// MTU in use, in bytes, when verbs could be asked.
    pub active_mtu: Option<u32>,
    /// Largest MTU, in bytes, when verbs could be asked.
    pub max_mtu: Option<u32>,
    /// The net device that it belongs to, on Ethernet.
    pub net_device: Option<String>,
    /// Its addresses.
    pub gids: Vec<PortGid>,
}

/// One address of a port.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PortGid {
    /// Index in the port's table.
    pub index: u32,
    /// The GID.
    pub gid: String,
    /// `infiniband`, `rocev1`, `rocev2-ipv4` or `rocev2-ipv6`.
    pub kind: Option<String>,
    /// The net device it is of.
    pub net_device: Option<String>,
}

impl Inventory {
    /// Reads the sysfs below `root` (`/` but for tests), and nothing else.
    pub fn read(root: &Path) -> Result<Inventory, InventoryError> {
        Ok(Inventory::of(root, sysfs::devices(root, sysfs::gids)?))
    }

    /// As [`Inventory::read`], without the ports' addresses: those tables have hundreds of entries, each a
    /// few files, which with a thousand virtual functions takes seconds.
    pub fn outline(root: &Path) -> Result<Inventory, InventoryError> {
        Ok(Inventory::of(
            root,
            sysfs::devices(root, |_, _| Vec::new())?,
        ))
    }

    /// Whether a port of a device has an address of this kind in the sysfs below `root`. What
    /// [`Inventory::outline`] leaves out is read as far as the first that is.
    pub fn has_gid(root: &Path, device: &Device, port: &Port, kind: GidKind) -> bool {
        let folder = sysfs::port_folder(root, &device.name, port.number);
        let wanted = kind.to_string();
        let mut gids = sysfs::gids_in_order(&folder, port.link_layer.as_deref());
        gids.any(|gid| gid.kind.as_deref() == Some(wanted.as_str()))
    }

    fn of(root: &Path, devices: Vec<Device>) -> Inventory {
        let mut notes = Vec::new();
        if devices.is_empty() {
            notes.push(sysfs::why_none(root));
        }
        Inventory { devices, notes }
    }

    /// What this machine has, from sysfs and from verbs.
    pub fn here() -> Result<Inventory, InventoryError> {
        let mut inventory = Inventory::read(Path::new("/"))?;
        match verbs::device_names() {
            Ok(names) => {
                for device in &mut inventory.devices {
                    if let Err(note) = ask_verbs(device, &names) {
                        inventory.notes.push(note);
                    }
                }
            }
            // Without devices, why there are none is the thing to say; without the library, how to get it.
            Err(error)
                if !inventory.devices.is_empty() || matches!(error, VerbsError::Library(_)) =>
            {
                inventory.notes.push(error.to_string());
            }
            Err(_) => {}
        }
        for device in &inventory.devices {
            inventory
                .notes
                .extend(device.ports.iter().filter_map(|port| down(device, port)));
        }
        Ok(inventory)
    }
}

/// Fills in what sysfs doesn't have, or says why that can't be.
fn ask_verbs(device: &mut Device, known: &[String]) -> Result<(), String> {
    if !known.contains(&device.name) {
        return Err(format!(
            "{}: the kernel has it but libibverbs doesn't offer it: its provider (ibverbs-providers) is \
             not installed, or /dev/infiniband/uverbs* isn't there for this container",
            device.name
        ));
    }
    let context = Context::open(&device.name).map_err(|error| error.to_string())?;
    device.queue_depth_limit = Some(context.limits().queue_depth);
    for port in &mut device.ports {
        let Ok(number) = u8::try_from(port.number) else {
            continue;
        };
        let attributes = context.port(number).map_err(|error| error.to_string())?;
        port.active_mtu = Some(attributes.active_mtu.bytes());
        port.max_mtu = Some(attributes.max_mtu.bytes());
    }
    Ok(())
}

fn down(device: &Device, port: &Port) -> Option<String> {
    let state = port.state.as_deref()?;
    if state == "ACTIVE" {
        return None;
    }
    let physical = port.physical_state.as_deref().unwrap_or("unknown");
    let remedy = match &port.net_device {
        Some(net_device) => format!("bring up its net device {net_device}"),
        None => "check its cable, and that a subnet manager runs if it is InfiniBand".to_owned(),
    };
    let (name, number) = (&device.name, port.number);
    Some(format!(
        "{name} port {number} is {state} (physical state {physical}): {remedy}"
    ))
}
