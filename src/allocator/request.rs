//! The one builder of requests.

use std::panic::Location;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::block::Block;
use super::error::AllocError;
use super::pool::{Need, Note};
use super::streams::Stream;
use super::tags::TagId;
use super::{Allocator, Memory};
use crate::backend::Span;
use crate::ids::{PoolId, RegionId, StreamId};

/// A request for memory, to be completed and then served by [`Request::alloc`].
#[must_use = "a request does nothing until alloc() is called"]
#[derive(Clone)]
pub struct Request<'a, M: Memory> {
    allocator: &'a Allocator<M>,
    bytes: u64,
    align: u64,
    stream: Option<&'a Stream>,
    pool: PoolId,
    tag: Option<TagId>,
    deadline: Option<Instant>,
    zeroed: bool,
    apart: Vec<RegionId>,
    site: &'static Location<'static>,
}

impl<'a, M: Memory> Request<'a, M> {
    #[inline]
    pub(super) fn new(allocator: &'a Allocator<M>, bytes: u64, site: &'static Location<'static>) -> Self {
        Request {
            allocator,
            bytes,
            align: 1,
            stream: None,
            pool: allocator.pool,
            tag: None,
            deadline: None,
            zeroed: false,
            apart: Vec::new(),
            site,
        }
    }

    /// The address is to be a multiple of `bytes`, a power of two. Every address is a multiple of the quantum anyway.
    #[inline]
    pub fn align(mut self, bytes: u64) -> Self {
        self.align = bytes;
        self
    }

    /// The stream that uses the block; the default stream otherwise.
    #[inline]
    pub fn on(mut self, stream: &'a Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// The pool to take it from; the allocator's own otherwise.
    pub fn pool(mut self, pool: PoolId) -> Self {
        self.pool = pool;
        self
    }

    /// Its label for accounting, instead of the thread's current [`crate::tag`].
    pub fn tag(mut self, name: &str) -> Self {
        self.tag = Some(TagId::of(name));
        self
    }

    /// As [`Request::tag`], for a label that was looked up before.
    #[inline]
    pub fn tag_id(mut self, tag: TagId) -> Self {
        self.tag = Some(tag);
        self
    }

    /// Waits until then for somebody to free, in the order of arrival, before it fails.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The block is not to lie in this region.
    #[allow(dead_code, reason = "used by memory in segments that users bind, which a feature adds")]
    pub(crate) fn apart_from_region(mut self, region: RegionId) -> Self {
        self.apart.push(region);
        self
    }

    /// The bytes are zero.
    pub fn zeroed(mut self) -> Self {
        self.zeroed = true;
        self
    }

    /// Serves the request.
    ///
    /// # Errors
    /// [`AllocError::OutOfMemory`] with a report; [`AllocError::TooLarge`] and [`AllocError::BadAlignment`] for what no
    /// memory of this kind can do; [`AllocError::UnknownPool`], [`AllocError::ForeignStream`]; [`AllocError::Backend`] when
    /// the driver fails otherwise.
    #[inline]
    pub fn alloc(self) -> Result<Block<M>, AllocError> {
        let core = &self.allocator.core;
        let mut size = core.round(self.bytes, self.align)?;
        let stream = match self.stream {
            None => StreamId(0),
            Some(stream) if stream.belongs_to(core) => stream.id(),
            Some(_) => return Err(AllocError::ForeignStream),
        };
        let mut id = self.pool;
        let special = core.special.load(Relaxed) > 0;
        if special {
            id = core.route(id, stream)?;
            size = core.round(core.with_guard(self.bytes), self.align)?;
        }
        let Some(pool) = core.find_pool(id) else {
            return Err(AllocError::UnknownPool { pool: id, pools: core.pools().count() });
        };
        if size == 0 {
            return Ok(Block::empty(self.align.max(core.quantum)));
        }
        let tag = match self.tag.unwrap_or_else(TagId::current) {
            TagId::NONE => pool.tag,
            tag => tag,
        };
        let note = Note::new(self.site, tag, stream, size, self.bytes);
        let at_once = if self.apart.is_empty() { core.alloc_at_once(pool, size, self.align, note) } else { None };
        let grant = match at_once {
            Some(grant) => grant,
            None => {
                let (requested, align, deadline) = (self.bytes, self.align, self.deadline);
                let apart = &self.apart;
                core.alloc(id, &Need { requested, size, align, stream, tag, site: self.site, deadline, apart })?
            }
        };
        let block = Block::new(core, id, grant, self.bytes);
        if core.debug.is_some() {
            core.alloc_in_debug(id, grant, self.bytes);
        }
        if self.zeroed {
            core.backend.zero(stream, Span { size: self.bytes, ..core.span(id, grant.id) })?;
        }
        Ok(block)
    }
}
