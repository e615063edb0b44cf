//! Debug mode: bytes that nobody owns are filled with patterns, and looked at later.
//!
//! * *Guards* stand behind the bytes asked for, up to the end of the block. They are looked at when the block is dropped.
//! * *Poison* fills a new block, and a dropped one with another pattern.
//! * The *quarantine* keeps dropped blocks from being used again, the oldest leaving first; when one leaves, its poison is looked
//!   at. A block in it is live in every figure: it was dropped by its user and has not come back yet. The ladder, `purge` and the
//!   end of the allocator empty it.
//!
//! What was found is kept until it is asked for: a drop neither fails nor calls user code.
//!
//! Lock: `ledger`; no pool's state is taken under it, and the backend is called.
//! Invariants: a block is in `live` from when it is filled until it is dropped, and then in `quarantine` until it comes back;
//! `quarantined` is the sum of the sizes in `quarantine`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::Location;

use super::core::Core;
use super::pool::Grant;
use super::tags::TagId;
use crate::backend::{Backend, Span};
use crate::heap::BlockView;
use crate::ids::{BlockId, PoolId};
use crate::policy::{ConfigError, DebugConfig};
use crate::snapshot::{Misuse, Wrong};
use crate::sync::{Mutex, Rank};

/// What a new block is filled with.
const NEW: u8 = 0xA5;
/// What stands behind a block's end.
const GUARD: u8 = 0xFD;
/// What a dropped block is filled with.
const DROPPED: u8 = 0xDE;
/// So many finds are kept; later ones are counted.
const FINDS_MAX: usize = 256;

type Key = (PoolId, BlockId);

/// The state of debug mode.
pub(crate) struct Debug {
    config: DebugConfig,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    live: BTreeMap<Key, Entry>,
    quarantine: VecDeque<(Key, Entry)>,
    quarantined: u64,
    finds: Vec<Misuse>,
}

/// A block and who asked for it.
#[derive(Clone, Copy)]
struct Entry {
    span: Span,
    address: u64,
    requested: u64,
    tag: TagId,
    site: Option<&'static Location<'static>>,
}

impl Debug {
    /// # Errors
    /// Memory that the CPU does not write, where its bytes are to be filled.
    pub(super) fn new(config: DebugConfig, backend: &dyn Backend) -> Result<Debug, ConfigError> {
        let memory = backend.capabilities().name;
        let needs = [("debug.poison", config.poison), ("debug.guard", config.guard > 0)];
        match needs.into_iter().find(|(_, wanted)| *wanted && !backend.shows_bytes()) {
            Some((key, _)) => Err(ConfigError::NotHere { key, memory }),
            None => Ok(Debug { config, ledger: Mutex::new(Rank::Ledger, Ledger::default()) }),
        }
    }

    /// Bytes to ask the heap for, for so many of the user's.
    pub(super) fn with_guard(&self, bytes: u64) -> u64 {
        if bytes == 0 { 0 } else { bytes.saturating_add(self.config.guard) }
    }

    /// Fills a new block, which its user has not seen, and writes it down.
    fn gave(&self, backend: &dyn Backend, key: Key, entry: Entry) {
        let mut ledger = self.ledger.lock();
        if self.config.poison {
            fill(backend, Span { size: entry.requested, ..entry.span }, NEW);
        }
        self.guard_of(&entry).into_iter().for_each(|guard| fill(backend, guard, GUARD));
        ledger.live.insert(key, entry);
    }

    /// Takes a block that was dropped. Answers those that come back now.
    fn dropped(&self, backend: &dyn Backend, key: Key) -> Vec<(Key, u64)> {
        let mut ledger = self.ledger.lock();
        let entry = ledger.live.remove(&key).expect("a block is written down before its user has it");
        self.look_at_guard(backend, key, &entry, &mut ledger.finds);
        if self.config.poison {
            fill(backend, entry.span, DROPPED);
        }
        ledger.quarantined += entry.span.size;
        ledger.quarantine.push_back((key, entry));
        self.leave(backend, &mut ledger, self.config.quarantine)
    }

    /// Lets the oldest go until at most `most` bytes are in quarantine. Answers them with their bytes.
    fn leave(&self, backend: &dyn Backend, ledger: &mut Ledger, most: u64) -> Vec<(Key, u64)> {
        let mut left = Vec::new();
        while ledger.quarantined > most {
            let Some((key, entry)) = ledger.quarantine.pop_front() else { break };
            ledger.quarantined -= entry.span.size;
            self.look_at_poison(backend, key, &entry, &mut ledger.finds);
            left.push((key, entry.span.size));
        }
        left
    }

    /// Looks at every guard and at all poison now. Answers everything that was found since this was called last.
    fn look(&self, backend: &dyn Backend) -> Vec<Misuse> {
        let mut guard = self.ledger.lock();
        let Ledger { live, quarantine, finds, .. } = &mut *guard;
        live.iter().for_each(|(key, entry)| self.look_at_guard(backend, *key, entry, finds));
        quarantine.iter().for_each(|(key, entry)| self.look_at_poison(backend, *key, entry, finds));
        std::mem::take(finds)
    }

    /// The blocks that have an owner.
    pub(super) fn owned(&self) -> BTreeSet<Key> {
        self.ledger.lock().live.keys().copied().collect()
    }

    /// Bytes of the ledger, about: what the tree keeps between its entries is not counted.
    pub(super) fn memory(&self) -> u64 {
        let ledger = self.ledger.lock();
        let entries = (ledger.live.len() + ledger.quarantine.capacity()) * size_of::<(Key, Entry)>();
        (entries + ledger.finds.capacity() * size_of::<Misuse>()) as u64
    }

