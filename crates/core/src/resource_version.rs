//! PURE. Versions of one kind of object: decimal numbers of any length that grow (KEP-5504).

use std::cmp::Ordering;

/// How version `a` stands to version `b`; `None` where one of them is no number.
pub fn compare(a: &str, b: &str) -> Option<Ordering> {
    (is_number(a) && is_number(b)).then(|| (a.len(), a).cmp(&(b.len(), b)))
}

/// Whether version `a` comes before version `b`. One that is no number counts as older, which costs no more than a list.
pub fn is_older(a: &str, b: &str) -> bool {
    compare(a, b).is_none_or(Ordering::is_lt)
}

fn is_number(version: &str) -> bool {
    !version.is_empty() && version.bytes().all(|octet| octet.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

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
