//! Keywright: a Kubernetes operator that issues, delivers, verifies, expires and revokes API keys declared as
//! [`api::ApiKey`]s. A key is stored nowhere: an [`api::ApiKeyRecord`] holds its digest, and one Secret the key.
//!
//! # From `kubectl apply` to the Secret
//!
//! The API server asks the webhook: [`admission`] completes the object, or refuses it with everything that is wrong
//! with it, reading its spec as the controller does ([`declaration`]). A watch wakes the [`controller`] with a name. It observes the ApiKey, its Secret and its records, asks
//! [`lifecycle::plan`] what to do next, carries out that one write under a precondition, and observes again until
//! nothing is left to write. Nothing remembers how far it came: "crashed here" and "came this far" are the same input.
//!
//! # From a request to its answer
//!
//! The [`feed`] folds the records into a [`keyring`]; [`server`] decodes what a proxy asks, [`verify::check`] decides
//! from that keyring and the time, without waiting or allocating, and `server` encodes the answer. Each permit leaves a
//! mark in [`usage`], which says what [`flush`] writes back to the records, and when.
//!
//! The modules below [`admission`], [`lifecycle`] and [`verify`] are pure: values and the time go in, values come out.

pub mod api;

pub mod key;

pub mod address;
pub mod date_time;
pub mod duration;
pub mod resource_version;

pub mod admission;
pub mod declaration;

pub mod lifecycle;

pub mod keyring;
pub mod usage;
pub mod verify;

pub mod authority;

pub mod certificates;
pub mod controller;
pub mod feed;
pub mod flush;
pub mod server;
pub mod webhook;

pub mod args;
pub mod client;
pub mod clock;
pub mod pages;
pub mod telemetry;
pub mod tls;
