//! A device's place on PCI: its link, its slot, and the bridges up to the root.

use std::fs;
use std::path::{Path, PathBuf};

use crate::check::facts::{Bridge, PciLink};
use crate::kernel_files;

/// Bridges between a device and the root: real trees have a handful.
const DEEPEST: usize = 32;

pub(super) fn read(root: &Path, device: &Path) -> Option<PciLink> {
    // A virtual function has no link of its own: its physical function's is what it uses.
    let physical = device.join("physfn");
    let bus = if physical.is_dir() {
        physical
    } else {
        device.to_owned()
    };
    let real = fs::canonicalize(bus).ok()?;
    let address = address(&real)?;
    let bridges = bridges(root, &real);
    let slot = bridges.first().map(|bridge| Bridge {
        address: self::address(bridge).unwrap_or_default(),
        max_width: width(&bridge.join("max_link_width")),
        max_speed: speed(&bridge.join("max_link_speed")),
    });
    Some(PciLink {
        address,
        width: width(&real.join("current_link_width")),
        max_width: width(&real.join("max_link_width")),
        speed: speed(&real.join("current_link_speed")),
        max_speed: speed(&real.join("max_link_speed")),
        slot,
        redirecting: bridges
            .iter()
            .filter(|bridge| {
                kernel_files::bytes(&bridge.join("config")).is_some_and(|config| redirects(&config))
            })
            .filter_map(|bridge| self::address(bridge))
            .collect(),
        iommu: kernel_files::text(&real.join("iommu_group/type")),
    })
}

/// The PCI bridges above a device, nearest first.
fn bridges(root: &Path, device: &Path) -> Vec<PathBuf> {
    let top = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    device
        .ancestors()
        .skip(1)
        .take(DEEPEST)
        .take_while(|folder| folder.starts_with(&top) && address(folder).is_some())
        .map(Path::to_owned)
        .collect()
}

/// The PCI address that a folder is named by, such as `0000:3b:00.0`.
fn address(folder: &Path) -> Option<String> {
    let name = folder.file_name()?.to_str()?;
    let (domain, rest) = name.split_once(':')?;
    let is_address = domain.len() >= 4
        && rest.len() == 7
        && name
            .chars()
            .all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
    is_address.then(|| name.to_owned())
}

/// Lanes; the kernel prints 0 or 255 where there is no link.
fn width(path: &Path) -> Option<u32> {
    kernel_files::value(path).filter(|lanes| (1..=32).contains(lanes))
}

/// `16.0 GT/s PCIe`, in older kernels `8 GT/s`; or `Unknown`.
fn speed(path: &Path) -> Option<f64> {
    kernel_files::value(path).filter(|speed: &f64| (1.0..=1024.0).contains(speed))
}

/// Whether access control services (PCIe base specification, 7.7.8) of a bridge send requests from one
/// device below it to another up to the root: P2P request redirect, P2P completion redirect or upstream
/// forwarding is on. The extended configuration space is readable for root only.
fn redirects(config: &[u8]) -> bool {
    const FIRST_EXTENDED: usize = 0x100;
    const ACS: u32 = 0x000d;
    const CONTROL: usize = 6;
    const REDIRECTING: u16 = 1 << 2 | 1 << 3 | 1 << 4;
    let word = |at: usize| {
        let bytes = config.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let mut at = FIRST_EXTENDED;
    // Each capability takes at least 4 of the 3840 bytes; a loop in the chain ends here too.
    for _ in 0..960 {
        let Some(header) = word(at) else { return false };
        if header & 0xffff == ACS {
            let control = config
                .get(at + CONTROL..at + CONTROL + 2)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u16::from_le_bytes);
            return control.is_some_and(|control| control & REDIRECTING != 0);
        }
        at = (header >> 20) as usize;
        if at < FIRST_EXTENDED {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An extended configuration space with one other capability and then ACS.
    fn config(control: u16) -> Vec<u8> {
        let mut config = vec![0; 4096];
        config[0x100..0x104].copy_from_slice(&(0x148 << 20 | 1 << 16 | 0x0001u32).to_le_bytes());
        config[0x148..0x14c].copy_from_slice(&(1 << 16 | 0x000du32).to_le_bytes());
        config[0x14e..0x150].copy_from_slice(&control.to_le_bytes());
        config
    }

    #[test]
    fn a_bridge_that_redirects_peer_traffic_is_seen() {
        assert!(redirects(&config(0x1d)));
        assert!(!redirects(&config(0x01)));
        assert!(
            !redirects(&config(0x1d)[..64]),
            "what an unprivileged reader gets"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_configuration_spaces_never_panic_or_hang(
            config in proptest::collection::vec(any::<u8>(), 0..600)
        ) {
            redirects(&config);
        }
    }
}
