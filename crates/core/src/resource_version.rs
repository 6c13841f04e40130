//! Resource versions of one kind of object: growing decimal numbers of any length (KEP-5504).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A resource version of up to 38 digits, in the one spelling that the API server gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceVersion(u128);

/// The text is not a resource version that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a decimal number of up to 38 digits")]
pub struct InvalidResourceVersion;

impl FromStr for ResourceVersion {
    type Err = InvalidResourceVersion;

    fn from_str(text: &str) -> Result<Self, InvalidResourceVersion> {
        let number = text.parse().map_err(|_| InvalidResourceVersion)?;
        let is_canonical = is_number(text) && text.len() <= 38 && (text == "0" || !text.starts_with('0'));
        if is_canonical { Ok(Self(number)) } else { Err(InvalidResourceVersion) }
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Compares version `a` with version `b`. `None` if one of them is not a number.
fn compare(a: &str, b: &str) -> Option<Ordering> {
    (is_number(a) && is_number(b)).then(|| (a.len(), a).cmp(&(b.len(), b)))
}

/// Whether version `a` is older than version `b`. True if one of them is not a number: that costs one list at most.
pub fn is_older(a: &str, b: &str) -> bool {
    compare(a, b).is_none_or(Ordering::is_lt)
}

fn is_number(version: &str) -> bool {
    !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_in_its_one_spelling() {
        for good in ["0", "1", "10", "18446744073709551616", &"9".repeat(38)] {
            assert_eq!(good.parse::<ResourceVersion>().unwrap().to_string(), good);
        }
        for bad in ["", "a", "+1", "-1", "01", "00", " 1", "1 ", "1.0", "\u{0661}", &"1".repeat(39), &"9".repeat(400)] {
            assert_eq!(bad.parse::<ResourceVersion>(), Err(InvalidResourceVersion), "{bad:?}");
        }
        assert!("9".parse::<ResourceVersion>().unwrap() < "10".parse().unwrap());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (a, b, expected) in [
            ("11763", "12069", true),
            ("9", "10", true),
            ("12069", "12069", false),
            ("12070", "12069", false),
            ("99999999999999999999998", "99999999999999999999999", true),
            ("", "1", true),
            ("1", "", true),
            ("a", "1", true),
        ] {
            assert_eq!(is_older(a, b), expected, "{a:?} {b:?}");
            let are_numbers = ![a, b].contains(&"") && a != "a";
            assert_eq!(compare(a, b).is_some(), are_numbers, "{a:?} {b:?}");
        }
    }
}
