//! Medians, quartiles and percentiles.

use std::fmt;
use std::time::Duration;

/// Lower quartile, median, upper quartile.
#[derive(Clone, Copy)]
pub struct Quartiles([f64; 3]);

impl Quartiles {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self([1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4]))
    }

    pub fn median(&self) -> f64 {
        self.0[1]
    }
}

impl fmt::Display for Quartiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [lower, median, upper] = self.0;
        write!(f, "**{median:.2}** ({lower:.2} to {upper:.2})")
    }
}

/// The value below which so much of all lies, `part` being between 0 and 1.
pub fn percentile(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    let place = (values.len() as f64 * part) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or_default()
}
