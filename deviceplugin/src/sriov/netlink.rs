//! Settings of virtual functions as the kernel has them: rtnetlink, on the physical function's net device.

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoGuid, VfInfoLinkState,
    VfInfoMac, VfInfoRate, VfInfoSpoofCheck, VfInfoTrust, VfLinkState, VfVlan, VfVlanInfo,
    VlanProtocol as WireProtocol,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::setting::{Guid, LinkState, Mac, Rate, Setting, Vlan, VlanProtocol};

/// linux/if_link.h.
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_IB_NODE_GUID: u16 = 10;
const IFLA_VF_IB_PORT_GUID: u16 = 11;
const IFLA_VF_VLAN_LIST: u16 = 12;
const IFLA_VF_VLAN_INFO: u16 = 1;
/// linux/rtnetlink.h: struct ifinfomsg.
const LINK_HEADER: usize = 16;
const RTM_NEWLINK: u16 = 16;
/// The kernel's answer: a list of virtual functions is below 64 KiB, what else a link has is little.
const ANSWER_BYTES: usize = 256 << 10;
/// How long an adapter's firmware may take for one setting, in seconds.
const PATIENCE_SECONDS: i64 = 60;

/// What the kernel says of a port.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// The hardware address that it was made with.
    pub(super) permanent: Option<Vec<u8>>,
    /// What its virtual functions are set to, by index; what the driver does not tell is missing.
    pub(super) functions: Vec<Vec<Setting>>,
}

/// What the net device with this index and its virtual functions are like.
pub(super) fn look(device: u32) -> io::Result<Link> {
    let mut message = LinkMessage::default();
    message.header.index = device;
    // Counters of hundreds of virtual functions would not fit into one attribute.
    let what = vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats];
    message.attributes.push(LinkAttribute::ExtMask(what));
    let answer = ask(RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST)?;
    parse(&answer)
}

/// Sets one of a virtual function's settings that are the port's to make.
pub(super) fn set(device: u32, function: u32, setting: &Setting) -> io::Result<()> {
    let Some(info) = info(function, setting) else {
        let why = format!("{} is no setting of a link", setting.name());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    };
    let mut message = LinkMessage::default();
    message.header.index = device;
    let list = LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]);
    message.attributes.push(list);
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    ask(RouteNetlinkMessage::SetLink(message), flags).map(|_| ())
}

fn info(function: u32, setting: &Setting) -> Option<VfInfo> {
    Some(match *setting {
        Setting::Mac(mac) => VfInfo::Mac(VfInfoMac::new(function, &mac.0)),
        Setting::NodeGuid(guid) => VfInfo::IbNodeGuid(VfInfoGuid::new(function, guid.0)),
        Setting::PortGuid(guid) => VfInfo::IbPortGuid(VfInfoGuid::new(function, guid.0)),
        Setting::Vlan(Vlan { id, qos, proto }) => {
            let proto = match proto {
                VlanProtocol::Customer => WireProtocol::Ieee8021Q,
                VlanProtocol::Service => WireProtocol::Ieee8021Ad,
            };
            let vlan = VfVlanInfo::new(function, id.into(), qos.into(), proto);
            VfInfo::VlanList(vec![VfVlan::Info(vlan)])
        }
        Setting::Rate(Rate { min, max }) => VfInfo::Rate(VfInfoRate::new(function, min, max)),
        Setting::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(function, on)),
        Setting::Trust(on) => VfInfo::Trust(VfInfoTrust::new(function, on)),
        Setting::LinkState(state) => {
            let state = match state {
                LinkState::Auto => VfLinkState::Auto,
                LinkState::Enable => VfLinkState::Enable,
                LinkState::Disable => VfLinkState::Disable,
            };
            VfInfo::LinkState(VfInfoLinkState::new(function, state))
        }
        Setting::Msix(_) | Setting::Mtu(_) => return None,
    })
}

