//! What concerns the node as a whole: locked memory, huge pages, CPUs, librdmacm's device.

use crate::check::Finding;
use crate::check::facts::{Facts, Memlock, NodeFacts};

const NODE: &str = "node";
/// A training process registers gigabytes; containerd's default of 8 MiB is the usual trap.
const ENOUGH: u64 = 1 << 30;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![own_memlock(&facts.node)];
    findings.extend(runtime_memlock(&facts.node));
    findings.push(huge_pages(&facts.node));
    if !facts.node.has_rdma_cm {
        findings.push(
            Finding::note("verbs/cm", NODE, "librdmacm has no device")
                .expected("/dev/infiniband/rdma_cm, for programs that connect by IP address")
                .remedy("modprobe rdma_ucm"),
        );
    }
    findings.extend(
        facts.devices.iter().filter_map(|device| {
            affinity(&facts.node, &device.device.name, device.device.numa_node)
        }),
    );
    findings
}

fn mib(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn own_memlock(node: &NodeFacts) -> Finding {
    const ID: &str = "memory/memlock";
    match node.memlock {
        Some(Memlock::Unlimited) => Finding::ok(ID, NODE, "memory may be locked without limit"),
        Some(Memlock::Bytes(bytes)) if node.may_lock_all => Finding::ok(
            ID,
            NODE,
            format!(
                "the limit of {} does not bind us (CAP_IPC_LOCK)",
                mib(bytes)
            ),
        ),
        Some(Memlock::Bytes(bytes)) => {
            let found = format!("{} may be locked", mib(bytes));
            if bytes >= ENOUGH {
                Finding::ok(ID, NODE, found)
            } else {
                Finding::warning(ID, NODE, found)
                    .expected("1 GiB or more: memory regions and io_uring's buffers count both")
                    .remedy("raise memlock in /etc/security/limits.conf, or LimitMEMLOCK= of the service")
            }
        }
        None => Finding::note(ID, NODE, "the limit on locked memory can't be read"),
    }
}

fn runtime_memlock(node: &NodeFacts) -> Option<Finding> {
    const ID: &str = "memory/containers";
    let (runtime, limit) = node.runtime_memlock.as_ref()?;
    Some(match limit {
        Memlock::Unlimited => Finding::ok(
            ID,
            NODE,
            format!("containers of {runtime} may lock memory without limit"),
        ),
        Memlock::Bytes(bytes) if *bytes >= ENOUGH => Finding::ok(
            ID,
            NODE,
            format!("containers of {runtime} may lock {}", mib(*bytes)),
        ),
        Memlock::Bytes(bytes) => Finding::warning(
            ID,
            NODE,
            format!("containers of {runtime} may lock {}", mib(*bytes)),
        )
        .expected("1 GiB or more; CAP_IPC_LOCK alone does nothing for a pod that isn't root")
        .remedy(format!(
            "LimitMEMLOCK=infinity in a drop-in of {runtime}.service, then restart it"
        )),
    })
}

fn huge_pages(node: &NodeFacts) -> Finding {
    const ID: &str = "memory/hugepages";
    let reserved: Vec<String> = node
        .huge_pages
        .iter()
        .filter(|pages| pages.total > 0)
        .map(|pages| {
            format!(
                "{} of {} free of {}",
                pages.free,
                pages.total,
                mib(pages.bytes)
            )
        })
        .collect();
    let any_free = node.huge_pages.iter().any(|pages| pages.free > 0);
    if reserved.is_empty() {
        return Finding::note(ID, NODE, "none are reserved")
            .remedy("sysctl vm.nr_hugepages=N, if what runs here wants them");
    }
    let found = reserved.join(", ");
    if any_free {
        Finding::ok(ID, NODE, found)
    } else {
        Finding::note(ID, NODE, found).remedy("raise vm.nr_hugepages if more are wanted")
    }
}

/// Whether we may run near a device.
fn affinity(node: &NodeFacts, device: &str, numa_node: Option<u32>) -> Option<Finding> {
    const ID: &str = "numa/cpus";
    let allowed = node.allowed_cpus.as_ref()?;
    let Some(number) = numa_node else {
        let several = node.numa_cpus.len() > 1;
        return several.then(|| {
            Finding::note(ID, device, "the platform doesn't tell its NUMA node").remedy(
                "look for a setting of NUMA or sub-NUMA clustering in the firmware's set-up",
            )
        });
    };
    let (_, near) = node.numa_cpus.iter().find(|(node, _)| *node == number)?;
    let count = near.iter().filter(|cpu| allowed.contains(cpu)).count();
    let found = format!("we may use {count} of the {} CPUs near it", near.len());
    Some(if count > 0 || near.is_empty() {
        Finding::ok(ID, device, format!("NUMA node {number}: {found}"))
    } else {
        Finding::warning(ID, device, format!("NUMA node {number}: {found}"))
            .expected("at least one")
            .remedy(format!(
                "numactl --cpunodebind={number}, or let the CPU manager and topology manager of kubelet align them"
            ))
    })
}