    /// The bytes behind those asked for.
    fn guard_of(&self, entry: &Entry) -> Option<Span> {
        let Entry { span, requested, .. } = *entry;
        (self.config.guard > 0).then(|| Span { offset: span.offset + requested, size: span.size - requested, ..span })
    }

    /// What is wrong is put right again, so that it is found once.
    fn look_at_guard(&self, backend: &dyn Backend, key: Key, entry: &Entry, finds: &mut Vec<Misuse>) {
        let Some(guard) = self.guard_of(entry) else { return };
        if let Some((at, found)) = first_other(backend, guard, GUARD) {
            let offset = entry.requested + at;
            find(finds, misuse(Wrong::Overrun, key, entry, (offset, found, GUARD)));
            fill(backend, guard, GUARD);
        }
    }

    fn look_at_poison(&self, backend: &dyn Backend, key: Key, entry: &Entry, finds: &mut Vec<Misuse>) {
        if !self.config.poison {
            return;
        }
        if let Some((at, found)) = first_other(backend, entry.span, DROPPED) {
            find(finds, misuse(Wrong::WriteAfterDrop, key, entry, (at, found, DROPPED)));
            fill(backend, entry.span, DROPPED);
        }
    }
}

fn find(finds: &mut Vec<Misuse>, misuse: Misuse) {
    match finds.get_mut(FINDS_MAX - 1) {
        Some(last) => last.more += 1,
        None => finds.push(misuse),
    }
}

fn misuse(wrong: Wrong, key: Key, entry: &Entry, (offset, found, expected): (u64, u8, u8)) -> Misuse {
    let Entry { address, requested, tag, site, .. } = *entry;
    let (pool, block) = key;
    Misuse {
        wrong,
        pool,
        block,
        address,
        requested,
        tag: tag.name(),
        site: site.map(Into::into),
        offset,
        found,
        expected,
        more: 0,
    }
}

/// Fills bytes. Memory that cannot be had any more is not looked at either.
fn fill(backend: &dyn Backend, span: Span, byte: u8) {
    let _ = backend.bytes(span, &mut |bytes| bytes.fill(byte));
}

/// The first byte that is another: where from the start of the span, and what it is.
fn first_other(backend: &dyn Backend, span: Span, byte: u8) -> Option<(u64, u8)> {
    let (mut other, mut before) = (None, 0);
    let shown = backend.bytes(span, &mut |bytes| {
        let clean = is_all(bytes, byte);
        let at = if clean { None } else { bytes.iter().position(|found| *found != byte) };
        other = other.or_else(|| at.map(|at| (before + at as u64, bytes[at])));
        before += bytes.len() as u64;
    });
    shown.ok().and(other)
}

/// Whether bytes are all the same: the first is it, and each is the one before it.
fn is_all(bytes: &[u8], byte: u8) -> bool {
    bytes.first().is_none_or(|first| *first == byte && bytes[1..] == bytes[..bytes.len() - 1])
}

impl Core {
    /// A block was given out in debug mode. What it was noted as is looked up, so that nothing is kept for this on the hot path.
    #[cold]
    #[inline(never)]
    pub(super) fn alloc_in_debug(&self, id: PoolId, grant: Grant, requested: u64) {
        let Some(debug) = &self.debug else { return };
        let BlockView { region, offset, size, note, .. } = self.pool(id).state.lock().heap.view(grant.id.index);
        let span = Span { region, offset, size };
        let entry = Entry { span, address: grant.address, requested, tag: note.tag, site: note.site };
        debug.gave(&*self.backend, (id, grant.id), entry);
    }

    /// A block was dropped in debug mode.
    #[cold]
    #[inline(never)]
    pub(super) fn free_in_debug(&self, id: PoolId, block: BlockId) {
        let pool = self.pool(id);
        let last = pool.state.lock().enters_quarantine(&pool.meter);
        if let Some(debug) = &self.debug {
            self.come_back(debug.dropped(&*self.backend, (id, block)));
        }
        drop(last);
    }

    /// Takes blocks back that have left the quarantine. Answers their bytes.
    fn come_back(&self, blocks: Vec<(Key, u64)>) -> u64 {
        for ((id, block), _) in &blocks {
            let pool = self.pool(*id);
            let last = pool.state.lock().leaves_quarantine(*block, &pool.meter);
            drop(last);
            self.waiting.something_freed();
        }
        blocks.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Ends the quarantine of all blocks. Answers their bytes. Takes the state of pools.
    pub(super) fn empty_quarantine(&self) -> u64 {
        let Some(debug) = &self.debug else { return 0 };
        let left = debug.leave(&*self.backend, &mut debug.ledger.lock(), 0);
        self.come_back(left)
    }

    pub(super) fn misuses(&self) -> Vec<Misuse> {
        self.debug.as_ref().map_or(Vec::new(), |debug| debug.look(&*self.backend))
    }
}

/// Panics where it stands when debug mode found a block that was written where nobody owned it
/// ([`Allocator::misuses`](crate::Allocator::misuses)). For tests.
///
/// ```
/// use larder::{Allocator, Config, policy::DebugConfig};
///
/// let host = Allocator::host(Config::default().debug(DebugConfig::default()))?;
/// drop(host.alloc(4096)?);
/// larder::assert_no_misuse!(host);
/// # Ok::<(), larder::AllocError>(())
/// ```
#[macro_export]
macro_rules! assert_no_misuse {
    ($allocator:expr $(,)?) => {
        match $allocator.misuses() {
            misuses if misuses.is_empty() => {}
            misuses => panic!("{}", misuses.iter().map(|misuse| misuse.to_string()).collect::<Vec<_>>().join("\n")),
        }
    };
}
