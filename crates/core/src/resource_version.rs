//! Resource versions of one kind of object: growing decimal numbers of any length (KEP-5504).

use std::cmp::Ordering;

/// Compares version `a` with version `b`. `None` if one of them is not a number.
pub fn compare(a: &str, b: &str) -> Option<Ordering> {
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
