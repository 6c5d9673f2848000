//! A machine's sysfs as files: adapters with virtual functions, as drivers show them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A tree below a temporary folder; removed on drop.
pub struct Machine(TempDir);

/// What a physical function is.
#[derive(Clone, Copy)]
pub struct Adapter {
    /// Its bus, on domain 0 and as device 0.
    pub bus: u8,
    /// Its function.
    pub function: u8,
    /// Its NUMA node.
    pub numa_node: u32,
    /// Whether it is InfiniBand and not Ethernet.
    pub infiniband: bool,
    /// Vital product data's serial number.
    pub serial: Option<&'static str>,
}

impl Adapter {
    /// One for RoCE.
    pub const ROCE: Adapter = Adapter {
        bus: 0x3b,
        function: 0,
        numa_node: 0,
        infiniband: false,
        serial: Some("MT2042X00123"),
    };

    /// Its PCI address.
    pub fn address(&self) -> String {
        format!("0000:{:02x}:00.{}", self.bus, self.function)
    }

    /// The PCI address of its n-th virtual function.
    pub fn vf(&self, index: u32) -> String {
        let at = index + 1;
        format!(
            "0000:{:02x}:{:02x}.{}",
            self.bus + (at / 256) as u8,
            at / 8 % 32,
            at % 8
        )
    }

    fn name(&self) -> String {
        format!("ens{}f{}", self.bus, self.function)
    }
}

impl Default for Machine {
    fn default() -> Machine {
        Machine::new()
    }
}

impl Machine {
    /// Without any adapter, below the folder of temporary files.
    pub fn new() -> Machine {
        Machine::below(&std::env::temp_dir())
    }

    /// Without any adapter, below this folder.
    pub fn below(folder: &Path) -> Machine {
        let machine = Machine(tempfile::tempdir_in(folder).expect("a folder"));
        fs::create_dir_all(machine.at("sys/bus/pci/devices")).expect("made");
        machine
    }

    /// The folder with `sys` and `dev`.
    pub fn root(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    /// A path below it.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(path)
    }

