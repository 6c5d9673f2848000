//! What is in the machine: the network's PCI functions and what hangs on them, from sysfs.
//!
//! Everything is read below a root folder, so that a recorded tree can be looked at like a machine. A file
//! that vanishes while it is read is a device that is being taken out: it is missing from what was found,
//! and nothing else is.

mod resolve;
mod serial;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use thiserror::Error;
use trackbed_rdma::devices::{self, InventoryError};

use crate::function::{CharDevice, Function, LinkType, PciAddress, Protocol, RdmaDevice};
pub use resolve::{Needs, NeedsError, needs};
use tree::Tree;

/// PCI's base class of network controllers; adapters that are InfiniBand have it too.
const NETWORK_CLASS: u32 = 0x02;

/// Where the character devices of RDMA have their entries.
const CHAR_DEVICE_CLASSES: [&str; 2] = ["infiniband_verbs", "infiniband_mad"];

/// Why nothing could be found out.
#[derive(Debug, Error)]
pub enum DiscoverError {
    /// The folder of all PCI functions.
    #[error("cannot list {}: {source}: is sysfs mounted, and readable for this user?", .path.display())]
    Functions {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The RDMA devices.
    #[error(transparent)]
    Rdma(#[from] InventoryError),
    /// A part of it panicked.
    #[error("the thread that looks for RDMA devices broke: this is a bug, report it with the log")]
    Broke,
}

/// Looks at a machine, again and again.
#[derive(Debug)]
pub struct Discovery {
    root: PathBuf,
    /// Serial numbers of physical functions, for as long as the function is there: the hardware takes its
    /// time to tell them.
    serials: HashMap<PciAddress, Option<String>>,
}

impl Discovery {
    /// Of the machine whose `/sys` lies below `root`: `/`, or a folder with a recorded one.
    pub fn new(root: impl Into<PathBuf>) -> Discovery {
        Discovery {
            root: root.into(),
            serials: HashMap::new(),
        }
    }

    /// All functions of the network's class, by address.
    pub fn look(&mut self) -> Result<Vec<Function>, DiscoverError> {
        let tree = Tree::new(&self.root);
        // Thousands of files: RDMA devices with their ports are about half of them.
        let (functions, char_devices, rdma) = thread::scope(|scope| {
            let rdma = scope.spawn(|| Ok(devices::Inventory::outline(&self.root)?.devices));
            let functions = functions(&tree);
            let char_devices = char_devices(&tree);
            let broke = |_| Err(DiscoverError::Broke);
            (functions, char_devices, rdma.join().unwrap_or_else(broke))
        });
        let mut found = functions?;
        attach_rdma(rdma?, char_devices, &mut found);
        name_by_serial(&mut self.serials, &tree, &mut found);
        let pf_names: BTreeMap<_, _> = found
            .values()
            .map(|function| (function.address, function.net_devices.clone()))
            .collect();
        for function in found.values_mut() {
            let (pf, _) = function.virtual_of.unwrap_or((function.address, 0));
            function.pf_names = pf_names.get(&pf).cloned().unwrap_or_default();
            function.link_type = link_type(&tree, function);
        }
        Ok(found.into_values().collect())
    }
}

/// Gives each function the name that it keeps over reboots and moves of its net device: by its card's
/// serial number where that is one card's alone.
fn name_by_serial(
    serials: &mut HashMap<PciAddress, Option<String>>,
    tree: &Tree,
    found: &mut BTreeMap<PciAddress, Function>,
) {
    serials.retain(|address, _| found.contains_key(address));
    for function in found.values().filter(|function| !function.is_virtual()) {
        let read = || serial::of(&tree.bytes(&function_path(function.address, "vpd"))?);
        serials.entry(function.address).or_insert_with(read);
    }
    let mut cards: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
    for (address, serial) in &*serials {
        if let Some(serial) = serial {
            let slot = (address.domain, address.bus);
            cards.entry(serial).or_default().insert(slot);
        }
    }
    let name = |pf: &PciAddress| {
        let serial = serials.get(pf)?.as_deref()?;
        // Two cards with the same number: some makers number none.
        (cards.get(serial)?.len() == 1)
            .then(|| format!("{serial}-{:x}-{:x}", pf.device, pf.function))
    };
    for function in found.values_mut() {
        let by_address = |address: &PciAddress| address.to_string().replace([':', '.'], "-");
        function.id = match function.virtual_of {
            Some((pf, index)) => match name(&pf) {
                Some(name) => format!("{name}-vf{index}"),
                None => format!("{}-vf{index}", by_address(&pf)),
            },
            None => {
                function.serial = name(&function.address);
                let serial = function.serial.clone();
                serial.unwrap_or_else(|| by_address(&function.address))
            }
        };
    }
}

fn function_path(address: PciAddress, file: &str) -> String {
    format!("sys/bus/pci/devices/{address}/{file}")
}

fn functions(tree: &Tree) -> Result<BTreeMap<PciAddress, Function>, DiscoverError> {
    let path = tree.path("sys/bus/pci/devices");
    match path.read_dir() {
        Ok(_) => {}
        // A machine without PCI.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(DiscoverError::Functions { path, source }),
    }
    let names = tree.names("sys/bus/pci/devices");
    let addresses = names.iter().filter_map(|name| name.parse().ok());
    let mut found: BTreeMap<PciAddress, Function> = addresses
        .filter_map(|address| Some((address, function(tree, address)?)))
        .collect();
    let pfs: Vec<_> = found.values().filter(|pf| pf.total_vfs > 0).collect();
    let mut virtual_of = HashMap::new();
    for pf in pfs {
        for name in tree.names(&function_path(pf.address, "")) {
            let index = name.strip_prefix("virtfn").and_then(|n| n.parse().ok());
            if let Some(index) = index
                && let Some(vf) = tree.link(&function_path(pf.address, &name))
                && let Some(vf) = address_of(&vf)
            {
                virtual_of.insert(vf, (pf.address, index));
            }
        }
    }
    for (pf, _) in virtual_of.values() {
        if let Some(pf) = found.get_mut(pf) {
            pf.vfs += 1;
        }
    }
    for function in found.values_mut() {
        function.virtual_of = virtual_of.get(&function.address).copied();
    }
    Ok(found)
}

/// One of the network's functions; `None` for another, and for one that is being taken out.
fn function(tree: &Tree, address: PciAddress) -> Option<Function> {
    let text = |file| tree.text(&function_path(address, file));
    let identity = identity(tree, address)?;
    if identity.class >> 16 != NETWORK_CLASS {
        return None;
    }
    let on_the_way = tree.link(&format!("sys/bus/pci/devices/{address}"))?;
    let addresses = on_the_way.components().filter_map(|component| {
        let name = component.as_os_str().to_str()?;
        name.parse::<PciAddress>().ok()
    });
    let mut function = Function {
        address,
        id: String::new(),
        serial: None,
        vendor: identity.vendor,
        device: identity.device,
        driver: identity.driver,
        virtual_of: None,
        pf_names: Vec::new(),
        total_vfs: text("sriov_totalvfs").map_or(0, |n| n.parse().unwrap_or(0)),
        vfs: 0,
        // -1 where the platform does not say.
        numa_node: text("numa_node").and_then(|node| node.parse().ok()),
        bridges: addresses.filter(|above| *above != address).collect(),
        net_devices: tree.names(&function_path(address, "net")),
        mac: None,
        link_type: None,
        rdma: None,
    };
    function.mac = net_device_text(tree, &function, "address");
    Some(function)
}

/// What a PCI function is, and whose.
struct Identity {
    class: u32,
    vendor: u16,
    device: u16,
    driver: Option<String>,
}

/// From the one file that has it all: with a thousand functions, files are what a look costs. Else from
/// one each.
fn identity(tree: &Tree, address: PciAddress) -> Option<Identity> {
    let text = |file| tree.text(&function_path(address, file));
    let told = text("uevent").and_then(|told| identity_told(&told));
    let apart = || {
        let number = |file| u32::from_str_radix(text(file)?.strip_prefix("0x")?, 16).ok();
        let driver = tree.link(&function_path(address, "driver"));
        Some(Identity {
            class: number("class")?,
            vendor: u16::try_from(number("vendor")?).ok()?,
            device: u16::try_from(number("device")?).ok()?,
            driver: driver.and_then(|driver| Some(driver.file_name()?.to_str()?.to_owned())),
        })
    };
    told.or_else(apart)
}

/// From what the kernel tells udev of a PCI function (`pci_uevent` in drivers/pci/pci-driver.c).
fn identity_told(uevent: &str) -> Option<Identity> {
    let told = |name: &str| {
        let lines = uevent.lines();
        let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        values.next()
    };
    let (vendor, device) = told("PCI_ID")?.split_once(':')?;
    Some(Identity {
        class: u32::from_str_radix(told("PCI_CLASS")?, 16).ok()?,
        vendor: u16::from_str_radix(vendor, 16).ok()?,
        device: u16::from_str_radix(device, 16).ok()?,
        driver: told("DRIVER").map(str::to_owned),
    })
}

fn address_of(link: &Path) -> Option<PciAddress> {
    link.file_name()?.to_str()?.parse().ok()
}

/// The character devices of each RDMA device, by its name.
type CharDevices = HashMap<String, Vec<CharDevice>>;

/// Gives each function its RDMA device: also one that is made of software, on the function's net device.
fn attach_rdma(
    devices: Vec<devices::Device>,
    mut char_devices: CharDevices,
    found: &mut BTreeMap<PciAddress, Function>,
) {
    for device in devices {
        let address = device.pci_address.as_deref().and_then(|at| at.parse().ok());
        let Some(function) = address.and_then(|at: PciAddress| found.get_mut(&at)) else {
            continue;
        };
        let ethernet = device
            .ports
            .iter()
            .any(|port| port.link_layer.as_deref() == Some("Ethernet"));
        let protocol = match device.node_type.as_deref() {
            Some("RNIC") => Some(Protocol::Iwarp),
            Some("CA") if ethernet => Some(Protocol::Roce),
            Some("CA") => Some(Protocol::Ib),
            _ => None,
        };
        // The hardware's own comes before what software makes of its net device.
        if function
            .rdma
            .as_ref()
            .is_none_or(|known| known.device.is_virtual)
        {
            function.rdma = Some(RdmaDevice {
                protocol,
                char_devices: char_devices.remove(&device.name).unwrap_or_default(),
                device,
            });
        }
    }
}

/// The character devices of each RDMA device: by what sysfs says they belong to, never by their names or
/// numbers, which change.
fn char_devices(tree: &Tree) -> CharDevices {
    let mut found = CharDevices::new();
    for (owner, device) in all_char_devices(tree) {
        found.entry(owner).or_default().push(device);
    }
    found
}

/// Those of a function's RDMA device.
fn char_devices_of(tree: &Tree, address: PciAddress, rdma: &str) -> Vec<CharDevice> {
    let folders = CHAR_DEVICE_CLASSES.map(|class| function_path(address, class));
    let hardware: Vec<_> = folders
        .iter()
        .flat_map(|folder| listed(tree, folder))
        .collect();
    // What software makes of a net device has no such folder below the function's.
    let all = if hardware.is_empty() {
        all_char_devices(tree).collect()
    } else {
        hardware
    };
    let own = all.into_iter().filter(|(owner, _)| owner == rdma);
    own.map(|(_, device)| device).collect()
}

fn all_char_devices(tree: &Tree) -> impl Iterator<Item = (String, CharDevice)> {
    CHAR_DEVICE_CLASSES
        .into_iter()
        .flat_map(|class| listed(tree, &format!("sys/class/{class}")))
}

/// The character devices of a folder of sysfs, each with the RDMA device that it belongs to.
fn listed(tree: &Tree, folder: &str) -> Vec<(String, CharDevice)> {
    let device = |name: String| {
        let text = |file: &str| tree.text(&format!("{folder}/{name}/{file}"));
        let owner = text("ibdev")?;
        let numbers = text("dev")?;
        let (major, minor) = numbers.split_once(':')?;
        let numbers = (major.parse().ok()?, minor.parse().ok()?);
        Some((owner, CharDevice { name, numbers }))
    };
    let names = tree.names(folder);
    names.into_iter().filter_map(device).collect()
}

/// Told by the RDMA port, else by the hardware type of the net device (`ARPHRD_*` of linux/if_arp.h).
fn link_type(tree: &Tree, function: &Function) -> Option<LinkType> {
    let ports = function.rdma.iter().flat_map(|rdma| &rdma.device.ports);
    let layer = ports.filter_map(|port| port.link_layer.as_deref()).next();
    match layer {
        Some("Ethernet") => return Some(LinkType::Ethernet),
        Some("InfiniBand") => return Some(LinkType::Infiniband),
        _ => {}
    }
    match net_device_text(tree, function, "type")?.as_str() {
        "1" => Some(LinkType::Ethernet),
        "32" => Some(LinkType::Infiniband),
        _ => None,
    }
}

fn net_device_text(tree: &Tree, function: &Function, file: &str) -> Option<String> {
    let net_device = function.net_devices.first()?;
    tree.text(&function_path(
        function.address,
        &format!("net/{net_device}/{file}"),
    ))
}
