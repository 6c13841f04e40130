//! PURE. What is allowed, and worth a second look: kubectl prints it, and goes on.
//!
//! The API server wants warnings short: it recommends 120 characters, and cuts at 256.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::address::AllowedAddresses;
use crate::declaration::{Declaration, Problem};

/// Octets of a warning, a little below where the API server cuts.
const LONGEST: usize = 240;
/// Octets of it that the object's name may take. A namespace's name alone may have 63.
const LONGEST_NAME: usize = 120;
/// Whoever lets a key end later than this from now means never: people write the last day of the year 9999.
const AS_GOOD_AS_NEVER: SignedDuration = SignedDuration::from_hours(100 * 365 * 24);
/// Warnings about one object. The API server drops what goes beyond 4096 octets in all.
const MOST: usize = 8;

/// What to think of in a spec that was read as `declaration`.
pub(super) fn about(declaration: &Declaration, spec: &Value, now: Timestamp) -> Vec<String> {
    let mut warnings = Vec::new();
    let end = if spec.get("expiresAt").is_some_and(|at| !at.is_null()) { "spec.expiresAt" } else { "spec.expiresIn" };
    match declaration.expires_at {
        None => warnings.push(format!("{end}: this key never expires; 90d, say, would end it if it leaks unnoticed")),
        Some(at) if at.duration_since(now) > AS_GOOD_AS_NEVER => {
            warnings.push(format!("{end}: {at} is as good as never; consider expiresIn: Never, or 90d, say"));
        }
        Some(at) if at <= now => warnings.push(format!("{end}: the key expired at {at} and is refused")),
        Some(_) => {}
    }
    let allowed = declaration.allowed_ips.as_deref().and_then(|entries| AllowedAddresses::parse(entries).ok());
    if let Some(allowed) = allowed {
        for (index, network) in allowed.networks().iter().enumerate().filter(|(_, network)| network.is_everything()) {
            warnings.push(format!("spec.allowedIPs[{index}]: {network} allows {}", family(network.is_ipv4())));
        }
        for (covered, is_ipv4) in [(allowed.covers_ipv4(), true), (allowed.covers_ipv6(), false)] {
            let by_one =
                allowed.networks().iter().any(|network| network.is_everything() && network.is_ipv4() == is_ipv4);
            if covered && !by_one {
                warnings.push(format!("spec.allowedIPs: together the entries allow {}", family(is_ipv4)));
            }
        }
    }
    warnings
}

/// The warnings with the name of the object, by which they are told apart where many are applied at once.
pub(super) fn about_object(namespace: &str, name: &str, warnings: Vec<String>) -> Vec<String> {
    let object = cut(&format!("{namespace}/{name}"), LONGEST_NAME);
    warnings.into_iter().map(|warning| cut(&format!("{object}: {warning}"), LONGEST)).collect()
}

/// What was wrong before already, and is still there.
pub(super) fn about_tolerated(problems: &[Problem]) -> Vec<String> {
    let mut warnings: Vec<_> = problems.iter().take(MOST).map(Problem::to_string).collect();
    if let Some(more @ 1..) = problems.len().checked_sub(MOST) {
        warnings.push(format!("spec: {more} more problems"));
    }
    warnings
}

fn family(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "every IPv4 address" } else { "every IPv6 address" }
}

fn cut(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    format!("{}...", text.get(..text.floor_char_boundary(longest)).unwrap_or_default())
}