    /// Writes a file, as a whole.
    pub fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("below")).expect("made");
        if !path.exists() {
            return fs::write(path, text).expect("written");
        }
        // Never half a file: the plugin may look at any moment.
        let new = path.with_extension("new");
        fs::write(&new, text).expect("written");
        fs::rename(&new, path).expect("renamed");
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("below")).expect("made");
        symlink(target, path).expect("linked");
    }

    fn folder(adapter: &Adapter, address: &str) -> String {
        let root = format!("{:02x}", adapter.bus - 1);
        format!("sys/devices/pci0000:{root}/0000:{root}:00.0/{address}")
    }

    fn function(&self, adapter: &Adapter, address: &str, device: &str, driver: &str) -> String {
        let folder = Machine::folder(adapter, address);
        let file = |name: &str, text: &str| self.write(format!("{folder}/{name}"), text);
        let class = if adapter.infiniband { "20700" } else { "20000" };
        file("class", &format!("0x0{class}\n"));
        file("vendor", "0x15b3\n");
        file("device", &format!("0x{device}\n"));
        let told = format!(
            "DRIVER={driver}\nPCI_CLASS={class}\nPCI_ID=15B3:{}\nPCI_SLOT_NAME={address}\n",
            device.to_uppercase()
        );
        file("uevent", &told);
        file("numa_node", &format!("{}\n", adapter.numa_node));
        self.link(
            &format!("{folder}/driver"),
            &format!("../../../../bus/pci/drivers/{driver}"),
        );
        let target = folder.strip_prefix("sys/").expect("below sys");
        self.link(
            &format!("sys/bus/pci/devices/{address}"),
            &format!("../../../{target}"),
        );
        folder
    }

    /// Adds a physical function.
    pub fn adapter(&self, adapter: &Adapter, number: u32) {
        let address = adapter.address();
        let folder = self.function(adapter, &address, "101d", "mlx5_core");
        self.write(format!("{folder}/sriov_totalvfs"), "127\n");
        if let Some(serial) = adapter.serial {
            let mut vpd = vec![0x90, 3 + serial.len() as u8, 0];
            vpd.extend_from_slice(b"SN");
            vpd.push(serial.len() as u8);
            vpd.extend_from_slice(serial.as_bytes());
            vpd.push(0x78);
            fs::write(self.at(format!("{folder}/vpd")), vpd).expect("written");
        }
        self.net_device(adapter, &address, &adapter.name(), number);
        self.rdma(adapter, &address, number);
    }

    /// Adds the virtual functions of one, whose RDMA devices are numbered from `number` on.
    pub fn virtual_functions(&self, adapter: &Adapter, count: u32, number: u32) {
        for index in 0..count {
            let address = adapter.vf(index);
            let folder = self.function(adapter, &address, "101e", "mlx5_core");
            let pf = Machine::folder(adapter, &adapter.address());
            self.link(&format!("{pf}/virtfn{index}"), &format!("../{address}"));
            self.link(
                &format!("{folder}/physfn"),
                &format!("../{}", adapter.address()),
            );
            let name = format!("{}v{index}", adapter.name());
            self.net_device(adapter, &address, &name, number + index);
            self.rdma(adapter, &address, number + index);
        }
    }

    fn net_device(&self, adapter: &Adapter, address: &str, name: &str, number: u32) {
        let folder = format!("{}/net/{name}", Machine::folder(adapter, address));
        let kind = if adapter.infiniband { "32\n" } else { "1\n" };
        self.write(format!("{folder}/type"), kind);
        let mac = format!("02:00:00:00:{:02x}:{:02x}\n", number / 256, number % 256);
        self.write(format!("{folder}/address"), &mac);
    }

    fn rdma(&self, adapter: &Adapter, address: &str, number: u32) {
        let name = format!("mlx5_{number}");
        let pci = Machine::folder(adapter, address);
        let folder = format!("{pci}/infiniband/{name}");
        let file = |path: &str, text: &str| self.write(format!("{folder}/{path}"), text);
        file("node_type", "1: CA\n");
        let guid = format!("0200:00ff:fe00:{number:04x}\n");
        file("node_guid", &guid);
        file("ports/1/state", "4: ACTIVE\n");
        file("ports/1/phys_state", "5: LinkUp\n");
        file("ports/1/rate", "100 Gb/sec (4X EDR)\n");
        let layer = if adapter.infiniband {
            "InfiniBand\n"
        } else {
            "Ethernet\n"
        };
        file("ports/1/link_layer", layer);
        self.link(&format!("{folder}/device"), &format!("../../../{address}"));
        let target = folder.strip_prefix("sys/").expect("below sys");
        self.link(
            &format!("sys/class/infiniband/{name}"),
            &format!("../../{target}"),
        );
        let mut kinds = vec![("infiniband_verbs", "uverbs", 231, 192)];
        if adapter.infiniband {
            kinds.extend([
                ("infiniband_mad", "umad", 231, 0),
                ("infiniband_mad", "issm", 231, 64),
            ]);
        }
        for (class, kind, major, minor) in kinds {
            let device = format!("{kind}{number}");
            let folder = format!("{pci}/{class}/{device}");
            self.write(format!("{folder}/ibdev"), &format!("{name}\n"));
            self.write(
                format!("{folder}/dev"),
                &format!("{major}:{}\n", minor + number),
            );
            let target = folder.strip_prefix("sys/").expect("below sys");
            self.link(
                &format!("sys/class/{class}/{device}"),
                &format!("../../{target}"),
            );
            self.write(format!("dev/infiniband/{device}"), "");
        }
        self.write("dev/infiniband/rdma_cm", "");
    }

    /// Sets the state of the RDMA port of a function.
    pub fn set_port(&self, adapter: &Adapter, address: &str, number: u32, up: bool) {
        let state = if up { "4: ACTIVE\n" } else { "1: DOWN\n" };
        self.port_file(adapter, address, number, "state", state);
    }

    /// Writes a file of the RDMA port of a function, such as `counters/symbol_error`.
    pub fn port_file(&self, adapter: &Adapter, address: &str, number: u32, file: &str, text: &str) {
        let pci = Machine::folder(adapter, address);
        self.write(
            format!("{pci}/infiniband/mlx5_{number}/ports/1/{file}"),
            text,
        );
    }

    /// Takes a function's net and RDMA devices away, as a move into a pod's network namespace does; what is
    /// returned puts them back.
    pub fn move_away(&self, adapter: &Adapter, address: &str, number: u32) -> Moved {
        let pci = Machine::folder(adapter, address);
        let mut moved = Vec::new();
        for part in ["net", "infiniband", "infiniband_verbs"] {
            let (from, to) = (format!("{pci}/{part}"), format!("away/{address}/{part}"));
            fs::create_dir_all(self.at(format!("away/{address}"))).expect("made");
            fs::rename(self.at(&from), self.at(&to)).expect("moved");
            moved.push((self.at(to), self.at(from)));
        }
        for link in [
            format!("sys/class/infiniband/mlx5_{number}"),
            format!("sys/class/infiniband_verbs/uverbs{number}"),
        ] {
            let to = self.at(format!("away/{address}/{}", link.replace('/', "_")));
            fs::rename(self.at(&link), &to).expect("moved");
            moved.push((to, self.at(link)));
        }
        Moved(moved)
    }

    /// Takes a function out.
    pub fn remove(&self, address: &str) {
        fs::remove_file(self.at(format!("sys/bus/pci/devices/{address}"))).expect("removed");
    }
}

/// What [`Machine::move_away`] took.
pub struct Moved(Vec<(PathBuf, PathBuf)>);

impl Moved {
    /// Puts it back.
    pub fn back(self) {
        for (from, to) in self.0.into_iter().rev() {
            fs::rename(from, to).expect("moved back");
        }
    }
}
