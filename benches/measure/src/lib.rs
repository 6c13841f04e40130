//! What measurements share: the keys and records that they ask about, how figures are summed up, and where a report goes.

pub mod population;
pub mod report;
pub mod statistics;
