//! What the configuration wants of ports: a number of virtual functions and their settings.

use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Deserialize;

use super::identity::Identity;
use super::setting::{Guid, LinkState, Mac, Mtu, Rate, Setting, Vectors, Vlan};
use crate::function::PciAddress;

/// What some ports are to have.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct VirtualFunctions {
    /// Net devices of physical functions, such as ens1f0.
    pub pf_names: Vec<String>,
    /// PCI addresses of physical functions.
    pub addresses: Vec<PciAddress>,
    /// How many virtual functions each is to have.
    pub count: u32,
    /// What all of them are set to; what is not said is left alone.
    pub settings: WantedSettings,
    /// What some of them are set to instead.
    pub functions: Vec<SomeFunctions>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Unchecked {
    #[serde(default)]
    pf_names: Vec<String>,
    #[serde(default)]
    addresses: Vec<PciAddress>,
    count: u32,
    #[serde(default)]
    settings: WantedSettings,
    #[serde(default)]
    functions: Vec<SomeFunctions>,
}

/// Some of a port's virtual functions.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SomeFunctions {
    /// Which, such as "0-3,7".
    pub indexes: Indexes,
    /// What they are set to; of those that several entries name, the last one counts.
    pub settings: WantedSettings,
}

/// Settings as they are configured; what is not said is left alone.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WantedSettings {
    /// Interrupt vectors.
    pub msix: Option<Vectors>,
    /// The hardware address.
    pub mac: Option<Wanted<Mac>>,
    /// The RDMA device's GUID.
    pub node_guid: Option<Wanted<Guid>>,
    /// The RDMA port's GUID.
    pub port_guid: Option<Wanted<Guid>>,
    /// The VLAN.
    pub vlan: Option<Vlan>,
    /// How fast it sends.
    pub rate: Option<Rate>,
    /// Whether frames from another address than its own are dropped.
    pub spoof_check: Option<bool>,
    /// Whether it may change its address and hear others' frames.
    pub trust: Option<bool>,
    /// The state of its link.
    pub link_state: Option<LinkState>,
    /// The largest packet of its net device.
    pub mtu: Option<Mtu>,
}

/// An address that is written down, or made of what the port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String", bound(deserialize = "T: FromStr<Err = String>"))]
pub enum Wanted<T> {
    /// The same on every machine that the card is ever in.
    Stable,
    /// This one.
    Given(T),
}

impl<T: FromStr<Err = String>> TryFrom<String> for Wanted<T> {
    type Error = String;

    fn try_from(text: String) -> Result<Wanted<T>, String> {
        match text.as_str() {
            "stable" => Ok(Wanted::Stable),
            text => text.parse().map(Wanted::Given),
        }
    }
}

impl<T> Wanted<T> {
    fn get(self, stable: impl FnOnce() -> T) -> T {
        match self {
            Wanted::Stable => stable(),
            Wanted::Given(it) => it,
        }
    }
}

/// Some of a port's virtual functions, by their indexes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Indexes(Vec<RangeInclusive<u32>>);

impl TryFrom<String> for Indexes {
    type Error = String;

    fn try_from(text: String) -> Result<Indexes, String> {
        let refuse = || format!("{text:?} names no virtual functions: write such as \"0-3,7\"");
        let ranges = text.split(',').map(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse().ok().filter(|_| digits).ok_or_else(refuse)
            };
            let (from, to) = (number(from)?, number(to)?);
            if from > to {
                return Err(refuse());
            }
            Ok(from..=to)
        });
        ranges.collect::<Result<_, _>>().map(Indexes)
    }
}

impl Indexes {
    /// Whether this one is meant.
    pub fn contains(&self, index: u32) -> bool {
        self.0.iter().any(|range| range.contains(&index))
    }
}

impl TryFrom<Unchecked> for VirtualFunctions {
    type Error = String;

    fn try_from(from: Unchecked) -> Result<VirtualFunctions, String> {
        let entry = VirtualFunctions {
            pf_names: from.pf_names,
            addresses: from.addresses,
            count: from.count,
            settings: from.settings,
            functions: from.functions,
        };
        let beyond =
            |some: &&SomeFunctions| some.indexes.0.iter().any(|it| *it.end() >= entry.count);
        if entry.functions.iter().any(|some| beyond(&some)) {
            return Err(format!(
                "`functions` names one beyond the {} that there are to be: they are counted from 0",
                entry.count
            ));
        }
        Ok(entry)
    }
}

impl VirtualFunctions {
    /// Whether anything is said of settings.
    pub fn has_settings(&self) -> bool {
        let said = |settings: &WantedSettings| *settings != WantedSettings::default();
        said(&self.settings) || self.functions.iter().any(|some| said(&some.settings))
    }

    /// What the `index`-th virtual function is to be set to.
    pub(super) fn of(&self, index: u32) -> WantedSettings {
        let mut wanted = self.settings.clone();
        for some in &self.functions {
            if some.indexes.contains(index) {
                wanted.overlay(&some.settings);
            }
        }
        wanted
    }
}

impl WantedSettings {
    fn overlay(&mut self, other: &WantedSettings) {
        fn put<T: Clone>(to: &mut Option<T>, from: &Option<T>) {
            if from.is_some() {
                to.clone_from(from);
            }
        }
        put(&mut self.msix, &other.msix);
        put(&mut self.mac, &other.mac);
        put(&mut self.node_guid, &other.node_guid);
        put(&mut self.port_guid, &other.port_guid);
        put(&mut self.vlan, &other.vlan);
        put(&mut self.rate, &other.rate);
        put(&mut self.spoof_check, &other.spoof_check);
        put(&mut self.trust, &other.trust);
        put(&mut self.link_state, &other.link_state);
        put(&mut self.mtu, &other.mtu);
    }

    /// Whether an address is to be made of what the port is.
    pub(super) fn wants_identity(&self) -> bool {
        self.mac == Some(Wanted::Stable)
            || self.node_guid == Some(Wanted::Stable)
            || self.port_guid == Some(Wanted::Stable)
    }

    /// As settings of a port's `index`-th virtual function, in the order in which they are carried out.
    pub(super) fn resolve(&self, identity: &Identity, index: u32) -> Vec<Setting> {
        let guid = |wanted: Wanted<Guid>| wanted.get(|| identity.guid(index));
        let settings = [
            self.msix.map(Setting::Msix),
            self.mac
                .map(|mac| Setting::Mac(mac.get(|| identity.mac(index)))),
            self.node_guid.map(|it| Setting::NodeGuid(guid(it))),
            self.port_guid.map(|it| Setting::PortGuid(guid(it))),
            self.vlan.map(Setting::Vlan),
            self.rate.map(Setting::Rate),
            self.spoof_check.map(Setting::SpoofCheck),
            self.trust.map(Setting::Trust),
            self.link_state.map(Setting::LinkState),
            self.mtu.map(Setting::Mtu),
        ];
        settings.into_iter().flatten().collect()
    }
}