/// The payload of the kernel's answer; empty where it only agrees.
fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<u8>> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let patience = TimeVal::seconds(PATIENCE_SECONDS);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    let (fd, kernel) = (socket.as_raw_fd(), NetlinkAddr::new(0, 0));
    sendto(fd, &request, &kernel, MsgFlags::empty())?;
    let mut answer = vec![0; ANSWER_BYTES];
    let len = recv(fd, &mut answer, MsgFlags::MSG_TRUNC)?;
    // There is only this one request on the socket, and so only its answer.
    let answer = answer.get(..len).ok_or_else(malformed)?;
    content(answer)
}

fn content(answer: &[u8]) -> io::Result<Vec<u8>> {
    let message = NetlinkBuffer::new_checked(answer).map_err(|_| malformed())?;
    match message.message_type() {
        NLMSG_ERROR => {
            let error = ErrorBuffer::new_checked(message.payload()).map_err(|_| malformed())?;
            match error.code() {
                None => Ok(Vec::new()),
                Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
            }
        }
        RTM_NEWLINK => Ok(message.payload().to_vec()),
        _ => Err(malformed()),
    }
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer is not understood",
    )
}

/// The attributes of which `f` makes something, by their kinds and values.
fn each<T>(
    attributes: &[u8],
    mut f: impl FnMut(u16, &[u8]) -> io::Result<Option<T>>,
) -> io::Result<Vec<T>> {
    let mut made = Vec::new();
    for attribute in NlasIterator::new(attributes) {
        let attribute: NlaBuffer<&[u8]> = attribute.map_err(|_| malformed())?;
        made.extend(f(attribute.kind(), attribute.value())?);
    }
    Ok(made)
}

fn parse(message: &[u8]) -> io::Result<Link> {
    let attributes = message.get(LINK_HEADER..).ok_or_else(malformed)?;
    let mut link = Link::default();
    each(attributes, |kind, value| {
        match kind {
            IFLA_PERM_ADDRESS => link.permanent = Some(value.to_vec()),
            IFLA_VFINFO_LIST => {
                link.functions = each(value, |kind, value| {
                    let info = (kind == IFLA_VF_INFO).then(|| each(value, setting));
                    info.transpose()
                })?;
            }
            _ => {}
        }
        Ok(None::<()>)
    })?;
    Ok(link)
}

