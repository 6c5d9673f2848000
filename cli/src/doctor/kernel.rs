//! What the kernel does for us: rings, FUSE, EROFS images.

use crate::node::engine;
use std::path::Path;
use trackbed_csi::expose::choose::{Findings, Way, choose};
use trackbed_csi::expose::erofs;
use trackbed_csi::expose::fuse::trial;
use trackbed_rdma::check::Finding;

const NODE: &str = "node";

/// Tries each out; `memory` is what a node pins, in bytes, and `folder` one on the cache's disk.
pub(super) fn look(memory: u64, folder: &Path) -> Vec<Finding> {
    let mut findings = vec![ring(memory)];
    findings.extend(fuse(folder));
    findings.push(images(folder));
    findings
}

/// The ring and memory of a node, as the node itself starts them.
fn ring(memory: u64) -> Finding {
    const ID: &str = "kernel/io-uring";
    engine::raise_memory_lock_limit();
    match engine::start_shard(memory) {
        Ok(shard) => {
            drop(shard);
            let found = format!("a ring starts, with {} MiB pinned", memory >> 20);
            Finding::ok(ID, NODE, found)
        }
        Err(why) => Finding::failure(ID, NODE, why.to_string())
            .expected("a ring and its pinned memory: no node runs without")
            .remedy("do what the message says; in a container, its seccomp profile and memory limit count too"),
    }
}

fn fuse(folder: &Path) -> Vec<Finding> {
    const ID: &str = "kernel/fuse";
    const PASSTHROUGH: &str = "kernel/fuse-passthrough";
    let way = match choose(Findings::of_this_machine()) {
        Ok(way) => way,
        Err(why) => {
            return vec![
                Finding::failure(ID, NODE, why.to_string())
                    .expected("a way to mount, for versions that are not complete")
                    .remedy("modprobe fuse, and run as root with /dev/fuse"),
            ];
        }
    };
    let (how, by_the_kernel) = match trial::try_mount(folder) {
        Ok(tried) => tried,
        Err(why) => {
            return vec![
                Finding::failure(ID, NODE, why.to_string())
                    .expected("that a file can be mounted and read")
                    .remedy("do what the message says; a container needs privilege and /dev/fuse"),
            ];
        }
    };
    let mut findings = vec![match way {
        Way::Direct => Finding::ok(ID, NODE, "a file was mounted and read"),
        Way::Fusermount => Finding::warning(ID, NODE, "only fusermount3 can mount for this user")
            .expected("CAP_SYS_ADMIN: other users can't read what is mounted so")
            .remedy("run nodes as root"),
    }];
    findings.push(if by_the_kernel {
        Finding::ok(PASSTHROUGH, NODE, how)
    } else {
        Finding::note(PASSTHROUGH, NODE, how)
            .expected("passthrough: large files that are here are read by the kernel alone before the version is complete")
            .remedy("Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH, as root, on a cache's file system that is no overlay")
    });
    findings
}

fn images(folder: &Path) -> Finding {
    const ID: &str = "kernel/erofs";
    match erofs::find_way(folder) {
        Ok(erofs::Way::File) => Finding::ok(ID, NODE, "images are mounted by their file"),
        Ok(erofs::Way::Loop) => Finding::ok(ID, NODE, "images are mounted by loop devices"),
        Err(why) => Finding::note(ID, NODE, why)
            .expected("images, for datasets of very many small files; they are plain files without")
            .remedy("modprobe erofs"),
    }
}
