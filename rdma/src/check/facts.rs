//! What is known about a node before anybody judges it.

use super::counters::Counters;
use crate::bench::Row;
use crate::devices::Device;

/// A node and its RDMA devices.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// What concerns all devices.
    pub node: NodeFacts,
    /// The devices that were asked for.
    pub devices: Vec<DeviceFacts>,
}

/// What concerns the node as a whole.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// Our own limit on locked memory; `None` when it can't be read.
    pub memlock: Option<Memlock>,
    /// Whether that limit doesn't apply to us (CAP_IPC_LOCK).
    pub may_lock_all: bool,
    /// The container runtime's limit, which its containers inherit: its name and the limit.
    pub runtime_memlock: Option<(String, Memlock)>,
    /// Huge pages, by size.
    pub huge_pages: Vec<HugePages>,
    /// The CPUs we may run on.
    pub allowed_cpus: Option<Vec<u32>>,
    /// The CPUs of each NUMA node.
    pub numa_cpus: Vec<(u32, Vec<u32>)>,
    /// Whether librdmacm has its device.
    pub has_rdma_cm: bool,
}

/// A limit on locked memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memlock {
    /// No limit.
    Unlimited,
    /// This much.
    Bytes(u64),
}

/// The huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePages {
    /// Size of a page, in bytes.
    pub bytes: u64,
    /// Pages reserved.
    pub total: u64,
    /// Of these, not in use.
    pub free: u64,
}

/// A device.
#[derive(Debug, Clone)]
pub struct DeviceFacts {
    /// What sysfs, and verbs where there are any, say of it.
    pub device: Device,
    /// Its board, as the driver names it; devices with the same one are siblings.
    pub board: Option<String>,
    /// Its user-space device, such as `uverbs0`.
    pub uverbs: Option<String>,
    /// Whether libibverbs can open it.
    pub verbs: Verbs,
    /// Its place on PCI.
    pub pci: Option<PciLink>,
    /// Its ports, of those asked for.
    pub ports: Vec<PortFacts>,
}

/// Whether user space reaches a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verbs {
    /// A recorded tree has none.
    NotAsked,
    /// It answered.
    Opened,
    /// There is no library to ask.
    NoLibrary(String),
    /// It failed.
    Failed(String),
}

/// A PCI function's link, and what stands between it and the root.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PciLink {
    /// Its address.
    pub address: String,
    /// Lanes in use.
    pub width: Option<u32>,
    /// Lanes it could use.
    pub max_width: Option<u32>,
    /// Speed in use, GT/s for each lane.
    pub speed: Option<f64>,
    /// Speed it could use.
    pub max_speed: Option<f64>,
    /// The bridge above: the slot.
    pub slot: Option<Bridge>,
    /// Bridges above with access control services that send peer traffic up to the root.
    pub redirecting: Vec<String>,
    /// The type of its IOMMU group, such as `DMA-FQ` or `identity`.
    pub iommu: Option<String>,
}

/// What the slot could do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bridge {
    /// Its address.
    pub address: String,
    /// Lanes it could use.
    pub max_width: Option<u32>,
    /// Speed it could use, GT/s for each lane.
    pub max_speed: Option<f64>,
}

/// A port.
#[derive(Debug, Clone)]
pub struct PortFacts {
    /// Its number.
    pub number: u32,
    /// Its rate, as sysfs prints it: `100 Gb/sec (4X EDR)`.
    pub rate: Option<LinkRate>,
    /// Its net device.
    pub net: Option<NetDevice>,
    /// How it is kept from dropping packets.
    pub flow: FlowControl,
    /// Its counters.
    pub counters: Counters,
    /// What a load did.
    pub load: Load,
}

/// A port's rate.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkRate {
    /// Gb/s.
    pub gbps: f64,
    /// Lanes in use: 1, 2, 4, 8 or 12.
    pub lanes: Option<u32>,
    /// The generation of each lane, such as `EDR`.
    pub generation: Option<String>,
}

/// A net device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetDevice {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Its speed in Mb/s; none while its link is down.
    pub speed_mbps: Option<u32>,
    /// `full` or `half`.
    pub duplex: Option<String>,
}

/// How a RoCE port is kept from dropping packets, as far as it could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowControl {
    /// Priorities with priority flow control: a bit each. Or why that can't be read.
    pub pfc: Option<Result<u8, String>>,
    /// Priorities with congestion notification, at both ends of a flow.
    pub ecn: Option<u8>,
    /// Whether pause frames for the whole link are (sent, honoured).
    pub pause: Option<(bool, bool)>,
}

/// What a load on the port came to.
#[derive(Debug, Clone, Default)]
pub enum Load {
    /// None was asked for.
    #[default]
    Skipped,
    /// It ran: what it moved, and the counters after it.
    Ran {
        /// What was measured.
        row: Box<Row>,
        /// Counters after it.
        after: Counters,
    },
    /// It could not begin.
    Unable(String),
    /// It broke: the fault, and the counters after it.
    Broke {
        /// What went wrong.
        reason: String,
        /// Counters after it.
        after: Counters,
    },
}
