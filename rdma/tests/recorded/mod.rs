//! File trees in the shape of sysfs and procfs, with values as real machines print them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use trackbed_rdma::check::{CheckReport, Expectation, Finding, Scope, gather, judge};

/// A recorded node.
pub(crate) struct Recorded(TempDir);

impl Recorded {
    pub(crate) fn new() -> Recorded {
        Recorded(TempDir::new().expect("a temporary folder"))
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, path: &str, text: impl AsRef<[u8]>) -> &Recorded {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(path, text).expect("a file");
        self
    }

    pub(crate) fn remove(&self, path: &str) -> &Recorded {
        let path = self.root().join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).expect("a folder removed");
        } else {
            fs::remove_file(path).expect("a file removed");
        }
        self
    }

    fn link(&self, path: &str, target: &Path) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        symlink(target, path).expect("a link");
    }

    /// A node with two NUMA nodes and no limit on locked memory.
    pub(crate) fn node() -> Recorded {
        let tree = Recorded::new();
        tree.file(
            "proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max locked memory         unlimited            unlimited            bytes     \n",
        )
        .file(
            "proc/self/status",
            "Name:\ttrackbed\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-15\n",
        )
        .file("proc/812/comm", "containerd\n")
        .file(
            "proc/812/limits",
            "Max locked memory         unlimited            unlimited            bytes\n",
        )
        .file("sys/devices/system/node/node0/cpulist", "0-7\n")
        .file("sys/devices/system/node/node1/cpulist", "8-15\n")
        .file(
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "1024\n",
        )
        .file(
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "1000\n",
        )
        .file("sys/class/misc/rdma_cm/dev", "10:58\n");
        tree
    }

    /// An adapter in a x16 slot of PCIe 4, with ports that are all well.
    pub(crate) fn adapter(&self, index: usize, ports: u32) -> &Recorded {
        let name = format!("mlx5_{index}");
        let bus = format!("0000:{:02x}:00.0", 0x3b + index);
        let slot = format!("sys/devices/pci0000:3a/0000:3a:{index:02x}.0");
        let pci = format!("{slot}/{bus}");
        for (place, folder) in [(&slot, true), (&pci, false)] {
            self.file(&format!("{place}/max_link_width"), "16\n")
                .file(&format!("{place}/max_link_speed"), "16.0 GT/s PCIe\n")
                .file(&format!("{place}/current_link_width"), "16\n")
                .file(&format!("{place}/current_link_speed"), "16.0 GT/s PCIe\n")
                .file(&format!("{place}/numa_node"), "1\n");
            if !folder {
                self.file(&format!("{place}/iommu_group/type"), "identity\n");
            }
        }
        let class = format!("sys/class/infiniband/{name}");
        self.link(&format!("{class}/device"), &self.root().join(&pci));
        self.file(&format!("{class}/node_type"), "1: CA\n")
            .file(&format!("{class}/fw_ver"), "22.39.2048\n")
            .file(&format!("{class}/hca_type"), "MT4125\n")
            .file(&format!("{class}/board_id"), "MT_0000000359\n")
            .file(
                &format!("sys/class/infiniband_verbs/uverbs{index}/ibdev"),
                format!("{name}\n"),
            );
        for port in 1..=ports {
            self.port(index, port);
        }
        self
    }

    /// The folder of a port of an adapter.
    pub(crate) fn port_folder(index: usize, port: u32) -> String {
        format!("sys/class/infiniband/mlx5_{index}/ports/{port}")
    }

    fn port(&self, index: usize, port: u32) {
        let folder = Recorded::port_folder(index, port);
        let net = format!("ens{index}f{}", port - 1);
        let host = 16 * index + port as usize;
        self.file(&format!("{folder}/state"), "4: ACTIVE\n")
            .file(&format!("{folder}/phys_state"), "5: LinkUp\n")
            .file(&format!("{folder}/rate"), "100 Gb/sec (4X EDR)\n")
            .file(&format!("{folder}/link_layer"), "Ethernet\n")
            .file(&format!("{folder}/lid"), "0x0\n")
            .file(
                &format!("{folder}/gids/0"),
                format!("fe80:0000:0000:0000:ba59:9fff:fea1:{host:04x}\n"),
            )
            .file(&format!("{folder}/gid_attrs/types/0"), "RoCE v2\n")
            .file(&format!("{folder}/gid_attrs/ndevs/0"), format!("{net}\n"))
            .file(
                &format!("{folder}/gids/1"),
                format!("0000:0000:0000:0000:0000:ffff:0a00:{host:04x}\n"),
            )
            .file(&format!("{folder}/gid_attrs/types/1"), "RoCE v2\n")
            .file(&format!("{folder}/gid_attrs/ndevs/1"), format!("{net}\n"))
            .file(&format!("{folder}/counters/symbol_error"), "0\n")
            .file(&format!("{folder}/counters/port_xmit_data"), "123456\n")
            .file(&format!("{folder}/hw_counters/out_of_sequence"), "0\n")
            .file(&format!("{folder}/hw_counters/lifespan"), "10\n");
        self.file(&format!("sys/class/net/{net}/mtu"), "9000\n")
            .file(&format!("sys/class/net/{net}/speed"), "100000\n")
            .file(&format!("sys/class/net/{net}/duplex"), "full\n");
        for (end, on) in [("roce_np", 0b1000), ("roce_rp", 0b1000)] {
            for priority in 0..8 {
                let enabled = u32::from(on & (1 << priority) != 0);
                self.file(
                    &format!("sys/class/net/{net}/ecn/{end}/enable/{priority}"),
                    format!("{enabled}\n"),
                );
            }
        }
    }

    pub(crate) fn check(&self) -> CheckReport {
        self.check_with(&Expectation::default())
    }

    pub(crate) fn check_with(&self, expectation: &Expectation) -> CheckReport {
        let scope = Scope {
            root: self.root(),
            live: false,
            selections: &[],
        };
        let facts = gather(&scope).expect("facts");
        CheckReport::new("node-1".to_owned(), judge(&facts, expectation))
    }
}

/// The findings that are worse than notes, as `id subject`.
pub(crate) fn troubles(report: &CheckReport) -> Vec<String> {
    report
        .findings
        .iter()
        .filter(|finding| finding.severity > trackbed_rdma::check::Severity::Note)
        .map(|finding| format!("{} {}", finding.id, finding.subject))
        .collect()
}

/// The one finding with this id about this subject.
pub(crate) fn finding<'a>(report: &'a CheckReport, id: &str, subject: &str) -> &'a Finding {
    let mut found = report
        .findings
        .iter()
        .filter(|finding| finding.id == id && finding.subject == subject);
    match (found.next(), found.next()) {
        (Some(finding), None) => finding,
        _ => panic!("not one {id} of {subject} in {:#?}", report.findings),
    }
}