/// The setting that an attribute of a virtual function tells, if it is one.
fn setting(kind: u16, value: &[u8]) -> io::Result<Option<Setting>> {
    let malformed = |_| malformed();
    Ok(Some(match kind {
        IFLA_VF_MAC => {
            let all = VfInfoMac::parse(value).map_err(malformed)?.mac;
            let [a, b, c, d, e, f, ..] = all;
            Setting::Mac(Mac([a, b, c, d, e, f]))
        }
        IFLA_VF_IB_NODE_GUID => {
            let guid = VfInfoGuid::parse(value).map_err(malformed)?.guid;
            Setting::NodeGuid(Guid(guid))
        }
        IFLA_VF_IB_PORT_GUID => {
            let guid = VfInfoGuid::parse(value).map_err(malformed)?.guid;
            Setting::PortGuid(Guid(guid))
        }
        IFLA_VF_VLAN_LIST => {
            let vlans = each(value, |kind, value| {
                let vlan = (kind == IFLA_VF_VLAN_INFO).then(|| vlan(value));
                vlan.transpose()
            })?;
            return Ok(vlans.into_iter().next());
        }
        IFLA_VF_RATE => {
            let rate = VfInfoRate::parse(value).map_err(malformed)?;
            Setting::Rate(Rate {
                min: rate.min_tx_rate,
                max: rate.max_tx_rate,
            })
        }
        IFLA_VF_SPOOFCHK => return Ok(on(value)?.map(Setting::SpoofCheck)),
        IFLA_VF_TRUST => return Ok(on(value)?.map(Setting::Trust)),
        IFLA_VF_LINK_STATE => match VfInfoLinkState::parse(value).map_err(malformed)?.state {
            VfLinkState::Auto => Setting::LinkState(LinkState::Auto),
            VfLinkState::Enable => Setting::LinkState(LinkState::Enable),
            VfLinkState::Disable => Setting::LinkState(LinkState::Disable),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

fn vlan(value: &[u8]) -> io::Result<Setting> {
    let vlan = VfVlanInfo::parse(value).map_err(|_| malformed())?;
    let narrow = |_| malformed();
    Ok(Setting::Vlan(Vlan {
        id: vlan.vlan_id.try_into().map_err(narrow)?,
        qos: vlan.qos.try_into().map_err(narrow)?,
        proto: match vlan.protocol {
            WireProtocol::Ieee8021Ad => VlanProtocol::Service,
            _ => VlanProtocol::Customer,
        },
    }))
}

/// A switch, struct ifla_vf_spoofchk and ifla_vf_trust; all ones where the driver does not tell, which the
/// crate's types take for off.
fn on(value: &[u8]) -> io::Result<Option<bool>> {
    let bytes = value.get(4..8).and_then(|bytes| bytes.try_into().ok());
    match u32::from_ne_bytes(bytes.ok_or_else(malformed)?) {
        u32::MAX => Ok(None),
        setting => Ok(Some(setting != 0)),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use nix::errno::Errno;
    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<Setting> {
        vec![
            Setting::Mac(Mac([2, 1, 2, 3, 4, 5])),
            Setting::NodeGuid(Guid(0x0211_2233_4455_6677)),
            Setting::PortGuid(Guid(0x0211_2233_4455_6678)),
            Setting::Vlan(Vlan {
                id: 100,
                qos: 3,
                proto: VlanProtocol::Service,
            }),
            Setting::Rate(Rate { min: 10, max: 200 }),
            Setting::SpoofCheck(false),
            Setting::Trust(true),
            Setting::LinkState(LinkState::Disable),
        ]
    }

    /// As the kernel answers, of what it would be told.
    fn answer(functions: &[Vec<Setting>]) -> Vec<u8> {
        let told = (0..).zip(functions).map(|(index, settings)| {
            LinkVfInfo(settings.iter().filter_map(|it| info(index, it)).collect())
        });
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName("eth0".to_owned()),
            LinkAttribute::PermAddress(vec![1, 2, 3, 4, 5, 6]),
            LinkAttribute::VfInfoList(told.collect()),
        ];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_told_to_the_kernel_is_what_is_understood_of_its_answer() {
        let functions = [all(), vec![Setting::SpoofCheck(true)], all()];
        let link = parse(&answer(&functions)).expect("understood");
        assert_eq!(link.permanent, Some(vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(link.functions, functions);
    }

    #[test]
    fn a_switch_that_the_driver_does_not_tell_is_not_off() {
        let told = |setting: u32| [0_u32.to_ne_bytes(), setting.to_ne_bytes()].concat();
        let understood = |it: u32| setting(IFLA_VF_TRUST, &told(it)).expect("understood");
        assert_eq!(understood(u32::MAX), None);
        assert_eq!(understood(0), Some(Setting::Trust(false)));
        assert_eq!(understood(1), Some(Setting::Trust(true)));
    }

    #[test]
    fn the_kernel_is_asked_and_its_refusal_is_said() {
        // The loopback device is there in every network namespace, and has no virtual functions.
        assert_eq!(look(1).expect("answers").functions, Vec::<Vec<_>>::new());
        let refused = set(1, 0, &Setting::Trust(true)).expect_err("refused");
        assert!(refused.raw_os_error().is_some(), "{refused}");
        let missing = look(i32::MAX as u32).expect_err("not there");
        assert_eq!(missing.raw_os_error(), Some(Errno::ENODEV as i32));
    }

    proptest! {
        #[test]
        fn damaged_answers_never_panic(at in any::<prop::sample::Index>(), with: u8, cut in any::<prop::sample::Index>()) {
            let mut bytes = answer(&[all()]);
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _ = parse(&bytes[..cut.index(bytes.len())]);
            let _ = parse(&bytes);
            let _ = content(&bytes);
        }
    }
}
