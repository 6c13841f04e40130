//! What measurements share: the keys and records that they ask about, and how figures are summed up.

pub mod population;
pub mod statistics;
