//! How many virtual functions each physical function is to have and what they are set to: looked at,
//! planned as a whole, then carried out.
//!
//! Linux changes a number of virtual functions that is not 0 only through 0: all of that port's go and
//! come again. So a port is left alone if it is as it is to be, and refused to be changed while a pod has
//! a function that the change would reach. What was set is read back and compared.

mod apply;
mod identity;
mod kernel;
mod msix;
mod netlink;
mod plan;
mod setting;
#[cfg(test)]
mod tests;
mod wanted;

use std::io;

pub use apply::{ApplyError, apply};
pub use identity::Identity;
pub use kernel::Kernel;
pub use plan::{Change, PlanError, Ports, Step, look, plan};
pub use setting::{Guid, LinkState, Mac, Mtu, Rate, Setting, Vectors, Vlan, VlanProtocol};
pub use wanted::{Indexes, SomeFunctions, VirtualFunctions, Wanted, WantedSettings};

use crate::function::PciAddress;

/// What a port and its virtual functions are like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortState {
    /// The hardware address that the port was made with.
    pub permanent: Option<Vec<u8>>,
    /// How many interrupt vectors its virtual functions can share; `None` if they can't be moved.
    pub vectors: Option<u32>,
    /// What its virtual functions are set to, by index; what is not told is missing.
    pub functions: Vec<Vec<Setting>>,
}

/// What looks at ports and changes them.
pub trait Switch: Sync {
    /// Has so many virtual functions made of a port that has none, or all removed.
    fn set_count(&self, physical: PciAddress, count: u32) -> io::Result<()>;

    /// How many there are.
    fn count(&self, physical: PciAddress) -> io::Result<u32>;

    /// What the port is like.
    fn port(&self, physical: PciAddress) -> io::Result<PortState>;

    /// Sets its `index`-th virtual function; other settings than these stay, except the MTU if one of
    /// these is read when a driver is bound.
    fn set(&self, physical: PciAddress, index: u32, settings: &[Setting]) -> io::Result<()>;
}
