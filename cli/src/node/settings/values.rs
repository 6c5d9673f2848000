//! Values of settings that have a form or a choice of their own.

use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer};
use trackbed_cache::registry::Namespace;
use trackbed_csi::expose::native::Choice;

use crate::size::Size;

/// A namespace's bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(super) namespace: Namespace,
    pub(super) size: Size,
}

impl FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Quota, String> {
        let (namespace, size) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is not NAMESPACE=SIZE, such as team-a=500GiB"))?;
        let namespace = Namespace::parse(namespace)
            .ok_or_else(|| format!("{namespace:?} is not a namespace: use 1 to 63 of a-z 0-9 -"))?;
        let size = size
            .parse()
            .map_err(|error| format!("{namespace}: {error}"))?;
        Ok(Quota { namespace, size })
    }
}

impl<'de> Deserialize<'de> for Quota {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Quota, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What may carry data between peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FabricChoice {
    /// Verbs where an RDMA device is active, TCP otherwise
    #[default]
    Auto,
    /// TCP
    Tcp,
    /// RDMA verbs; an error where there is no device
    Verbs,
}

/// How datasets are shown to pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExposeChoice {
    /// Natively once a version is complete and verified, by FUSE until then
    #[default]
    Auto,
    /// By FUSE always: every read is checked, and slower
    Fuse,
    /// Natively or not at all: mounting waits until the version is complete and verified
    Native,
    /// As auto, natively as an EROFS image however few small files a version has
    Erofs,
    /// As auto, natively as plain files only, without EROFS images
    Files,
}

impl From<ExposeChoice> for Choice {
    fn from(choice: ExposeChoice) -> Choice {
        match choice {
            ExposeChoice::Auto => Choice::Auto,
            ExposeChoice::Fuse => Choice::Fuse,
            ExposeChoice::Native => Choice::Native,
            ExposeChoice::Erofs => Choice::Erofs,
            ExposeChoice::Files => Choice::Files,
        }
    }
}
