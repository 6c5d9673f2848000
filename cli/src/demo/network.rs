//! The network between the demo's nodes: a namespace each, joined by a bridge in the sandbox's
//! own, or loopback addresses where that cannot be had. Namespaces are anonymous, held open by
//! descriptors: they end with the conductor.

use crate::exit::Failure;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

/// Jumbo frames: with them the verbs devices on top reach their largest path MTU, 4096.
const MTU: u32 = 9000;

/// The name of a node's net device in its namespace.
pub(crate) const NET_DEVICE: &str = "eth0";

/// The network of all nodes.
pub(crate) struct Network {
    places: Vec<Place>,
    /// Why the nodes share loopback, when they do.
    pub(crate) loopback_because: Option<String>,
}

/// Where one node runs: its address, and its namespace if it has one.
pub(crate) struct Place {
    pub(crate) address: IpAddr,
    namespace: Option<File>,
}

impl Network {
    /// Lays the network for `nodes` nodes. `loopback_because` says why namespaces are not to be
    /// tried; without it, they are, and loopback addresses of the sandbox follow when they fail.
    pub(crate) fn lay(nodes: u8, loopback_because: Option<String>) -> Result<Network, Failure> {
        let because = match loopback_because {
            Some(because) => because,
            None => match bridge(nodes) {
                Ok(places) => {
                    return Ok(Network {
                        places,
                        loopback_because: None,
                    });
                }
                Err(because) => {
                    // The sandbox's own network namespace has nothing but a loopback that is down.
                    ip("link set lo up\n").map_err(|error| {
                        Failure::unable(format!(
                            "cannot lay a network between the nodes ({because}; {error}): \
                             give --network loopback, or run the demo as root"
                        ))
                    })?;
                    because
                }
            },
        };
        let places = (1..=nodes)
            .map(|node| Place {
                address: loopback_address(node),
                namespace: None,
            })
            .collect();
        Ok(Network {
            places,
            loopback_because: Some(because),
        })
    }

    /// The nodes' places, in order.
    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }
}

impl Place {
    /// Runs `act` on a thread in this place: in its network namespace, and in a mount namespace
    /// whose /sys shows that network. Processes that `act` starts live there.
    pub(crate) fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, Failure> {
        let Some(namespace) = &self.namespace else {
            return Ok(act());
        };
        let in_thread = || -> Result<T, nix::Error> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            let hidden = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            if let Err(errno) = mount(Some("sysfs"), "/sys", Some("sysfs"), hidden, none) {
                // Only verbs need it: a device that is not seen there is reported as missing.
                tracing::debug!(%errno, "/sys stays the one of the outside");
            }
            Ok(act())
        };
        let outcome = std::thread::scope(|scope| scope.spawn(in_thread).join());
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(errno)) => Err(Failure::failed(format!(
                "cannot enter the network namespace of {}: {}",
                self.address,
                errno.desc()
            ))),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// True when the node has a network namespace of its own.
    pub(crate) fn is_namespace(&self) -> bool {
        self.namespace.is_some()
    }
}

/// In loopback's 127.0.0.0/8 an address of this demo alone, so that two demos do not meet.
fn loopback_address(node: u8) -> IpAddr {
    let [high, low] = (std::process::id() as u16 ^ clock_bits()).to_be_bytes();
    Ipv4Addr::new(127, 64 + (high & 127), low, node).into()
}

fn clock_bits() -> u16 {
    static ONCE: std::sync::LazyLock<u16> = std::sync::LazyLock::new(|| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.subsec_micros() as u16)
    });
    *ONCE
}

/// One namespace per node, a veth pair to each, a bridge between; or why not.
fn bridge(nodes: u8) -> Result<Vec<Place>, String> {
    let mut outside = format!("link add name bed0 mtu {MTU} type bridge\nlink set dev bed0 up\n");
    let mut places = Vec::new();
    for node in 1..=nodes {
        let namespace = new_namespace()
            .map_err(|error| format!("no further network namespace can be made: {error}"))?;
        let _ = write!(
            outside,
            "link add name node{node} mtu {MTU} type veth \
             peer name {NET_DEVICE} mtu {MTU} netns /proc/self/fd/{}\n\
             link set dev node{node} master bed0 up\n",
            namespace.as_raw_fd()
        );
        let address = Ipv4Addr::new(10, 77, 0, node).into();
        places.push(Place {
            address,
            namespace: Some(namespace),
        });
    }
    ip(&outside)?;
    for place in &places {
        let inside = format!(
            "link set dev lo up\naddress add {}/24 dev {NET_DEVICE}\nlink set dev {NET_DEVICE} up\n",
            place.address
        );
        place
            .run(|| ip(&inside))
            .map_err(|failure| failure.to_string())??;
    }
    Ok(places)
}

/// A fresh network namespace. The descriptor is inherited by children: `ip` finds it by number.
fn new_namespace() -> std::io::Result<File> {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        fcntl(&namespace, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(namespace)
    });
    made.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs a batch of `ip` commands; what it says when one fails.
fn ip(batch: &str) -> Result<(), String> {
    run_with_input("ip", &["-batch", "-"], batch)
}

/// Runs a program to its end; its stderr in one line when it fails.
pub(crate) fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<(), String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                format!("`{program}` is missing: install the package iproute2")
            }
            _ => format!("`{program}` does not start: {error}"),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| format!("`{program}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(format!("`{program} {}` failed: {said}", args.join(" ")))
}
