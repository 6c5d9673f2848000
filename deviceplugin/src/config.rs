//! What the device plugin is told: which devices form which resource, and what is expected of them.
//!
//! One YAML file. What is wrong in it is said with its line and what would be right.

mod select;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroU16;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_saphyr::Spanned;
use thiserror::Error;
use trackbed_rdma::verbs::GidKind;

use crate::function::Function;
use crate::sriov::VirtualFunctions;
pub use select::{HexId, PfRange, Selector};

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// The most pools: each is a socket and a resource of the node.
const MAX_POOLS: usize = 64;
/// The longest name of a pool, in bytes: Kubernetes takes 63, a socket's path in kubelet's folder fewer.
const MAX_POOL_NAME_BYTES: usize = 40;
/// The longest prefix of resources, in bytes: a DNS name.
const MAX_PREFIX_BYTES: usize = 253;
/// The most shares of one device: with 1,016 devices kubelet's list stays below its 4 MiB.
const MAX_SHARES: u16 = 100;

/// Why a configuration is none.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not YAML, or with keys and values that there are not.
    #[error("{0}")]
    Malformed(String),
    /// It is understood, and contradicts itself or the interface.
    #[error("line {line}: {why}")]
    Refused {
        /// The line, from 1.
        line: u64,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Two pools would hand out the same device.
    #[error(
        "pools {one:?} and {other:?} both select {function}: a device is in one pool only; narrow one of \
         their selections"
    )]
    Overlap {
        /// The pool that is named first.
        one: PoolName,
        /// The other one.
        other: PoolName,
        /// The PCI address.
        function: String,
    },
}

/// All that is configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// What resources are called before the slash.
    #[serde(default = "default_prefix")]
    prefix: Spanned<String>,
    pools: Vec<Spanned<PoolConfig>>,
    /// How many virtual functions ports are to have and what they are set to; others are left alone.
    #[serde(default)]
    pub virtual_functions: Vec<VirtualFunctions>,
}

fn default_prefix() -> Spanned<String> {
    Spanned::new(
        "trackbed.io".to_owned(),
        serde_saphyr::Location::UNKNOWN,
        serde_saphyr::Location::UNKNOWN,
    )
}

/// One resource: which devices, and how they are given.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PoolConfig {
    /// The resource's name after the prefix.
    pub name: PoolName,
    /// How devices are given to containers.
    #[serde(default)]
    pub mode: Mode,
    /// How many containers may have one device at a time, in mode `shared`.
    pub shares: Option<NonZeroU16>,
    /// Which devices.
    #[serde(default)]
    pub select: Selector,
    /// What they must be like to be given.
    #[serde(default)]
    pub expect: Expectation,
}

/// A pool and what is in it.
#[derive(Debug)]
pub struct Sorted<'a> {
    /// The pool.
    pub pool: &'a PoolConfig,
    /// Its devices.
    pub functions: Vec<&'a Function>,
}

impl PoolConfig {
    fn has(&self, function: &Function) -> bool {
        self.select.matches(self.mode, function)
    }
}

/// How devices are given to containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A virtual function to one container.
    #[default]
    Exclusive,
    /// An adapter to several containers at a time.
    Shared,
}

/// What a device must be like to be given.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Expectation {
    /// The least rate of its ports, in Gb/s.
    pub rate_gbps: Option<f64>,
    /// Whether a device whose RDMA ports are down is given all the same.
    pub allow_down: bool,
    /// The kind of address that each of its ports must have.
    #[serde(deserialize_with = "gid_kind")]
    pub gid_kind: Option<GidKind>,
    /// The most errors of the link in a minute, by the port's counters.
    pub link_errors_per_minute: Option<u64>,
}

fn gid_kind<'de, D: Deserializer<'de>>(from: D) -> Result<Option<GidKind>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let kind = text.map(|text| text.parse().map_err(D::Error::custom));
    kind.transpose()
}

