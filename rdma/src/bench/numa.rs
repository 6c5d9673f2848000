//! Binds the measuring thread to the processors of a NUMA node.

use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::BenchError;

/// The calling thread runs on a node's processors for as long as this lives.
pub(super) struct Bound {
    before: CpuSet,
}

impl Bound {
    pub(super) fn to(node: u32) -> Result<Bound, BenchError> {
        Self::to_list(node, Path::new("/sys/devices/system/node"))
    }

    fn to_list(node: u32, nodes: &Path) -> Result<Bound, BenchError> {
        let refuse = |reason: String| BenchError::Numa { node, reason };
        let path = nodes.join(format!("node{node}/cpulist"));
        let text = std::fs::read_to_string(&path)
            .map_err(|error| refuse(format!("{}: {error}", path.display())))?;
        let mut set = CpuSet::new();
        let cpus = cpus(&text).ok_or_else(|| refuse(format!("{:?} lists none", text.trim())))?;
        for cpu in cpus {
            set.set(cpu)
                .map_err(|error| refuse(format!("processor {cpu}: {error}")))?;
        }
        let own = Pid::from_raw(0);
        let before = sched_getaffinity(own).map_err(|error| refuse(error.to_string()))?;
        sched_setaffinity(own, &set).map_err(|error| refuse(error.to_string()))?;
        Ok(Bound { before })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // It was allowed before; should it no longer be, the thread stays where it is.
        sched_setaffinity(Pid::from_raw(0), &self.before).ok();
    }
}

/// The processors of a list such as `0-3,8`; `None` for another text or for none at all.
fn cpus(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || last - first > 1 << 16 {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(cpus("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(cpus("5"), Some(vec![5]));
        for wrong in ["", "\n", "3-1", "a", "0-99999999"] {
            assert_eq!(cpus(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = Bound::to_list(7, folder.path()).err().expect("no node 7");
        assert!(error.to_string().contains("NUMA node 7"), "{error}");
    }

    #[test]
    fn the_thread_returns_to_where_it_could_run_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = Pid::from_raw(0);
        let before = sched_getaffinity(own).expect("an affinity");
        let first = (0..CpuSet::count())
            .find(|cpu| before.is_set(*cpu) == Ok(true))
            .expect("a processor");
        let node = folder.path().join("node0");
        std::fs::create_dir(&node).expect("a folder");
        std::fs::write(node.join("cpulist"), format!("{first}\n")).expect("a file");
        let bound = Bound::to_list(0, folder.path()).expect("bound");
        let now = sched_getaffinity(own).expect("an affinity");
        assert!((0..CpuSet::count()).all(|cpu| now.is_set(cpu) == Ok(cpu == first)));
        drop(bound);
        assert_eq!(sched_getaffinity(own).expect("an affinity"), before);
    }
}
