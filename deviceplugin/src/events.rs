//! When to look again: the kernel says that something about devices has changed.
//!
//! What it says is not read: a message may be lost, and the tree of sysfs tells all. Uevents tell of devices
//! that come and go, route netlink of net devices that go up, down, and into another namespace, RDMA
//! netlink (from Linux 6.12) of RDMA devices and their ports.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tokio::net::UnixDatagram;

/// The multicast group of uevents as the kernel sends them (lib/kobject_uevent.c).
const UEVENTS: u32 = 1;
/// `RTMGRP_LINK` of rtnetlink(7).
const LINKS: u32 = 1;
/// `RDMA_NL_GROUP_NOTIFY` of rdma/rdma_netlink.h, as the mask that bind(2) takes.
const RDMA_NOTIFY: u32 = 1 << 3;

/// One thing leads to many messages: they are waited for this long.
const BURST: Duration = Duration::from_millis(50);

/// Sockets on which the kernel tells.
#[derive(Debug)]
pub struct KernelEvents(Vec<UnixDatagram>);

impl KernelEvents {
    /// Listens for what this kernel tells this process. Without any, changes are found when somebody
    /// looks for another reason.
    pub fn listen() -> KernelEvents {
        let sources = [
            ("uevents", SockProtocol::NetlinkKObjectUEvent, UEVENTS),
            ("links", SockProtocol::NetlinkRoute, LINKS),
            ("RDMA devices", SockProtocol::NetlinkRDMA, RDMA_NOTIFY),
        ];
        let listen = |(what, protocol, groups)| match listen(protocol, groups) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::info!(what, %error, "the kernel does not tell of these: they are looked at from \
                    time to time");
                None
            }
        };
        KernelEvents(sources.into_iter().filter_map(listen).collect())
    }

    /// Waits until something has changed, and a moment more: one thing leads to many messages.
    pub async fn changed(&self) {
        loop {
            let readable = self.0.iter().map(|socket| Box::pin(socket.readable()));
            let readable: Vec<_> = readable.collect();
            if readable.is_empty() {
                std::future::pending::<()>().await;
            }
            let _ = futures::future::select_all(readable).await;
            if self.drain() {
                break;
            }
        }
        tokio::time::sleep(BURST).await;
        self.drain();
    }

    /// Reads all that is there; whether there was anything. That messages were lost (`ENOBUFS`) is one.
    fn drain(&self) -> bool {
        let mut told = false;
        let mut message = [0; 4096];
        for socket in &self.0 {
            loop {
                match socket.try_recv(&mut message) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Ok(_) => told = true,
                    Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                        told = true
                    }
                    Err(error) => {
                        tracing::warn!(%error, "reading what the kernel tells");
                        // It is looked at instead: the socket stays readable, and is not to be spun on.
                        told = true;
                        break;
                    }
                }
            }
        }
        told
    }
}

/// A netlink socket, held as another kind that sends and receives messages: tokio knows no netlink, and
/// readiness and recv(2) are the same.
fn listen(protocol: SockProtocol, groups: u32) -> io::Result<UnixDatagram> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    UnixDatagram::from_std(StdDatagram::from(socket))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_net_device_that_comes_is_told() {
        // A thread of its own: the network namespace is the thread's.
        let told = std::thread::spawn(|| {
            if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: this user can't make network namespaces: {errno}");
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async {
                let events = KernelEvents::listen();
                let ip = Command::new("ip")
                    .args(["link", "set", "lo", "up"])
                    .status();
                assert!(ip.is_ok_and(|status| status.success()));
                let patience = Duration::from_secs(20);
                let told = tokio::time::timeout(patience, events.changed()).await;
                assert!(told.is_ok(), "a link has come up and nothing was told");
            });
        });
        told.join().expect("no panic");
    }
}
