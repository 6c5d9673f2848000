//! What a container needs of a function, looked up at that moment: names and numbers change.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use thiserror::Error;

use super::tree::Tree;
use super::{char_devices_of, function_path};
use crate::function::{CharDevice, PciAddress};

/// Where udev makes the character devices.
const FOLDER: &str = "dev/infiniband";
/// The one that connections are made with, which all devices share.
const CONNECTION_MANAGER: &str = "rdma_cm";

/// What a container needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Its net devices here.
    pub net_devices: Vec<String>,
    /// Its RDMA device.
    pub rdma: Option<String>,
    /// Paths of character devices, as they are on this host.
    pub char_devices: Vec<PathBuf>,
}

/// A device file is not what sysfs says.
#[derive(Debug, Error)]
pub enum NeedsError {
    /// It is not there.
    #[error("{}: {source}: does udev run, and is /dev/infiniband mounted into this container?", .path.display())]
    Missing {
        /// The device file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is another device's.
    #[error(
        "{} is device {found:?} and sysfs says {expected:?}: it is left from a device that is gone; remove it and \
         run `udevadm trigger`",
        .path.display()
    )]
    Another {
        /// The device file.
        path: PathBuf,
        /// Its numbers.
        found: (u32, u32),
        /// Those of the device that is meant.
        expected: (u32, u32),
    },
}

/// What is needed of the function at `address` now.
pub fn needs(root: &Path, address: PciAddress) -> Result<Needs, NeedsError> {
    let tree = Tree::new(root);
    let names = |folder: &str| tree.names(&function_path(address, folder));
    let net_devices = names("net");
    let own = names("infiniband").into_iter().next();
    let rdma = own.or_else(|| made_of(&tree, &net_devices));
    let mut char_devices = Vec::new();
    if let Some(rdma) = &rdma {
        for device in char_devices_of(&tree, address, rdma) {
            char_devices.push(checked(root, &device)?);
        }
        let manager = root.join(FOLDER).join(CONNECTION_MANAGER);
        if manager.exists() {
            char_devices.push(manager);
        }
    }
    Ok(Needs {
        net_devices,
        rdma,
        char_devices,
    })
}

/// The RDMA device that software makes of a net device (`rdma link add`).
fn made_of(tree: &Tree<'_>, net_devices: &[String]) -> Option<String> {
    let class = "sys/class/infiniband";
    tree.names(class).into_iter().find(|name| {
        let parent = tree.text(&format!("{class}/{name}/parent"));
        parent.is_some_and(|parent| net_devices.contains(&parent))
    })
}

fn checked(root: &Path, device: &CharDevice) -> Result<PathBuf, NeedsError> {
    let path = root.join(FOLDER).join(&device.name);
    let found = match fs::metadata(&path) {
        Ok(found) => found,
        Err(source) => return Err(NeedsError::Missing { path, source }),
    };
    // In a recorded tree it is a plain file.
    let numbers = (major(found.rdev()) as u32, minor(found.rdev()) as u32);
    if found.file_type().is_char_device() && numbers != device.numbers {
        return Err(NeedsError::Another {
            path,
            found: numbers,
            expected: device.numbers,
        });
    }
    Ok(path)
}
