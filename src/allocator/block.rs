//! A block of memory as its owner holds it.

#![allow(unsafe_code)] // a block refers to its core without counting

use std::any::TypeId;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::core::Core;
use super::pool::Grant;
use super::streams::Stream;
use super::{Any, Memory};
use crate::backend::Span;
use crate::ids::{BlockId, PoolId, StreamId};

/// One piece of memory, owned. Dropping it gives it back, at once and without waiting for anything.
///
/// A block keeps its allocator's memory alive: it may be dropped on any thread, and after every other handle.
pub struct Block<M: Memory = Any> {
    /// `None`: zero bytes asked for, nothing held.
    home: Option<Home>,
    address: u64,
    requested: u64,
    kept: M::Kept,
    kind: PhantomData<fn() -> M>,
}

/// Where a block that holds memory belongs.
struct Home {
    /// Not counted: a pool keeps its core while a block of it is live ([`State::take_back`](super::pool::State::take_back)),
    /// so that blocks come and go without touching a counter that all threads share.
    core: ManuallyDrop<Arc<Core>>,
    /// The block's id and its pool's, each in a whole word: a handle is copied as words right after it was written, and a word
    /// that was written in pieces is long in coming.
    id: u64,
    pool: u64,
}

impl Home {
    #[inline(always)]
    fn id(&self) -> BlockId {
        BlockId { index: self.id as u32, generation: (self.id >> 32) as u32 }
    }

    #[inline(always)]
    fn pool(&self) -> PoolId {
        PoolId(self.pool as u16)
    }
}

impl<M: Memory> Block<M> {
    #[inline]
    pub(super) fn new(core: &Arc<Core>, pool: PoolId, grant: Grant, requested: u64) -> Self {
        // SAFETY: a copy of an `Arc` that is never dropped. `grant` names a live block of a pool of `core`, so the pool holds a
        // counted reference until the drop below has taken that block back, after which the copy is not used.
        let core = ManuallyDrop::new(unsafe { std::ptr::read(core) });
        let id = u64::from(grant.id.generation) << 32 | u64::from(grant.id.index);
        let home = Home { core, id, pool: u64::from(pool.0) };
        Block { home: Some(home), address: grant.address, requested, kept: M::Kept::default(), kind: PhantomData }
    }

    /// A block of no bytes; its address is the alignment, which is aligned and belongs to nobody.
    pub(super) fn empty(align: u64) -> Self {
        Block { home: None, address: align, requested: 0, kept: M::Kept::default(), kind: PhantomData }
    }

    /// Bytes asked for.
    #[inline]
    pub fn len(&self) -> u64 {
        self.requested
    }

    /// Whether no bytes were asked for.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.requested == 0
    }

    /// The address of the first byte: a pointer on hosts and CUDA, an address of its own on the simulated device. For a block of
    /// no bytes, its alignment.
    #[inline]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The block's id in its pool; `None` for a block of no bytes.
    pub fn id(&self) -> Option<BlockId> {
        self.home.as_ref().map(|home| home.id())
    }

    /// The block's place as its backend knows it, with the bytes asked for; `None` for a block of no bytes.
    pub fn span(&self) -> Option<Span> {
        self.home.as_ref().map(|home| Span { size: self.requested, ..home.core.span(home.pool(), home.id()) })
    }

    /// Bytes that the block takes: what was asked for, rounded up to the quantum.
    pub fn size(&self) -> u64 {
        self.home.as_ref().map_or(0, |home| home.core.span(home.pool(), home.id()).size)
    }

    /// Says that `stream` uses this block too, from now until it is dropped: its bytes are reused only behind that
    /// stream's work as of the drop. A stream of another allocator is ignored: it cannot touch this memory.
    pub fn used_on(&self, stream: &Stream) {
        if let Some(home) = &self.home
            && stream.belongs_to(&home.core)
        {
            home.core.use_on(home.pool(), home.id(), stream.id());
        }
    }

    /// Whether its memory is of this kind; a block of no bytes is any kind.
    pub fn is<N: Memory>(&self) -> bool {
        let wanted = TypeId::of::<N>();
        wanted == TypeId::of::<Any>() || self.home.as_ref().is_none_or(|home| home.core.kind == wanted)
    }

    /// As [`Block::used_on`], by the number of a stream of its allocator that has a handle, or is in use on another block.
    #[allow(dead_code, reason = "used by kinds of memory that features add")]
    pub(crate) fn used_on_number(&self, stream: StreamId) {
        if let Some(home) = &self.home {
            home.core.use_on(home.pool(), home.id(), stream);
        }
    }

    /// The streams that it may be in use on: its own first. None for a block of no bytes.
    #[allow(dead_code, reason = "used by kinds of memory that features add")]
    pub(crate) fn streams(&self) -> Vec<StreamId> {
        self.home.as_ref().map_or(Vec::new(), |home| home.core.streams_of(home.pool(), home.id()))
    }

    /// The same block without the kind of its memory.
    pub fn erase(self) -> Block<Any> {
        self.cast()
    }

    /// The same block with the kind of its memory, if it is that kind (a block of no bytes is any kind); itself otherwise.
    ///
    /// # Errors
    /// The block, unchanged, when its memory is of another kind.
    pub fn downcast<N: Memory>(self) -> Result<Block<N>, Self> {
        if self.is::<N>() { Ok(self.cast()) } else { Err(self) }
    }

    fn cast<N: Memory>(mut self) -> Block<N> {
        Block {
            home: self.home.take(),
            address: self.address,
            requested: self.requested,
            kept: N::Kept::default(),
            kind: PhantomData,
        }
    }

    /// What its kind keeps at hand.
    #[allow(dead_code, reason = "used by kinds of memory that features add")]
    pub(crate) fn kept(&self) -> &M::Kept {
        &self.kept
    }

    /// The core that it belongs to; `None` for a block of no bytes.
    #[allow(dead_code, reason = "used by kinds of memory that features add")]
    pub(crate) fn core(&self) -> Option<&Arc<Core>> {
        self.home.as_ref().map(|home| &*home.core)
    }
}

impl<M: Memory> Drop for Block<M> {
    #[inline]
    fn drop(&mut self) {
        let Some(home) = &self.home else { return };
        if home.core.debug.is_some() {
            // Counted, because others may be the last to own a block meanwhile; this block is still live.
            return Arc::clone(&home.core).free_in_debug(home.pool(), home.id());
        }
        let last;
        {
            let pool = home.core.pool(home.pool());
            let mut state = pool.state.lock();
            last = state.take_back(home.id(), &pool.meter);
            home.core.waiting.something_freed();
            // From the unlocking on, another thread may drop the last block and the core with it.
        }
        drop(last);
    }
}

impl<M: Memory> fmt::Debug for Block<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.home {
            Some(home) => {
                write!(f, "Block({:?} of {:?} at {:#x} len {})", home.id(), home.pool(), self.address, self.requested)
            }
            None => write!(f, "Block(empty)"),
        }
    }
}
