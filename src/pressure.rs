//! How short memory is, in four levels: pure arithmetic over what is held and what there is.
//!
//! Knows no allocator and no clock. Levels rise at once and fall late: [`Level::step`] asks for a margin below the threshold, so
//! that a share that trembles around one does not make those who listen work for nothing.

#![forbid(unsafe_code)]

use std::fmt;

/// How short memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Level {
    /// Plenty.
    #[default]
    Low,
    /// Worth knowing.
    Medium,
    /// Caches should shrink.
    High,
    /// Requests are about to fail.
    Critical,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Low => "low",
            Level::Medium => "medium",
            Level::High => "high",
            Level::Critical => "critical",
        })
    }
}

/// From which share of what there is a level holds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Thresholds {
    /// [`Level::Medium`] from here on.
    pub medium: f64,
    /// [`Level::High`] from here on.
    pub high: f64,
    /// [`Level::Critical`] from here on.
    pub critical: f64,
    /// How far below its threshold the share must be before a level ends.
    pub margin: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { medium: 0.70, high: 0.85, critical: 0.95, margin: 0.05 }
    }
}

impl Thresholds {
    /// The level of a share, whatever it was before.
    fn level(&self, share: f64) -> Level {
        match share {
            share if share >= self.critical => Level::Critical,
            share if share >= self.high => Level::High,
            share if share >= self.medium => Level::Medium,
            _ => Level::Low,
        }
    }
}

impl Level {
    /// The level after this one, now that `share` of what there is is held: higher at once, lower only when the share is the
    /// margin below the threshold.
    ///
    /// ```
    /// use larder::pressure::{Level, Thresholds};
    ///
    /// let thresholds = Thresholds::default();
    /// assert_eq!(Level::Low.step(0.86, &thresholds), Level::High);
    /// assert_eq!(Level::High.step(0.84, &thresholds), Level::High);
    /// assert_eq!(Level::High.step(0.79, &thresholds), Level::Medium);
    /// ```
    #[must_use]
    pub fn step(self, share: f64, thresholds: &Thresholds) -> Level {
        let floor = thresholds.level(share + thresholds.margin).min(self);
        thresholds.level(share).max(floor)
    }
}

/// How much of what there is is held, as shares from 0 to 1; `None` where nobody says how much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pressure {
    /// What the allocator holds of its limit.
    pub of_limit: Option<f64>,
    /// What everybody holds of the device.
    pub of_device: Option<f64>,
}

impl Pressure {
    /// Of bytes: what the allocator holds and may hold, what the device has free and in all.
    pub fn new(reserved: u64, limit: Option<u64>, free_of_total: Option<(u64, u64)>) -> Pressure {
        Pressure {
            of_limit: limit.map(|limit| share(reserved, limit)),
            of_device: free_of_total.map(|(free, total)| share(total.saturating_sub(free), total)),
        }
    }

    /// The larger of the shares; 0 where nobody says how much there is.
    pub fn share(&self) -> f64 {
        self.of_limit.unwrap_or(0.0).max(self.of_device.unwrap_or(0.0))
    }

    /// The level by the default thresholds, whatever it was before. To follow it over time, [`Level::step`].
    pub fn level(&self) -> Level {
        Thresholds::default().level(self.share())
    }
}

/// A part of nothing is all of it.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { (part as f64 / whole as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_share_decides() {
        let level = |reserved, limit, device| Pressure::new(reserved, limit, device).level();
        assert_eq!(level(10, None, None), Level::Low);
        assert_eq!(level(70, Some(100), None), Level::Medium);
        assert_eq!(level(0, Some(100), Some((15, 100))), Level::High);
        assert_eq!(level(95, Some(100), Some((100, 100))), Level::Critical);
        assert_eq!(level(0, Some(0), None), Level::Critical, "no room at all");
        assert_eq!(Pressure::new(u64::MAX, Some(1), Some((2, 1))).share(), 1.0);
    }

    #[test]
    fn levels_rise_at_once_and_fall_behind_the_margin() {
        let thresholds = Thresholds::default();
        for from in [Level::Low, Level::Medium, Level::High, Level::Critical] {
            for percent in 0..=100 {
                let share = f64::from(percent) / 100.0;
                let (now, after) = (thresholds.level(share), from.step(share, &thresholds));
                assert!(after >= now, "never below what the share says: {from} at {percent} %");
                assert!(after <= from.max(now), "never higher for no reason: {from} at {percent} %");
                assert_eq!(after.step(share, &thresholds), after, "at rest: {from} at {percent} %");
            }
        }
        let walk = [0.96, 0.91, 0.89, 0.81, 0.79, 0.71, 0.66, 0.64];
        let mut level = Level::Low;
        let levels = walk.map(|share| {
            level = level.step(share, &thresholds);
            level
        });
        use Level::{Critical, High, Low, Medium};
        assert_eq!(levels, [Critical, Critical, High, High, Medium, Medium, Medium, Low]);
    }
}
