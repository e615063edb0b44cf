//! Memory that was written where nobody owned it, as debug mode finds it.

use std::fmt;

use super::Site;
use crate::ids::{BlockId, PoolId};
use crate::units::Bytes;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Wrong {
    /// Bytes behind those asked for were written.
    Overrun,
    /// The block was written after it was dropped.
    WriteAfterDrop,
}

/// A block that was misused, and the first byte that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Misuse {
    /// What was done.
    pub wrong: Wrong,
    /// The block's pool.
    pub pool: PoolId,
    /// The block.
    pub block: BlockId,
    /// Its address.
    pub address: u64,
    /// Bytes asked for.
    pub requested: u64,
    /// Its label; empty when it has none.
    pub tag: String,
    /// Who asked for it.
    pub site: Option<Site>,
    /// The first bad byte, from the start of the block.
    pub offset: u64,
    /// What is there.
    pub found: u8,
    /// What should be there.
    pub expected: u8,
    /// Finds after this one that were counted only, because too many waited to be asked for.
    pub more: u64,
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Misuse { pool, block, address, requested, site, offset, found, expected, more, .. } = self;
        let what = match self.wrong {
            Wrong::Overrun => "written behind its end",
            Wrong::WriteAfterDrop => "written after it was dropped",
        };
        let site = site.map_or("(unknown)".to_string(), |site| site.to_string());
        let tag = if self.tag.is_empty() { String::new() } else { format!(" for {}", self.tag) };
        write!(
            f,
            "{block:?} of {pool} ({}{tag} at {address:#x}, asked for at {site}) was {what}: byte {offset} is {found:#04x} and should \
             be {expected:#04x}",
            Bytes(*requested),
        )?;
        if *more > 0 { write!(f, "; {more} more finds were not kept") } else { Ok(()) }
    }
}
