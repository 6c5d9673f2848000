//! What a virtual function is set to, and how that is written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// The least and the largest MTU that Linux knows for Ethernet and IP over InfiniBand, in bytes.
const MTUS: std::ops::RangeInclusive<u32> = 68..=65_535;
/// The largest VLAN number; 4095 is reserved (IEEE 802.1Q).
const MAX_VLAN: u16 = 4094;
/// The largest priority of a frame (IEEE 802.1Q).
const MAX_PRIORITY: u8 = 7;
/// The most interrupt vectors of MSI-X (PCI Local Bus Specification 3.0, section 6.8.2).
const MAX_VECTORS: u16 = 2048;

/// One of a virtual function's settings. Ordered as they are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// How many interrupt vectors it has.
    Msix(Vectors),
    /// The hardware address that its driver gets; zeros where the driver chooses one.
    Mac(Mac),
    /// The GUID of its RDMA device, on InfiniBand.
    NodeGuid(Guid),
    /// The GUID of its RDMA port, on InfiniBand.
    PortGuid(Guid),
    /// The VLAN that all its frames are in.
    Vlan(Vlan),
    /// How fast it sends.
    Rate(Rate),
    /// Whether frames from another address than its own are dropped.
    SpoofCheck(bool),
    /// Whether it may change its address and hear others' frames.
    Trust(bool),
    /// The state of its link.
    LinkState(LinkState),
    /// The largest packet of its net device.
    Mtu(Mtu),
}

impl Setting {
    /// What it is called in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Setting::Msix(_) => "msix",
            Setting::Mac(_) => "mac",
            Setting::NodeGuid(_) => "node-guid",
            Setting::PortGuid(_) => "port-guid",
            Setting::Vlan(_) => "vlan",
            Setting::Rate(_) => "rate",
            Setting::SpoofCheck(_) => "spoof-check",
            Setting::Trust(_) => "trust",
            Setting::LinkState(_) => "link-state",
            Setting::Mtu(_) => "mtu",
        }
    }

    /// Whether its driver takes note of it only when it is bound, and before the kernel takes it only
    /// when it is not.
    pub(super) fn is_read_at_bind(&self) -> bool {
        matches!(
            self,
            Setting::Msix(_) | Setting::Mac(_) | Setting::NodeGuid(_) | Setting::PortGuid(_)
        )
    }

    /// That among `others` which says the same kind of thing.
    pub(super) fn like<'a>(&self, others: &'a [Setting]) -> Option<&'a Setting> {
        others.iter().find(|it| it.name() == self.name())
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_off = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Setting::Msix(vectors) => vectors.0.fmt(f),
            Setting::Mac(mac) => mac.fmt(f),
            Setting::NodeGuid(guid) | Setting::PortGuid(guid) => guid.fmt(f),
            Setting::Vlan(vlan) => vlan.fmt(f),
            Setting::Rate(rate) => rate.fmt(f),
            Setting::SpoofCheck(on) | Setting::Trust(on) => f.write_str(on_off(on)),
            Setting::LinkState(state) => state.fmt(f),
            Setting::Mtu(mtu) => mtu.0.fmt(f),
        }
    }
}

impl Serialize for Setting {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A hardware address of Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A GUID of InfiniBand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub u64);

fn octets<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut octets = [0; N];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let digits = parts.next()?;
        if digits.len() != 2 || !digits.bytes().all(|it| it.is_ascii_hexdigit()) {
            return None;
        }
        *octet = u8::from_str_radix(digits, 16).ok()?;
    }
    parts.next().is_none().then_some(octets)
}

fn with_colons(octets: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (at, octet) in octets.iter().enumerate() {
        let before = if at == 0 { "" } else { ":" };
        write!(f, "{before}{octet:02x}")?;
    }
    Ok(())
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_colons(&self.0, f)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_colons(&self.0.to_be_bytes(), f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let mac = octets(text).filter(|mac| *mac != [0; 6] && mac[0] & 1 == 0);
        mac.map(Mac).ok_or_else(|| {
            format!("{text:?} is no hardware address of one device: write such as 02:1a:2b:3c:4d:5e, or `stable`")
        })
    }
}

