//! The kernel's NFS server in a network namespace, over RDMA.

use std::{path::Path, process::Command, time::Duration};

use crate::{
    BenchError,
    command::{Running, output, start},
    soft_roce::End,
};

/// The port of NFS over RDMA, by RFC 8267.
pub(super) const PORT: u16 = 20049;
/// How long the server may take to be up: it waits some seconds for a daemon that would remember clients
/// over a restart of the server, which there is none of here.
const UP_WITHIN: Duration = Duration::from_secs(120);

/// Runs in the namespace: what the server remembers lies in memory, version 4 alone needs neither
/// rpcbind nor statd, and ten seconds is the shortest grace period that it knows. Many threads, as for
/// many clients.
const SETUP: &str = r#"
modprobe -a nfsd rpcrdma
mount -t nfsd nfsd /proc/fs/nfsd
mount -t tmpfs tmpfs /var/lib/nfs
mkdir /var/lib/nfs/v4recovery
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
echo 10 >/proc/fs/nfsd/nfsv4gracetime
exportfs -o ro,async,insecure,no_root_squash,no_subtree_check,fsid=0 "*:$1"
rpc.nfsd --no-nfs-version 3 --rdma="$2" 16
exec rpc.mountd --foreground --no-nfs-version 2 --no-nfs-version 3
"#;
/// Ends the kernel's threads.
const END: &str = "mount -t nfsd nfsd /proc/fs/nfsd; echo 0 >/proc/fs/nfsd/threads";

/// A server that exports one folder; dropping it ends it.
pub(super) struct Server {
    end: End,
    /// The daemon that tells the kernel who may mount what.
    _mountd: Running,
}

impl Server {
    /// Starts it at this end of the network.
    pub(super) fn start(end: &End, export: &Path) -> Result<Self, BenchError> {
        let mut command = shell(end, SETUP);
        command.arg(export).arg(PORT.to_string());
        let mountd = start(&mut command)?.ready(UP_WITHIN, "NFS server", |process| {
            // The shell becomes the daemon when all else is done.
            let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
            name.is_ok_and(|name| name.trim_end() == "rpc.mountd")
        })?;
        Ok(Self {
            end: end.clone(),
            _mountd: mountd,
        })
    }

    /// Where clients find it.
    pub(super) fn address(&self) -> &str {
        &self.end.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it does not end by this, it ends with the machine.
        let _ = output(&mut shell(&self.end, END));
    }
}

fn shell(end: &End, script: &str) -> Command {
    let mut command = end.command("sh");
    command.args(["-ec", script, "sh"]);
    command
}
