//! The segment map as text: a picture of every region with its figures, and the largest blocks by name.
//!
//! Knows snapshots only. Invariants: each region's picture has exactly [`SegmentMap::cells`] cells; the figures beside it are exact
//! sums over its blocks; addresses after the last block with something behind it are counted, not drawn.

use std::fmt;

use crate::snapshot::{BlockRecord, BlockState, PoolRecord, RegionRecord, Snapshot};
use crate::units::Bytes;

/// A snapshot to be printed as a map.
///
/// ```
/// use larder::{Allocator, Config, diag::SegmentMap, units::MIB};
///
/// let host = Allocator::host(Config::default().limit(64 * MIB))?;
/// let _block = host.alloc(5 * MIB)?;
/// println!("{}", SegmentMap::new(&host.snapshot()));
/// # Ok::<(), larder::AllocError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SegmentMap<'a> {
    /// What to print.
    pub snapshot: &'a Snapshot,
    /// Characters of each region's picture.
    pub cells: usize,
    /// Most regions drawn of a pool; the rest is summed up in one line.
    pub regions: usize,
    /// Most blocks named of all pools together.
    pub blocks: usize,
}

impl<'a> SegmentMap<'a> {
    /// The meaning of the characters, as printed below each map.
    pub const LEGEND: &'static str = "# live  + partly live  . free  ~ pending or held  _ nothing behind it";

    /// A map of 64 cells a region, at most 16 regions a pool, naming the 8 largest blocks.
    pub fn new(snapshot: &'a Snapshot) -> Self {
        SegmentMap { snapshot, cells: 64, regions: 16, blocks: 8 }
    }
}

impl fmt::Display for SegmentMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pool in &self.snapshot.pools {
            self.pool(f, pool)?;
        }
        if self.snapshot.beneath > 0 {
            writeln!(f, "beneath, besides what is reserved: {}", Bytes(self.snapshot.beneath))?;
        }
        writeln!(f, "{}", Self::LEGEND)?;
        self.largest_blocks(f)
    }
}

impl SegmentMap<'_> {
    fn pool(&self, f: &mut fmt::Formatter<'_>, pool: &PoolRecord) -> fmt::Result {
        let stats = &pool.stats;
        write!(f, "pool {} of {}", pool.name, self.snapshot.backend)?;
        match pool.limit.or(self.snapshot.limit) {
            Some(limit) => writeln!(f, ", limit {}", Bytes(limit))?,
            None => writeln!(f, ", no limit")?,
        }
        writeln!(
            f,
            "  reserved {}, live {} in {} blocks, pending {}, idle {} (stranded {}), largest free {}",
            Bytes(stats.reserved.current),
            Bytes(stats.live.current),
            stats.blocks.current,
            Bytes(stats.pending.current),
            Bytes(stats.idle()),
            Bytes(pool.stranded),
            Bytes(pool.largest_free),
        )?;
        for region in pool.regions.iter().take(self.regions) {
            self.region(f, region)?;
        }
        let rest = pool.regions.get(self.regions..).unwrap_or_default();
        if !rest.is_empty() {
            let sums = rest.iter().map(Sums::of).fold(Sums::default(), Sums::plus);
            writeln!(f, "  and {} more regions: {sums}", rest.len())?;
        }
        Ok(())
    }

    fn region(&self, f: &mut fmt::Formatter<'_>, region: &RegionRecord) -> fmt::Result {
        let sums = Sums::of(region);
        let name = region.id.to_string();
        writeln!(f, "  {name:<5} [{}]", picture(region, sums.extent, self.cells))?;
        write!(f, "        {sums}")?;
        if sums.extent > 0 {
            write!(f, "; a cell is {}", Bytes(sums.extent.div_ceil(self.cells.max(1) as u64)))?;
        }
        if let Some(beyond) = region.size.checked_sub(sums.extent).filter(|beyond| *beyond > 0) {
            write!(f, "; {} of addresses beyond, which cost no memory", Bytes(beyond))?;
        }
        writeln!(f)
    }

    fn largest_blocks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut live: Vec<(&RegionRecord, &BlockRecord)> = self
            .snapshot
            .pools
            .iter()
            .flat_map(|pool| &pool.regions)
            .flat_map(|region| region.blocks.iter().map(move |block| (region, block)))
            .filter(|(_, block)| block.state == BlockState::Live)
            .collect();
        if live.is_empty() {
            return writeln!(f, "no live blocks");
        }
        live.sort_by_key(|(region, block)| (std::cmp::Reverse(block.size), region.id, block.offset));
        writeln!(f, "largest of {} live blocks", live.len())?;
        writeln!(f, "  {:>12}  {:<8} {:<22} {:<16} asked for at", "size", "stream", "place", "tag")?;
        for (region, block) in live.into_iter().take(self.blocks) {
            let place = format!("{}+{:#x}", region.id, block.offset);
            let tag = if block.tag.is_empty() { "(no tag)" } else { &block.tag };
            let size = Bytes(block.size).to_string();
            write!(f, "  {size:>12}  {:<8} {place:<22} {tag:<16} ", block.stream.to_string())?;
            match &block.site {
                Some(site) => writeln!(f, "{site}")?,
                None => writeln!(f, "(unknown)")?,
            }
        }
        Ok(())
    }
}

