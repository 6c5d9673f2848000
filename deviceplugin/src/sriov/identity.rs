//! Addresses that a virtual function has wherever its card is: made of what names the card and of its index.

use super::setting::{Guid, Mac};

/// Set in an address that its owner has made (IEEE 802, universal/local bit).
const LOCAL: u8 = 0x02;
/// Set in an address of several.
const GROUP: u8 = 0x01;

/// What names a port and no other one in the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The card's serial number, and which device and function of it the port is.
    Serial(String),
    /// The hardware address that the port was made with.
    Permanent(Vec<u8>),
    /// Nothing that is known.
    Unknown,
}

impl Identity {
    /// Of a port with this name by its card's serial number, if it has one, and this hardware address.
    pub fn new(serial: Option<&str>, permanent: Option<&[u8]>) -> Identity {
        match (serial, permanent) {
            (Some(serial), _) => Identity::Serial(serial.to_owned()),
            // IP over InfiniBand's begins with a number that changes; the GUID ends it.
            (None, Some(address)) => {
                Identity::Permanent(address[address.len().saturating_sub(8)..].to_vec())
            }
            (None, None) => Identity::Unknown,
        }
    }

    /// The hardware address of its `index`-th virtual function.
    pub(super) fn mac(&self, index: u32) -> Mac {
        let [mut first, b, c, d, e, f, ..] = self.hash("mac", index);
        first = first & !GROUP | LOCAL;
        Mac([first, b, c, d, e, f])
    }

    /// The GUID of its `index`-th virtual function: of the RDMA device as of its port, as adapters have it.
    pub(super) fn guid(&self, index: u32) -> Guid {
        let mut guid = self.hash("guid", index);
        guid[0] = guid[0] & !GROUP | LOCAL;
        Guid(u64::from_be_bytes(guid))
    }

    fn hash(&self, what: &str, index: u32) -> [u8; 8] {
        let (kind, name): (&str, &[u8]) = match self {
            Identity::Serial(serial) => ("serial", serial.as_bytes()),
            Identity::Permanent(address) => ("permanent", address),
            Identity::Unknown => ("unknown", &[]),
        };
        let mut hasher = blake3::Hasher::new_derive_key("trackbed.io virtual function 1");
        for part in [what.as_bytes(), kind.as_bytes(), name, &index.to_be_bytes()] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let mut hash = [0; 8];
        hasher.finalize_xof().fill(&mut hash);
        hash
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_address_is_one_functions_alone_and_the_same_everywhere() {
        let ports = [
            Identity::new(Some("mt2042x00123-0-0"), Some(&[1; 6])),
            Identity::new(Some("mt2042x00123-0-1"), None),
            Identity::new(None, Some(&[2, 0, 0, 0, 0, 1])),
            Identity::new(None, Some(&[2, 0, 0, 0, 0, 2])),
        ];
        let all = || {
            ports
                .iter()
                .flat_map(|port| (0..127).map(|index| (port.mac(index), port.guid(index))))
        };
        let macs: BTreeSet<_> = all().map(|it| it.0).collect();
        let guids: BTreeSet<_> = all().map(|it| it.1).collect();
        assert_eq!((macs.len(), guids.len()), (4 * 127, 4 * 127));
        assert!(macs.iter().all(|mac| mac.0[0] & 3 == LOCAL));
        assert!(guids.iter().all(|it| it.0 >> 56 & 3 == u64::from(LOCAL)));
        // Nodes keep them through upgrades: another value here would change every cluster's addresses.
        let first = ports[0].mac(0).to_string();
        assert_eq!(first, "3e:9c:72:78:82:5b");
        assert_eq!(ports[0].guid(0).to_string(), "06:3e:90:12:15:86:3b:96");
    }

    #[test]
    fn a_port_moved_to_another_queue_pair_of_ip_over_infiniband_is_the_same() {
        let mut address = [7; 20];
        let before = Identity::new(None, Some(&address));
        address[3] = 9;
        assert_eq!(Identity::new(None, Some(&address)), before);
        assert_ne!(Identity::new(None, Some(&[8; 20])), before);
    }
}
