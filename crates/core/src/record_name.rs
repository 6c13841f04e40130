//! The name of an ApiKeyRecord, `<ApiKey uid>-<serial>`: the one place that writes and reads it.

use std::fmt;
use std::str::FromStr;

/// Octets of a UUID in text: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12 (RFC 9562, 4).
const UID_LENGTH: usize = 36;
/// Hyphens that stand in front of the octets with these numbers.
const HYPHEN_BEFORE: [usize; 4] = [4, 6, 8, 10];

/// The name of an ApiKeyRecord. `Display` is the text that it was read from, to the letter. In the order of the ApiKeys'
/// uids, and of the serials of one ApiKey.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordName {
    pub(crate) uid: [u8; 16],
    pub(crate) serial: u32,
}

/// The text is not `<uid>-<serial>`, as the controller writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a UUID in lower case, a hyphen, and a decimal number")]
pub struct InvalidRecordName;

impl RecordName {
    /// No name comes before it.
    pub(crate) const FIRST: Self = Self { uid: [0; 16], serial: 0 };
}

/// The text of a record's name, whatever the API server gives for a uid.
pub fn record_name(uid: &str, serial: u32) -> String {
    format!("{uid}-{serial}")
}

/// The serial in a record's name, where the name is one that [`record_name`] gives for this uid.
pub fn serial_in(name: &str, uid: &str) -> Option<u32> {
    let serial = name.strip_prefix(uid)?.strip_prefix('-')?.parse().ok()?;
    (record_name(uid, serial) == name).then_some(serial)
}

impl FromStr for RecordName {
    type Err = InvalidRecordName;

    fn from_str(text: &str) -> Result<Self, InvalidRecordName> {
        let (uid, serial) = text.split_at_checked(UID_LENGTH).ok_or(InvalidRecordName)?;
        let serial = serial.strip_prefix('-').and_then(|serial| serial.parse().ok()).ok_or(InvalidRecordName)?;
        let digits: String = uid.split('-').collect();
        let uid = u128::from_str_radix(&digits, 16).map_err(|_| InvalidRecordName)?.to_be_bytes();
        let name = Self { uid, serial };
        // One text for each name: no upper case, no sign, no leading zero, no hyphen in another place.
        if name.to_string() == text { Ok(name) } else { Err(InvalidRecordName) }
    }
}

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, octet) in self.uid.iter().enumerate() {
            let hyphen = if HYPHEN_BEFORE.contains(&number) { "-" } else { "" };
            write!(f, "{hyphen}{octet:02x}")?;
        }
        write!(f, "-{}", self.serial)
    }
}

impl fmt::Debug for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b";

    #[test]
    fn a_name_reads_back_to_the_letter() {
        for serial in [0, 1, 10, 4_294_967_295_u32] {
            let text = format!("{UID}-{serial}");
            let name: RecordName = text.parse().unwrap();
            assert_eq!((name.to_string(), name.serial), (text, serial));
        }
    }

    #[test]
    fn what_the_controller_does_not_write_is_no_name() {
        let bad = [
            String::new(),
            "r-1".to_owned(),
            UID.to_owned(),
            format!("{UID}-"),
            format!("{UID}1"),
            format!("{UID}-01"),
            format!("{UID}-+1"),
            format!("{UID}--1"),
            format!("{UID}-4294967296"),
            format!("{UID}-1-1"),
            format!("{UID}-1 "),
            format!(" {UID}-1"),
            format!("{}-1", UID.to_uppercase()),
            format!("{}-1", UID.replace('-', "")),
            format!("{}-1", UID.replace('0', "g")),
            format!("+{}-1", &UID[1..]),
            "0b0e7a4c9-3d1-4f5e-8a6b-7c8d9e0f1a2b-1".to_owned(),
            "0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a\u{e9}-1".to_owned(),
            "0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2\u{e9}-1".to_owned(),
        ];
        for text in bad {
            assert_eq!(text.parse::<RecordName>(), Err(InvalidRecordName), "{text:?}");
        }
    }
}
