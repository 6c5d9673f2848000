//! Facts about the node itself, from procfs and sysfs.

use std::path::Path;

use crate::check::facts::{HugePages, Memlock, NodeFacts};
use crate::kernel_files;

/// Runtimes whose limits containers inherit, by the name of their process.
const RUNTIMES: [&str; 3] = ["containerd", "crio", "dockerd"];
/// The bit of CAP_IPC_LOCK (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;

pub(super) fn read(root: &Path) -> NodeFacts {
    let proc = root.join("proc");
    let own = proc.join("self");
    let status = kernel_files::text(&own.join("status")).unwrap_or_default();
    let capabilities =
        field(&status, "CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
    NodeFacts {
        memlock: kernel_files::text(&own.join("limits")).and_then(|text| memlock(&text)),
        may_lock_all: capabilities.is_some_and(|set| set & (1 << CAP_IPC_LOCK) != 0),
        runtime_memlock: runtime(&proc),
        huge_pages: huge_pages(&root.join("sys/kernel/mm/hugepages")),
        allowed_cpus: field(&status, "Cpus_allowed_list:").and_then(kernel_files::cpus),
        numa_cpus: numa(&root.join("sys/devices/system/node")),
        has_rdma_cm: root.join("sys/class/misc/rdma_cm").exists(),
    }
}

/// A line of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// The soft limit out of `/proc/PID/limits`: `Max locked memory  8388608  8388608  bytes`.
fn memlock(limits: &str) -> Option<Memlock> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(Memlock::Unlimited),
        number => Some(Memlock::Bytes(number.parse().ok()?)),
    }
}

fn runtime(proc: &Path) -> Option<(String, Memlock)> {
    kernel_files::names(proc)
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .find_map(|id| {
            let process = proc.join(id);
            let name = kernel_files::text(&process.join("comm"))?;
            if !RUNTIMES.contains(&name.as_str()) {
                return None;
            }
            let limit = memlock(&kernel_files::text(&process.join("limits"))?)?;
            Some((name, limit))
        })
}

fn huge_pages(folder: &Path) -> Vec<HugePages> {
    let mut found: Vec<HugePages> = kernel_files::names(folder)
        .iter()
        .filter_map(|name| {
            let kilobytes: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let pool = folder.join(name);
            Some(HugePages {
                bytes: kilobytes.checked_mul(1024)?,
                total: kernel_files::value(&pool.join("nr_hugepages"))?,
                free: kernel_files::value(&pool.join("free_hugepages"))?,
            })
        })
        .collect();
    found.sort_by_key(|pages| pages.bytes);
    found
}

fn numa(folder: &Path) -> Vec<(u32, Vec<u32>)> {
    kernel_files::names(folder)
        .iter()
        .filter_map(|name| {
            let number = name.strip_prefix("node")?.parse().ok()?;
            let list =
                String::from_utf8(kernel_files::bytes(&folder.join(name).join("cpulist"))?).ok()?;
            Some((number, kernel_files::cpus(&list)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_on_locked_memory_is_read_as_the_kernel_prints_it() {
        let head =
            "Limit                     Soft Limit           Hard Limit           Units     \n";
        let line = |soft: &str| {
            format!(
                "{head}Max locked memory         {soft}              8388608              bytes     \n"
            )
        };
        assert_eq!(memlock(&line("8388608")), Some(Memlock::Bytes(8 << 20)));
        assert_eq!(memlock(&line("unlimited")), Some(Memlock::Unlimited));
        assert_eq!(memlock(&line("-1")), None);
        assert_eq!(memlock(head), None);
    }
}