/// Bytes of a stretch by what they are.
#[derive(Clone, Copy, Default)]
struct Sums {
    live: u64,
    live_blocks: u64,
    free: u64,
    free_blocks: u64,
    pending: u64,
    /// Unbacked or retired, before the extent.
    void: u64,
    /// End of the last block that has something behind it.
    extent: u64,
}

impl Sums {
    fn of(region: &RegionRecord) -> Sums {
        let extent = region.blocks.iter().rfind(|block| !is_void(block.state)).map_or(0, end);
        let mut sums = Sums { extent, ..Sums::default() };
        for block in region.blocks.iter().filter(|block| block.offset < extent) {
            sums.add(block.state, block.size);
            sums.live_blocks += u64::from(block.state == BlockState::Live);
            sums.free_blocks += u64::from(block.state == BlockState::Free);
        }
        sums
    }

    fn add(&mut self, state: BlockState, bytes: u64) {
        match state {
            BlockState::Live => self.live += bytes,
            BlockState::Free => self.free += bytes,
            BlockState::Pending | BlockState::Held => self.pending += bytes,
            BlockState::Unbacked | BlockState::Retired => self.void += bytes,
        }
    }

    fn plus(self, other: Sums) -> Sums {
        Sums {
            live: self.live + other.live,
            live_blocks: self.live_blocks + other.live_blocks,
            free: self.free + other.free,
            free_blocks: self.free_blocks + other.free_blocks,
            pending: self.pending + other.pending,
            void: self.void + other.void,
            extent: self.extent + other.extent,
        }
    }

    /// The character of a cell with these bytes in it: any live byte shows; else what there is most of, backed memory first.
    fn cell(&self) -> char {
        let others = self.free + self.pending + self.void;
        match (self.live, others) {
            (0, 0) => '_',
            (0, _) if self.pending >= self.free.max(self.void) => '~',
            (0, _) if self.free >= self.void => '.',
            (0, _) => '_',
            (_, 0) => '#',
            _ => '+',
        }
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.extent == 0 {
            return write!(f, "nothing behind it");
        }
        write!(
            f,
            "live {} in {}, free {} in {}",
            Bytes(self.live),
            self.live_blocks,
            Bytes(self.free),
            self.free_blocks
        )?;
        if self.pending > 0 {
            write!(f, ", pending or held {}", Bytes(self.pending))?;
        }
        if self.void > 0 {
            write!(f, ", nothing behind {}", Bytes(self.void))?;
        }
        Ok(())
    }
}

fn is_void(state: BlockState) -> bool {
    matches!(state, BlockState::Unbacked | BlockState::Retired)
}

fn end(block: &BlockRecord) -> u64 {
    block.offset.saturating_add(block.size)
}

/// The first `extent` bytes of a region in `cells` characters.
fn picture(region: &RegionRecord, extent: u64, cells: usize) -> String {
    let mut sums = vec![Sums::default(); cells];
    let edge = |cell: usize| (u128::from(extent) * cell as u128 / cells.max(1) as u128) as u64;
    let mut first = 0;
    for block in region.blocks.iter().filter(|block| block.offset < extent) {
        while first + 1 < cells && edge(first + 1) <= block.offset {
            first += 1;
        }
        for (cell, sum) in sums.iter_mut().enumerate().skip(first) {
            let (from, to) = (edge(cell).max(block.offset), edge(cell + 1).min(end(block)));
            if edge(cell) >= end(block) {
                break;
            }
            sum.add(block.state, to.saturating_sub(from));
        }
    }
    sums.iter().map(Sums::cell).collect()
}
