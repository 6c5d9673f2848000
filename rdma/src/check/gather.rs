//! From sysfs, procfs, netlink and verbs to facts. Nothing is judged here, and what can't be read is
//! left out.

mod node;
mod pci;
mod port;

use std::path::Path;

use super::Selection;
use super::facts::{DeviceFacts, Facts, PciLink, Verbs};
use crate::devices::{Device, Inventory, InventoryError, Port};
use crate::kernel_files;
use crate::verbs::{self, Context, VerbsError};

/// What to look at.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    /// `/`, or the folder that a tree was recorded to.
    pub root: &'a Path,
    /// Whether this machine itself may be asked (verbs, netlink) besides the files below the root.
    pub live: bool,
    /// These devices and ports; all of them when empty.
    pub selections: &'a [Selection],
}

impl Scope<'_> {
    fn wants_device(&self, name: &str) -> bool {
        self.selections.is_empty() || self.selections.iter().any(|wanted| wanted.device == name)
    }

    fn wants_port(&self, device: &str, number: u32) -> bool {
        self.selections.is_empty()
            || self.selections.iter().any(|wanted| {
                wanted.device == device && wanted.port.is_none_or(|port| port == number)
            })
    }
}

/// Collects the facts; or the sentence that says why there is nothing to collect.
pub fn gather(scope: &Scope<'_>) -> Result<Facts, GatherError> {
    let inventory = Inventory::read(scope.root)?;
    if inventory.devices.is_empty() {
        return Err(GatherError::NoDevice(inventory.notes.join(" ")));
    }
    missing(scope.selections, &inventory.devices)?;
    let devices = inventory
        .devices
        .into_iter()
        .filter(|device| scope.wants_device(&device.name))
        .map(|device| of_device(scope, device))
        .collect();
    Ok(Facts {
        node: node::read(scope.root),
        devices,
    })
}

/// The facts of a node without RDMA devices, or apart from them.
pub fn gather_node(root: &Path) -> Facts {
    Facts {
        node: node::read(root),
        devices: Vec::new(),
    }
}

/// Why there is nothing to judge.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// sysfs can't be read.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// There is no device at all.
    #[error("{0}")]
    NoDevice(String),
    /// There is none of the name asked for.
    #[error("there is no RDMA device or port {wanted}; there is {known}")]
    NotThere {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: String,
    },
}

fn missing(selections: &[Selection], devices: &[Device]) -> Result<(), GatherError> {
    for wanted in selections {
        let there = devices.iter().any(|device| {
            device.name == wanted.device
                && wanted
                    .port
                    .is_none_or(|number| device.ports.iter().any(|port| port.number == number))
        });
        if !there {
            let known: Vec<String> = devices
                .iter()
                .flat_map(|device| {
                    device
                        .ports
                        .iter()
                        .map(|port| format!("{}/{}", device.name, port.number))
                })
                .collect();
            let wanted = match wanted.port {
                Some(port) => format!("{}/{port}", wanted.device),
                None => wanted.device.clone(),
            };
            return Err(GatherError::NotThere {
                wanted,
                known: known.join(", "),
            });
        }
    }
    Ok(())
}

fn of_device(scope: &Scope<'_>, mut device: Device) -> DeviceFacts {
    let folder = scope.root.join("sys/class/infiniband").join(&device.name);
    let verbs = if scope.live {
        ask_verbs(&mut device)
    } else {
        Verbs::NotAsked
    };
    let wanted: Vec<&Port> = device
        .ports
        .iter()
        .filter(|port| scope.wants_port(&device.name, port.number))
        .collect();
    let ports = wanted
        .into_iter()
        .map(|port| port::read(scope, &device, &folder, port))
        .collect();
    let pci: Option<PciLink> = (!device.is_virtual)
        .then(|| pci::read(scope.root, &folder.join("device")))
        .flatten();
    DeviceFacts {
        board: kernel_files::text(&folder.join("board_id")).or_else(|| device.model.clone()),
        uverbs: uverbs(scope.root, &device.name),
        verbs,
        pci,
        ports,
        device,
    }
}

/// The name of the user-space device that belongs to an RDMA device.
fn uverbs(root: &Path, device: &str) -> Option<String> {
    let class = root.join("sys/class/infiniband_verbs");
    kernel_files::names(&class)
        .into_iter()
        .find(|name| kernel_files::text(&class.join(name).join("ibdev")).as_deref() == Some(device))
}

fn ask_verbs(device: &mut Device) -> Verbs {
    let context = match Context::open(&device.name) {
        Ok(context) => context,
        Err(VerbsError::Library(error)) => return Verbs::NoLibrary(error.to_string()),
        Err(VerbsError::NoDevice { .. }) => {
            let known = verbs::device_names().unwrap_or_default();
            return Verbs::Failed(format!("libibverbs offers {known:?}, not {}", device.name));
        }
        Err(error) => return Verbs::Failed(error.to_string()),
    };
    device.queue_depth_limit = Some(context.limits().queue_depth);
    for port in &mut device.ports {
        let Ok(number) = u8::try_from(port.number) else {
            continue;
        };
        match context.port(number) {
            Ok(attributes) => {
                port.active_mtu = Some(attributes.active_mtu.bytes());
                port.max_mtu = Some(attributes.max_mtu.bytes());
            }
            Err(error) => return Verbs::Failed(error.to_string()),
        }
    }
    Verbs::Opened
}