impl FromStr for Guid {
    type Err = String;

    fn from_str(text: &str) -> Result<Guid, String> {
        let guid = octets(text)
            .map(u64::from_be_bytes)
            .filter(|guid| *guid != 0);
        guid.map(Guid).ok_or_else(|| {
            format!("{text:?} is no GUID: write such as 02:11:22:33:44:55:66:77, or `stable`")
        })
    }
}

/// A virtual network (IEEE 802.1Q).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields, try_from = "AnyVlan")]
pub struct Vlan {
    /// Its number; 0 is none.
    pub id: u16,
    /// The priority of its frames, up to 7.
    pub qos: u8,
    /// How they are marked.
    pub proto: VlanProtocol,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnyVlan {
    id: u16,
    #[serde(default)]
    qos: u8,
    #[serde(default)]
    proto: VlanProtocol,
}

impl TryFrom<AnyVlan> for Vlan {
    type Error = String;

    fn try_from(any: AnyVlan) -> Result<Vlan, String> {
        let AnyVlan { id, qos, proto } = any;
        if id > MAX_VLAN || qos > MAX_PRIORITY || (id == 0 && qos > 0) {
            return Err(format!(
                "there is no VLAN {id} with qos {qos}: ids are 1 to {MAX_VLAN}, or 0 for none, and qos up to \
                 {MAX_PRIORITY}"
            ));
        }
        Ok(Vlan { id, qos, proto })
    }
}

/// How frames of a VLAN are marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum VlanProtocol {
    /// IEEE 802.1Q.
    #[default]
    #[serde(rename = "802.1q")]
    Customer,
    /// IEEE 802.1ad.
    #[serde(rename = "802.1ad")]
    Service,
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.id == 0 {
            return f.write_str("none");
        }
        let proto = match self.proto {
            VlanProtocol::Customer => "802.1q",
            VlanProtocol::Service => "802.1ad",
        };
        write!(f, "{} qos {} {proto}", self.id, self.qos)
    }
}

/// How fast it sends, in Mb/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields, try_from = "AnyRate")]
pub struct Rate {
    /// What it has for sure; 0 is nothing.
    pub min: u32,
    /// The most; 0 is no limit.
    pub max: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnyRate {
    #[serde(default)]
    min: u32,
    #[serde(default)]
    max: u32,
}

impl TryFrom<AnyRate> for Rate {
    type Error = String;

    fn try_from(any: AnyRate) -> Result<Rate, String> {
        let AnyRate { min, max } = any;
        if max != 0 && min > max {
            return Err(format!(
                "a rate of at least {min} and at most {max} Mb/s can't be: raise `max`, or make it 0 for no limit"
            ));
        }
        Ok(Rate { min, max })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to ", self.min)?;
        match self.max {
            0 => f.write_str("any Mb/s"),
            max => write!(f, "{max} Mb/s"),
        }
    }
}

/// The state of a virtual function's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// The port's.
    Auto,
    /// Up, and so virtual functions of the port reach each other though it is down.
    Enable,
    /// Down.
    Disable,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkState::Auto => "auto",
            LinkState::Enable => "enable",
            LinkState::Disable => "disable",
        })
    }
}

/// The largest packet, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "u32")]
pub struct Mtu(pub u32);

impl TryFrom<u32> for Mtu {
    type Error = String;

    fn try_from(bytes: u32) -> Result<Mtu, String> {
        let fits = MTUS.contains(&bytes).then_some(Mtu(bytes));
        let (least, most) = MTUS.into_inner();
        fits.ok_or_else(|| format!("{bytes} is no MTU: {least} to {most} can be"))
    }
}

/// A number of interrupt vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "u16")]
pub struct Vectors(pub u16);

impl TryFrom<u16> for Vectors {
    type Error = String;

    fn try_from(count: u16) -> Result<Vectors, String> {
        let fits = (1..=MAX_VECTORS).contains(&count).then_some(Vectors(count));
        fits.ok_or_else(|| format!("{count} interrupt vectors can't be: 1 to {MAX_VECTORS} can"))
    }
}
