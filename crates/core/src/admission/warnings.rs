//! Warnings about a spec that is allowed. kubectl prints them.
//!
//! The API server recommends at most 120 characters for a warning, and cuts at 256.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::address::AllowedAddresses;
use crate::declaration::{Declaration, Problem, Rotation};

/// Bytes of a warning: a little below where the API server cuts.
const LONGEST: usize = 240;
/// Bytes of a warning that the object's name may take. A namespace's name alone may have 63.
const LONGEST_NAME: usize = 120;
/// An expiry later than this from now means "never": people write the last day of the year 9999.
const AS_LATE_AS_NEVER: SignedDuration = SignedDuration::from_hours(100 * 365 * 24);
/// How long the kubelet may take to write a changed Secret into a volume: its sync period and its cache's delay.
const SLOWEST_MOUNT: SignedDuration = SignedDuration::from_mins(2);
/// Warnings about one object. The API server drops warnings beyond 4096 bytes in all.
const MOST: usize = 8;

/// Warnings about a spec that was read as `declaration`.
pub(super) fn about(declaration: &Declaration, spec: &Value, now: Timestamp) -> Vec<String> {
    let mut warnings = Vec::new();
    let end = if spec.get("expiresAt").is_some_and(|at| !at.is_null()) { "spec.expiresAt" } else { "spec.expiresIn" };
    match declaration.expires_at {
        None => warnings.push(format!(
            "{end}: this key never expires; consider expiresIn: 90d, so that a leaked key stops working"
        )),
        Some(at) if at.duration_since(now) > AS_LATE_AS_NEVER => {
            warnings
                .push(format!("{end}: {at} is as late as never; write expiresIn: Never, or a short life such as 90d"));
        }
        Some(at) if at <= now => warnings.push(format!("{end}: the key expired at {at} and is refused")),
        Some(_) => {}
    }
    let Rotation { every, overlap, .. } = declaration.rotation;
    if let (Some(every), Some(at)) = (every, declaration.expires_at)
        && at > now
        && every > at.duration_since(now)
    {
        warnings.push(format!("spec.rotation.every: the key expires at {at}, before a rotation is due; shorten every"));
    }
    if overlap < SLOWEST_MOUNT {
        warnings.push(
            "spec.rotation.overlap: a mounted Secret takes up to 2m to change; choose a longer overlap if Pods mount it"
                .to_owned(),
        );
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

/// The warnings with the object's name before each: one `kubectl apply` may bring many objects.
pub(super) fn about_object(namespace: &str, name: &str, warnings: Vec<String>) -> Vec<String> {
    let object = cut(&format!("{namespace}/{name}"), LONGEST_NAME);
    warnings.into_iter().map(|warning| cut(&format!("{object}: {warning}"), LONGEST)).collect()
}

/// Warnings about problems of the old object that this update does not change.
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
