//! Kubelet's folders: where they are, and where kubelet itself says they are.

use std::path::{Path, PathBuf};
use trackbed_rdma::check::Finding;
use trackbed_rdma::kernel_files;

/// Where kubelet keeps its folders unless it is told another place.
const DEFAULT_ROOT: &str = "/var/lib/kubelet";

/// What of them we use, and for what.
const FOLDERS: [(&str, &str); 4] = [
    ("pods", "volumes are mounted there"),
    ("plugins", "volumes are staged there"),
    ("plugins_registry", "the CSI driver registers there"),
    ("device-plugins", "the device plugin registers there"),
];

/// Looks at the folders below `root`, and at the kubelet among the processes of `proc`, if it is seen.
pub(super) fn look(proc: &Path, root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(actual) = running(proc) {
        findings.push(same(root, &actual));
    }
    findings.extend(
        FOLDERS
            .iter()
            .map(|(name, what)| folder(&root.join(name), what)),
    );
    findings
}

fn same(root: &Path, actual: &Path) -> Finding {
    const ID: &str = "kubelet/root";
    let found = format!("kubelet's folder is {}", actual.display());
    if actual == root {
        Finding::ok(ID, "kubelet", found)
    } else {
        Finding::failure(ID, "kubelet", found)
            .expected(root.display().to_string())
            .remedy(format!(
                "set kubelet.root of the chart to {}",
                actual.display()
            ))
    }
}

fn folder(folder: &Path, what: &str) -> Finding {
    const ID: &str = "kubelet/folder";
    let subject = folder.display().to_string();
    if folder.is_dir() {
        Finding::ok(ID, &subject, what)
    } else {
        Finding::failure(ID, &subject, "it is not there")
            .expected(what)
            .remedy("name kubelet's folder with --kubelet-root (kubelet.root of the chart): its --root-dir")
    }
}

/// What the kubelet that runs was told.
fn running(proc: &Path) -> Option<PathBuf> {
    let ids = kernel_files::names(proc);
    ids.iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .find_map(|id| {
            let process = proc.join(id);
            let name = kernel_files::text(&process.join("comm"))?;
            (name == "kubelet").then(|| root_of(&kernel_files::bytes(&process.join("cmdline"))?))?
        })
}

/// The folder that a kubelet's command line names.
fn root_of(command: &[u8]) -> Option<PathBuf> {
    let mut words = command.split(|&byte| byte == 0).skip(1);
    while let Some(word) = words.next() {
        let word = std::str::from_utf8(word).ok()?;
        match word.trim_start_matches('-').split_once('=') {
            Some(("root-dir", folder)) => return Some(folder.into()),
            None if word.starts_with('-') && word.trim_start_matches('-') == "root-dir" => {
                return Some(std::str::from_utf8(words.next()?).ok()?.into());
            }
            _ => {}
        }
    }
    Some(DEFAULT_ROOT.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use trackbed_rdma::check::Severity;

    fn kubelet(command: &[u8]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let process = proc.path().join("17");
        fs::create_dir(&process).unwrap();
        fs::write(process.join("comm"), "kubelet\n").unwrap();
        fs::write(process.join("cmdline"), command).unwrap();
        proc
    }

    #[test]
    fn a_kubelet_with_another_folder_is_told_of_with_the_value_to_set() {
        for command in [
            &b"/usr/bin/kubelet\0--v=2\0--root-dir=/data/kubelet\0"[..],
            b"kubelet\0--root-dir\0/data/kubelet\0--v\x002\0",
        ] {
            let proc = kubelet(command);
            let findings = look(proc.path(), Path::new("/var/lib/kubelet"));
            let remedy = findings[0].remedy.as_deref().unwrap_or_default();
            assert_eq!(findings[0].severity, Severity::Failure);
            assert!(
                remedy.contains("kubelet.root of the chart to /data/kubelet"),
                "{remedy}"
            );
        }
        let proc = kubelet(b"kubelet\0--v=2\0");
        assert_eq!(running(proc.path()), Some(DEFAULT_ROOT.into()));
    }

    #[test]
    fn folders_that_lack_are_failures() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("pods")).unwrap();
        let findings = look(root.path(), root.path());
        let bad = findings
            .iter()
            .filter(|it| it.severity == Severity::Failure);
        assert_eq!(bad.count(), FOLDERS.len() - 1);
    }
}
