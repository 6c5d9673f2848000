//! Priority flow control and pause frames of a net device, asked from the kernel: dcbnl over rtnetlink
//! (linux/dcbnl.h) and the ethtool ioctl (linux/ethtool.h). Both are readable for everyone.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

const RTM_GETDCB: u16 = 78;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const DCB_CMD_IEEE_GET: u8 = 21;
const DCB_ATTR_IFNAME: u16 = 1;
const DCB_ATTR_IEEE: u16 = 13;
const DCB_ATTR_IEEE_PFC: u16 = 2;
/// Flags in an attribute's type: nested, byte order.
const TYPE_FLAGS: u16 = 0xc000;
/// nlmsghdr.
const HEADER: usize = 16;
/// dcbmsg.
const DCB_HEADER: usize = 4;

/// The priorities with priority flow control, a bit each.
pub(super) fn priorities(net_device: &str) -> io::Result<u8> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::from(libc::timeval {
            tv_sec: Duration::from_secs(2).as_secs() as libc::time_t,
            tv_usec: 0,
        }),
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(
        socket.as_raw_fd(),
        &request(net_device),
        &kernel,
        MsgFlags::empty(),
    )?;
    let mut buffer = vec![0; 16 << 10];
    let len = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    parse(&buffer[..len])
}

fn request(net_device: &str) -> Vec<u8> {
    let mut name = net_device.as_bytes().to_vec();
    name.push(0);
    let attribute_len = 4 + name.len();
    name.resize(name.len().next_multiple_of(4), 0);
    let len = HEADER + DCB_HEADER + 4 + name.len();
    let mut message = Vec::with_capacity(len);
    message.extend_from_slice(&(len as u32).to_ne_bytes());
    message.extend_from_slice(&RTM_GETDCB.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: there is only this one request on the socket.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0, DCB_CMD_IEEE_GET, 0, 0]);
    message.extend_from_slice(&(attribute_len as u16).to_ne_bytes());
    message.extend_from_slice(&DCB_ATTR_IFNAME.to_ne_bytes());
    message.extend_from_slice(&name);
    message
}

fn parse(answer: &[u8]) -> io::Result<u8> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut off");
    let kind = number(answer, 4).ok_or_else(malformed)?;
    if kind == NLMSG_ERROR {
        let code = answer
            .get(HEADER..HEADER + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(i32::from_ne_bytes)
            .ok_or_else(malformed)?;
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    let attributes = answer.get(HEADER + DCB_HEADER..).ok_or_else(malformed)?;
    let ieee = attribute(attributes, DCB_ATTR_IEEE).ok_or_else(unsupported)?;
    let pfc = attribute(ieee, DCB_ATTR_IEEE_PFC).ok_or_else(unsupported)?;
    // struct ieee_pfc: capability, then the enabled priorities.
    pfc.get(1).copied().ok_or_else(malformed)
}

fn unsupported() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "its driver doesn't tell (802.1Qaz)",
    )
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The payload of the first attribute of a type.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(number(attributes, 0)?);
        let kind = number(attributes, 2)? & !TYPE_FLAGS;
        let payload = attributes.get(4..len)?;
        if kind == wanted {
            return Some(payload);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

/// struct ethtool_pauseparam.
#[repr(C)]
struct PauseParameters {
    cmd: u32,
    autonegotiates: u32,
    receives: u32,
    sends: u32,
}

/// Whether pause frames for the whole link are (sent, honoured).
pub(super) fn pause(net_device: &str) -> io::Result<(bool, bool)> {
    const ETHTOOL_GPAUSEPARAM: u32 = 0x12;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let socket: OwnedFd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut parameters = PauseParameters {
        cmd: ETHTOOL_GPAUSEPARAM,
        autonegotiates: 0,
        receives: 0,
        sends: 0,
    };
    // SAFETY: an ifreq is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    let name = net_device.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut parameters).cast();
    // SAFETY: the request is an ifreq with a terminated name, and its data points to the parameters of
    // the command they name, which outlive the call.
    let code = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((parameters.sends != 0, parameters.receives != 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&((4 + payload.len()) as u16).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_priorities_are_read_out_of_the_kernels_answer() {
        let mut pfc = vec![8, 0b1000, 0, 0, 0, 0];
        pfc.resize(136, 0);
        let mut nested = with_attribute(1, &[0; 10]);
        nested.extend(with_attribute(DCB_ATTR_IEEE_PFC, &pfc));
        let mut answer = vec![0; HEADER + DCB_HEADER];
        answer[4..6].copy_from_slice(&RTM_GETDCB.to_ne_bytes());
        answer.extend(with_attribute(DCB_ATTR_IFNAME, b"eth0\0"));
        answer.extend(with_attribute(DCB_ATTR_IEEE | 0x8000, &nested));
        assert_eq!(parse(&answer).expect("an answer"), 0b1000);
    }

    #[test]
    fn a_device_without_flow_control_says_so() {
        let error = priorities("lo").expect_err("loopback has none");
        assert!(!error.to_string().is_empty());
        assert!(pause("lo").is_err());
        assert!(pause("a-name-that-is-too-long").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic_or_hang(answer in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&answer).ok();
        }
    }
}
