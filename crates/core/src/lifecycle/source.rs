//! The entry of somebody else's Secret that an ApiKey reads its key from. It is read, and never written.

use k8s_openapi::api::core::v1::Secret;
use zeroize::Zeroize;

use crate::api::SOURCE;
use crate::key::{Digest, UnfitKey, read_submitted};

/// Why a source holds no key that can be used. What it holds is never repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceProblem {
    /// There is no such Secret.
    #[error("does not exist: create it with the label {}: \"{}\"", SOURCE.0, SOURCE.1)]
    Missing,
    /// Nobody with rights on Secrets has said that ApiKeys may use it.
    #[error("has no label {}: \"{}\": ask its owner to add the label", SOURCE.0, SOURCE.1)]
    Unlabelled,
    /// The Secret has no such entry.
    #[error("has no such entry: add it")]
    NoEntry,
    /// The entry is no key.
    #[error("holds no key that can be used: {0}")]
    Unfit(UnfitKey),
}

/// The digest of the key under `data_key` of a source. Its octets are wiped.
///
/// # Errors
/// If it is no key, or the Secret is not labelled as a source.
pub fn read_source(secret: Option<Secret>, data_key: &str) -> Result<Digest, SourceProblem> {
    let mut secret = secret.ok_or(SourceProblem::Missing)?;
    let mut data = secret.data.take().unwrap_or_default();
    let label = secret.metadata.labels.as_ref().and_then(|labels| labels.get(SOURCE.0));
    let read = match data.get(data_key) {
        _ if label.is_none_or(|value| value != SOURCE.1) => Err(SourceProblem::Unlabelled),
        None => Err(SourceProblem::NoEntry),
        Some(octets) => read_submitted(&octets.0).map_err(SourceProblem::Unfit),
    };
    data.values_mut().for_each(|octets| octets.0.zeroize());
    read
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn secret(label: Option<&str>, value: &str) -> Secret {
        let labels = label.map(|label| BTreeMap::from([(SOURCE.0.to_owned(), label.to_owned())]));
        Secret {
            metadata: ObjectMeta { labels, ..ObjectMeta::default() },
            data: Some(BTreeMap::from([("token".to_owned(), ByteString(value.as_bytes().to_vec()))])),
            ..Secret::default()
        }
    }

    #[test]
    fn only_a_labelled_secret_with_a_fit_key_is_a_source() {
        let fit = "b64.of-the-vault/2027+0123456789~";
        assert_eq!(read_source(Some(secret(Some("true"), fit)), "token"), Ok(Digest::of(fit.as_bytes())));
        for (source, problem) in [
            (None, SourceProblem::Missing),
            (Some(secret(None, fit)), SourceProblem::Unlabelled),
            (Some(secret(Some("false"), fit)), SourceProblem::Unlabelled),
            (Some(secret(Some("true"), "too-short")), SourceProblem::Unfit(UnfitKey::Short)),
            (Some(secret(Some("true"), &format!("{fit}\n"))), SourceProblem::Unfit(UnfitKey::TrailingNewline)),
            (Some(Secret { data: None, ..secret(Some("true"), fit) }), SourceProblem::NoEntry),
        ] {
            assert_eq!(read_source(source, "token"), Err(problem));
            assert!(!problem.to_string().contains("too-short") && !problem.to_string().contains(fit));
        }
        assert_eq!(read_source(Some(secret(Some("true"), fit)), "other"), Err(SourceProblem::NoEntry));
    }

    /// An unlabelled Secret is not a way to learn what its values look like.
    #[test]
    fn nothing_is_told_of_a_secret_without_the_label() {
        for (value, data_key) in [("short", "token"), ("", "token"), ("short", "absent")] {
            assert_eq!(read_source(Some(secret(None, value)), data_key), Err(SourceProblem::Unlabelled));
        }
    }
}