/// The name of a pool: a resource's name without its prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PoolName(pub String);

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Config {
    /// Reads a configuration.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        if text.len() > MAX_FILE_BYTES {
            let why = format!("{} bytes are no configuration", text.len());
            return Err(ConfigError::Malformed(why));
        }
        let config: Config = serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::Malformed(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// The pools, in the file's order.
    pub fn pools(&self) -> impl Iterator<Item = &PoolConfig> {
        self.pools.iter().map(|pool| &pool.value)
    }

    /// The resource that a pool is to Kubernetes.
    pub fn resource(&self, pool: &PoolName) -> String {
        format!("{}/{pool}", self.prefix.value)
    }

    /// Which of what was found is in which pool, in the order of the pools and of the functions, and what
    /// two pools would hand out: that is in neither.
    pub fn sort<'a>(&'a self, found: &'a [Function]) -> (Vec<Sorted<'a>>, Vec<ConfigError>) {
        let mut taken: BTreeMap<_, &PoolName> = BTreeMap::new();
        let mut overlaps = BTreeMap::new();
        for pool in self.pools() {
            for function in found.iter().filter(|it| pool.has(it)) {
                if let Some(one) = taken.insert(function.address, &pool.name) {
                    let overlap = ConfigError::Overlap {
                        one: one.clone(),
                        other: pool.name.clone(),
                        function: function.address.to_string(),
                    };
                    overlaps.insert(function.address, overlap);
                }
            }
        }
        let alone = |it: &&Function| !overlaps.contains_key(&it.address);
        let sorted = self.pools().map(|pool| Sorted {
            pool,
            functions: found
                .iter()
                .filter(|it| pool.has(it))
                .filter(alone)
                .collect(),
        });
        (sorted.collect(), overlaps.into_values().collect())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |line, why: String| Err(ConfigError::Refused { line, why });
        let prefix = &self.prefix.value;
        let labels = prefix.split('.');
        let fits = |label: &str| {
            is_name(
                label,
                |c| c.is_ascii_lowercase() || c.is_ascii_digit(),
                b"-",
            )
        };
        if prefix.len() > MAX_PREFIX_BYTES || !labels.clone().all(fits) || labels.count() < 2 {
            return refuse(
                self.prefix.referenced.line(),
                format!("prefix {prefix:?} is no DNS name with a dot: write such as trackbed.io"),
            );
        }
        if self.pools.is_empty() || self.pools.len() > MAX_POOLS {
            let why = format!("{} pools: configure 1 to {MAX_POOLS}", self.pools.len());
            return Err(ConfigError::Malformed(why));
        }
        let mut names = HashMap::new();
        for pool in &self.pools {
            let (line, pool) = (pool.referenced.line(), &pool.value);
            let name = &pool.name.0;
            let in_resources = |c: char| c.is_ascii_alphanumeric();
            if name.len() > MAX_POOL_NAME_BYTES || !is_name(name, in_resources, b"-_.") {
                let why = format!(
                    "pool {name:?} can't be a resource's name: use up to {MAX_POOL_NAME_BYTES} letters, \
                     digits and inner - _ ."
                );
                return refuse(line, why);
            }
            // Their sockets lie in one folder, which may be on a file system that knows no case.
            if let Some(first) = names.insert(name.to_ascii_lowercase(), line) {
                return refuse(
                    line,
                    format!("pool {name:?} is there already, in line {first}"),
                );
            }
            match (pool.mode, pool.shares) {
                (Mode::Shared, None) => {
                    let why =
                        format!("pool {name:?} is shared and has no `shares`: say among how many");
                    return refuse(line, why);
                }
                (Mode::Shared, Some(shares)) if shares.get() > MAX_SHARES => {
                    let why =
                        format!("pool {name:?} has {shares} shares: at most {MAX_SHARES} can be");
                    return refuse(line, why);
                }
                (Mode::Exclusive, Some(_)) => {
                    let why = format!(
                        "pool {name:?} has `shares` and is exclusive: leave them out, or set `mode: shared`"
                    );
                    return refuse(line, why);
                }
                _ => {}
            }
            let rate = pool.expect.rate_gbps;
            if rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
                return refuse(line, format!("pool {name:?} expects a rate that is none"));
            }
        }
        Ok(())
    }
}

/// Whether all characters are of a kind, or, but at the ends, one of some others.
fn is_name(text: &str, of_kind: impl Fn(char) -> bool, inner: &[u8]) -> bool {
    let ends = [text.chars().next(), text.chars().last()];
    ends.iter().all(|end| end.is_some_and(&of_kind))
        && text
            .chars()
            .all(|c| of_kind(c) || (c.is_ascii() && inner.contains(&(c as u8))))
}

#[cfg(test)]
mod tests;
