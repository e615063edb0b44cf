//! What is still live, by who asked for it.

use std::fmt;

use super::Site;
use crate::ids::PoolId;
use crate::units::Bytes;

/// Live blocks of one pool that were asked for at one place under one label.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LeakGroup {
    /// Their pool.
    pub pool: PoolId,
    /// Who asked for them.
    pub site: Option<Site>,
    /// Their label; empty when they have none.
    pub tag: String,
    /// How many there are.
    pub blocks: u64,
    /// Bytes that they hold.
    pub bytes: u64,
    /// Bytes that were asked for.
    pub requested: u64,
}

/// What is still live, in groups, those with most bytes first. Its text is for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Leaks {
    /// The stretch of code that left it behind; empty when all of the allocator's life is meant.
    pub scope: String,
    /// The groups.
    pub groups: Vec<LeakGroup>,
}

impl Leaks {
    /// How many groups the text shows.
    const SHOWN: usize = 32;

    /// Whether nothing is live.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Blocks of all groups.
    pub fn blocks(&self) -> u64 {
        self.groups.iter().map(|group| group.blocks).sum()
    }

    /// Bytes of all groups.
    pub fn bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.bytes).sum()
    }

    /// Those of one pool.
    pub fn of_pool(&self, pool: PoolId) -> Leaks {
        let groups = self.groups.iter().filter(|group| group.pool == pool).cloned().collect();
        Leaks { scope: self.scope.clone(), groups }
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.scope.as_str(), self.is_empty()) {
            ("", true) => return writeln!(f, "nothing is live"),
            (scope, true) => return writeln!(f, "`{scope}` left nothing behind"),
            ("", false) => write!(f, "still live: ")?,
            (scope, false) => write!(f, "`{scope}` left behind: ")?,
        }
        writeln!(f, "{} in {} blocks", Bytes(self.bytes()), self.blocks())?;
        writeln!(
            f,
            "  {:>12}  {:>12}  {:>8}  {:<5} {:<16} asked for at",
            "bytes", "requested", "blocks", "pool", "tag"
        )?;
        for group in self.groups.iter().take(Self::SHOWN) {
            let (bytes, requested) = (Bytes(group.bytes).to_string(), Bytes(group.requested).to_string());
            let tag = if group.tag.is_empty() { "(no tag)" } else { &group.tag };
            let pool = group.pool.to_string();
            write!(f, "  {bytes:>12}  {requested:>12}  {:>8}  {pool:<5} {tag:<16} ", group.blocks)?;
            match &group.site {
                Some(site) => writeln!(f, "{site}")?,
                None => writeln!(f, "(unknown)")?,
            }
        }
        match self.groups.len().saturating_sub(Self::SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "  and {more} smaller groups"),
        }
    }
}
