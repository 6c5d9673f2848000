//! The kernel's side: sysfs for numbers, vectors and MTUs, rtnetlink for what the port's driver sets.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use trackbed_rdma::kernel_files;

use super::setting::{Mtu, Setting, Vectors};
use super::{PortState, Switch, msix, netlink};
use crate::function::PciAddress;

/// How long a driver may take to make a net device after it is bound.
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The kernel's, of this machine.
#[derive(Debug)]
pub struct Kernel {
    /// Below which `/sys` lies. Below another one than `/`, links are not asked about or set: the kernel
    /// knows this machine's only.
    pub root: PathBuf,
}

impl Kernel {
    fn path(&self, address: PciAddress, file: &str) -> PathBuf {
        self.root
            .join(format!("sys/bus/pci/devices/{address}/{file}"))
    }

    /// The index of a port's net device; `None` if it has none here.
    fn link(&self, physical: PciAddress) -> Option<u32> {
        if self.root != Path::new("/") {
            return None;
        }
        let name = self.net_devices(physical).into_iter().next()?;
        let index = kernel_files::text(&self.path(physical, &format!("net/{name}/ifindex")))?;
        index.parse().ok()
    }

    fn net_devices(&self, address: PciAddress) -> Vec<String> {
        kernel_files::names(&self.path(address, "net"))
    }

    /// Where a port's `index`-th virtual function is.
    fn function(&self, physical: PciAddress, index: u32) -> io::Result<PciAddress> {
        let path = self.path(physical, &format!("virtfn{index}"));
        let target = fs::read_link(path)?;
        let name = target.file_name().and_then(|name| name.to_str());
        let address = name.and_then(|name| name.parse().ok());
        address.ok_or_else(|| io::Error::other(format!("virtfn{index} leads to no function")))
    }

    /// What sysfs says of a virtual function.
    fn in_sysfs(&self, function: PciAddress) -> impl Iterator<Item = Setting> {
        let space = kernel_files::bytes(&self.path(function, "config"));
        let vectors = space.and_then(|space| msix::vectors(&space));
        let mtu = self.net_devices(function).into_iter().next();
        let mtu = mtu.and_then(|name| {
            kernel_files::text(&self.path(function, &format!("net/{name}/mtu")))?
                .parse()
                .ok()
        });
        let vectors = vectors.map(|count| Setting::Msix(Vectors(count)));
        let mtu = mtu.map(|bytes| Setting::Mtu(Mtu(bytes)));
        vectors.into_iter().chain(mtu)
    }

    fn set_one(
        &self,
        physical: PciAddress,
        index: u32,
        function: PciAddress,
        setting: &Setting,
    ) -> io::Result<()> {
        match setting {
            Setting::Msix(Vectors(count)) => fs::write(
                self.path(function, "sriov_vf_msix_count"),
                count.to_string(),
            ),
            Setting::Mtu(Mtu(bytes)) => {
                // udev may rename the net device just then.
                self.with_net_device(function, |name| {
                    let file = self.path(function, &format!("net/{name}/mtu"));
                    fs::write(file, bytes.to_string())
                })
            }
            _ => {
                let link = self.link(physical).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::NotFound,
                        "the physical function has no net device in this machine's first network namespace",
                    )
                })?;
                netlink::set(link, index, setting)
            }
        }
    }

    /// Does something with a function's net device, as soon as it has one.
    fn with_net_device(
        &self,
        function: PciAddress,
        f: impl Fn(&str) -> io::Result<()>,
    ) -> io::Result<()> {
        let began = Instant::now();
        loop {
            let done = match self.net_devices(function).first() {
                Some(name) => f(name),
                None => Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "it has no net device here",
                )),
            };
            match done {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if began.elapsed() > DEADLINE {
                        return Err(error);
                    }
                    thread::sleep(LOOK_EVERY);
                }
                done => return done,
            }
        }
    }

    fn bind(&self, driver: &str, function: PciAddress) -> io::Result<()> {
        let path = self.root.join(format!("sys/bus/pci/drivers/{driver}/bind"));
        fs::write(path, function.to_string())
    }
}

impl Switch for Kernel {
    fn set_count(&self, physical: PciAddress, count: u32) -> io::Result<()> {
        fs::write(self.path(physical, "sriov_numvfs"), count.to_string())
    }

    fn count(&self, physical: PciAddress) -> io::Result<u32> {
        let text = fs::read_to_string(self.path(physical, "sriov_numvfs"))?;
        text.trim().parse().map_err(io::Error::other)
    }

    fn port(&self, physical: PciAddress) -> io::Result<PortState> {
        let link = self.link(physical).map(netlink::look).transpose()?;
        let link = link.unwrap_or_default();
        let mut told = link.functions.into_iter();
        let vectors = kernel_files::text(&self.path(physical, "sriov_vf_total_msix"));
        let mut functions = Vec::new();
        // They are numbered without a gap, and there are 65,535 at most.
        for index in 0..=u32::from(u16::MAX) {
            let Ok(function) = self.function(physical, index) else {
                break;
            };
            let mut settings = told.next().unwrap_or_default();
            settings.extend(self.in_sysfs(function));
            settings.sort_unstable();
            functions.push(settings);
        }
        Ok(PortState {
            permanent: link.permanent,
            vectors: vectors.and_then(|text| text.parse().ok()),
            functions,
        })
    }

    fn set(&self, physical: PciAddress, index: u32, settings: &[Setting]) -> io::Result<()> {
        let of_it = |what: &str, error: io::Error| {
            let why = format!("virtual function {index}: {what}: {error}");
            io::Error::new(error.kind(), why)
        };
        let function = self
            .function(physical, index)
            .map_err(|error| of_it("looking for it", error))?;
        let (unbound, bound): (Vec<_>, Vec<_>) =
            settings.iter().partition(|it| it.is_read_at_bind());
        let set = |settings: Vec<&Setting>| {
            settings.into_iter().try_for_each(|setting| {
                let what = format!("{} {setting}", setting.name());
                self.set_one(physical, index, function, setting)
                    .map_err(|error| of_it(&what, error))
            })
        };
        if !unbound.is_empty() {
            let driver = fs::read_link(self.path(function, "driver")).ok();
            let driver = driver.and_then(|it| Some(it.file_name()?.to_str()?.to_owned()));
            let had_net_device = !self.net_devices(function).is_empty();
            if driver.is_some() {
                fs::write(self.path(function, "driver/unbind"), function.to_string())
                    .map_err(|error| of_it("taking it from its driver", error))?;
            }
            let done = set(unbound);
            // Also after a failure: it is to be as it was.
            if let Some(driver) = driver {
                let bound = self.bind(&driver, function);
                bound.map_err(|error| of_it("giving it back to its driver", error))?;
                if had_net_device {
                    self.with_net_device(function, |_| Ok(()))
                        .map_err(|error| of_it("waiting for its driver", error))?;
                }
            }
            done?;
        }
        set(bound)
    }
}
