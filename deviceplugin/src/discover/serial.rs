//! A card's serial number, from its vital product data (PCI Local Bus Specification 3.0, appendix I).

/// Bytes of a large resource's tag and length, and of a keyword and its length.
const HEADER: usize = 3;
/// The tag of the part that can only be read, and the one that ends all.
const READ_ONLY: u8 = 0x90;
const END: u8 = 0x78;
/// Set in a large resource's tag.
const LARGE: u8 = 0x80;
/// The longest serial number that becomes a part of a name.
const MAX_SERIAL_BYTES: usize = 32;

/// The serial number (keyword SN), fit to be a part of a name; `None` if there is none or it is not fit.
/// The bytes may be anything: firmware writes them.
pub(super) fn of(vpd: &[u8]) -> Option<String> {
    let mut rest = vpd;
    loop {
        let (&tag, _) = rest.split_first()?;
        if tag == END {
            return None;
        }
        if tag & LARGE == 0 {
            // A small resource has its length in the tag.
            rest = rest.get(1 + usize::from(tag & 7)..)?;
            continue;
        }
        let len = usize::from(u16::from_le_bytes([*rest.get(1)?, *rest.get(2)?]));
        let data = rest.get(HEADER..HEADER + len)?;
        if tag == READ_ONLY {
            return serial_among(data);
        }
        rest = &rest[HEADER + len..];
    }
}

fn serial_among(mut keywords: &[u8]) -> Option<String> {
    loop {
        let len = usize::from(*keywords.get(2)?);
        let value = keywords.get(HEADER..HEADER + len)?;
        if keywords.starts_with(b"SN") {
            return fit(value);
        }
        keywords = &keywords[HEADER + len..];
    }
}

fn fit(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    let fits = !text.is_empty()
        && text.len() <= MAX_SERIAL_BYTES
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        // What some makers write into all cards.
        && text.bytes().any(|byte| byte != b'0');
    fits.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vpd(keywords: &[(&[u8; 2], &[u8])]) -> Vec<u8> {
        let mut data = Vec::new();
        for (name, value) in keywords {
            data.extend_from_slice(*name);
            data.push(value.len() as u8);
            data.extend_from_slice(value);
        }
        let name = b"An adapter";
        let mut vpd = vec![0x82, name.len() as u8, 0];
        vpd.extend_from_slice(name);
        vpd.extend_from_slice(&[READ_ONLY, data.len() as u8, 0]);
        vpd.extend_from_slice(&data);
        vpd.push(END);
        vpd
    }

    #[test]
    fn a_serial_number_that_can_be_part_of_a_name_is_found() {
        let found = |serial: &[u8]| of(&vpd(&[(b"PN", b"MCX"), (b"SN", serial), (b"RV", b"x")]));
        assert_eq!(found(b"MT2042X00123  "), Some("mt2042x00123".to_owned()));
        for unfit in [&b""[..], b"00000000", b"a/b", b"\xff\xfe", &[b'a'; 33]] {
            assert_eq!(found(unfit), None, "{unfit:?}");
        }
        assert_eq!(of(&vpd(&[(b"PN", b"MCX")])), None);
        assert_eq!(of(&[END]), None);
    }

    proptest! {
        #[test]
        fn firmware_may_write_anything(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = of(&bytes);
        }

        #[test]
        fn damage_is_no_panic(at in 0..40usize, with: u8) {
            let mut bytes = vpd(&[(b"PN", b"MCX"), (b"SN", b"MT1")]);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            let _ = of(&bytes);
        }
    }
}
