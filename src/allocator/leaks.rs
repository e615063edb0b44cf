//! What is still live: of an allocator, and of a stretch of code.
//!
//! An id names one allocation only, so what a stretch of code left behind are the blocks whose ids are live at its end and were not
//! at its beginning.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::Location;
use std::sync::Arc;

use super::core::Core;
use super::pool::{Note, State};
use super::tags::TagId;
use super::{Allocator, Memory};
use crate::heap::{BlockView, State as BlockState};
use crate::ids::{BlockId, PoolId};
use crate::snapshot::{LeakGroup, Leaks, Site};

/// By what blocks are put together.
type Place = (PoolId, TagId, Option<&'static Location<'static>>);

impl Core {
    /// Live blocks of all pools that somebody owns, each pool copied under its lock.
    fn live(&self) -> Vec<(PoolId, BlockView<Note>)> {
        let mut live = Vec::new();
        for (at, pool) in self.pools().enumerate() {
            live.reserve(pool.meter.read().blocks.current as usize);
            let state = pool.state.lock();
            live.extend(live_blocks(&state).map(|block| (PoolId(at as u16), block)));
        }
        if let Some(debug) = &self.debug {
            // What was dropped is nobody's, although debug mode keeps it. Owners are asked for after the copies, so that a block on
            // its way into the quarantine or out of it has none.
            let owned = debug.owned();
            live.retain(|(pool, block)| owned.contains(&(*pool, block.id)));
        }
        live
    }

    fn leaks(&self, scope: &str, before: &BTreeSet<(PoolId, BlockId)>) -> Leaks {
        let mut groups: BTreeMap<Place, LeakGroup> = BTreeMap::new();
        for (pool, block) in self.live().into_iter().filter(|(pool, block)| !before.contains(&(*pool, block.id))) {
            let group = groups.entry((pool, block.note.tag, block.note.site)).or_insert_with(|| LeakGroup {
                pool,
                site: block.note.site.map(Site::from),
                tag: block.note.tag.name(),
                blocks: 0,
                bytes: 0,
                requested: 0,
            });
            group.blocks += 1;
            group.bytes += block.size;
            group.requested += block.size - u64::from(block.note.padding);
        }
        let mut groups: Vec<LeakGroup> = groups.into_values().collect();
        groups.sort_by_key(|group| Reverse(group.bytes));
        Leaks { scope: scope.to_string(), groups }
    }
}

fn live_blocks(state: &State) -> impl Iterator<Item = BlockView<Note>> {
    let blocks = state.heap.places().flat_map(|place| state.heap.blocks(place));
    blocks.filter(|block| block.state == BlockState::Live)
}

/// A stretch of code that is asked what it left behind; see [`Allocator::scope`].
#[must_use = "a scope says something when finish() is called"]
pub struct Scope {
    core: Arc<Core>,
    name: String,
    before: BTreeSet<(PoolId, BlockId)>,
}

impl Scope {
    /// What is live that was not when the scope began, in every pool, whoever asked for it: other threads' blocks too.
    /// Time linear in the number of blocks.
    pub fn finish(self) -> Leaks {
        self.core.leaks(&self.name, &self.before)
    }
}

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scope({}, {} blocks before)", self.name, self.before.len())
    }
}

impl<M: Memory> Allocator<M> {
    /// What is live in every pool, grouped by pool, label and place in the source, most bytes first; see
    /// [`assert_no_leaks!`](crate::assert_no_leaks). Time linear in the number of blocks.
    ///
    /// ```
    /// use larder::{Allocator, Config};
    ///
    /// let host = Allocator::host(Config::default())?;
    /// let forgotten = host.request(1000).tag("cache").alloc()?;
    /// let leaks = host.leaks();
    /// assert_eq!((leaks.blocks(), leaks.groups[0].tag.as_str(), leaks.groups[0].requested), (1, "cache", 1000));
    /// println!("{leaks}");
    /// # Ok::<(), larder::AllocError>(())
    /// ```
    pub fn leaks(&self) -> Leaks {
        self.core.leaks("", &BTreeSet::new())
    }

    /// Begins a stretch of code that can be asked what it left behind, by [`Scope::finish`]. Dropped instead, it says nothing.
    /// It keeps the allocator, no block, and one id for each block that is live now; time and memory are linear in their number.
    ///
    /// ```
    /// use larder::{Allocator, Config};
    ///
    /// let host = Allocator::host(Config::default())?;
    /// let model = host.alloc(1 << 20)?;
    /// let scope = host.scope("request 7");
    /// let cache = host.alloc(4096)?;
    /// drop(model);
    /// let left = scope.finish();
    /// assert_eq!((left.blocks(), left.bytes()), (1, 4096));
    /// assert!(left.to_string().starts_with("`request 7` left behind: 4 KiB in 1 blocks"));
    /// # Ok::<(), larder::AllocError>(())
    /// ```
    pub fn scope(&self, name: &str) -> Scope {
        let before = self.core.live().into_iter().map(|(pool, block)| (pool, block.id)).collect();
        Scope { core: self.core.clone(), name: name.to_string(), before }
    }
}

/// Panics where it stands, with the report, when anything of an allocator is still live in any pool. For the end of a test.
///
/// ```
/// use larder::{Allocator, Config};
///
/// let host = Allocator::host(Config::default())?;
/// drop(host.alloc(4096)?);
/// larder::assert_no_leaks!(host);
/// # Ok::<(), larder::AllocError>(())
/// ```
#[macro_export]
macro_rules! assert_no_leaks {
    ($allocator:expr $(,)?) => {
        match $allocator.leaks() {
            leaks if leaks.is_empty() => {}
            leaks => panic!("{leaks}"),
        }
    };
}
