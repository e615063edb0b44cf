//! What a heap must look like, kept as plain intervals: who holds each byte, what is behind it, and the last use of every
//! free piece. Knows nothing of bins, records or fences.

use std::collections::BTreeMap;

use larder::heap::{Heap, State};
use larder::ids::{Access, BlockId};

use super::fences::Counted;

/// What a stretch of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Backed and nobody's; nothing to wait for.
    Fresh,
    /// Backed and nobody's; freed on a stream at a count.
    Freed(usize, u32),
    Live(BlockId),
    Held,
    Void,
    Filling,
    Retired,
}

impl Kind {
    pub fn is_free(self) -> bool {
        matches!(self, Kind::Fresh | Kind::Freed(..))
    }

    fn state(self) -> State {
        match self {
            Kind::Fresh | Kind::Freed(..) => State::Free,
            Kind::Live(_) => State::Live,
            Kind::Held => State::Held,
            Kind::Void => State::Void,
            Kind::Filling => State::Filling,
            Kind::Retired => State::Retired,
        }
    }
}

/// A piece: bytes, and what they are.
pub type Piece = (u64, Kind);

/// All regions' bytes, as pieces by slot and offset.
#[derive(Debug, Default)]
pub struct Shadow {
    pieces: BTreeMap<(u16, u64), Piece>,
}

impl Shadow {
    pub fn add(&mut self, place: u16, size: u64, kind: Kind) {
        assert!(self.pieces.range((place, 0)..(place + 1, 0)).next().is_none(), "slot {place} is given twice");
        self.pieces.insert((place, 0), (size, kind));
    }

    pub fn remove(&mut self, place: u16) {
        self.pieces.retain(|(slot, _), _| *slot != place);
    }

    /// Whether a byte beside a block is free.
    pub fn is_free_beside(&self, place: u16, start: u64, size: u64) -> bool {
        let before = self.pieces.range((place, 0)..(place, start)).next_back();
        let after = self.pieces.get(&(place, start + size));
        before.map(|(_, piece)| piece).into_iter().chain(after).any(|(_, kind)| kind.is_free())
    }

    fn cut(&mut self, place: u16, at: u64) {
        let Some((&(_, start), &(size, kind))) = self.pieces.range((place, 0)..(place, at)).next_back() else { return };
        if start + size > at {
            self.pieces.insert((place, start), (at - start, kind));
            self.pieces.insert((place, at), (start + size - at, kind));
        }
    }

    /// The pieces of a stretch, cut to it.
    pub fn take(&mut self, place: u16, start: u64, size: u64) -> Vec<Piece> {
        self.cut(place, start);
        self.cut(place, start + size);
        let keys: Vec<_> = self.pieces.range((place, start)..(place, start + size)).map(|(key, _)| *key).collect();
        let taken: Vec<Piece> = keys.iter().map(|key| self.pieces.remove(key).unwrap()).collect();
        assert_eq!(
            taken.iter().map(|piece| piece.0).sum::<u64>(),
            size,
            "{start}+{size} of slot {place} is not all there"
        );
        taken
    }

    /// Lays pieces end to end from `start`. Equal neighbours among them become one.
    pub fn put(&mut self, place: u16, start: u64, pieces: &[Piece]) {
        let mut at = start;
        let mut last: Option<u64> = None;
        for (size, kind) in pieces {
            let same = last.and_then(|key| self.pieces.get_mut(&(place, key))).filter(|piece| piece.1 == *kind);
            match same {
                Some(piece) => piece.0 += size,
                None => {
                    self.pieces.insert((place, at), (*size, *kind));
                    last = Some(at);
                }
            }
            at += size;
        }
    }

    /// Replaces a stretch, all of which must satisfy `was`.
    pub fn turn(&mut self, place: u16, start: u64, size: u64, was: impl Fn(Kind) -> bool, into: Kind) -> Vec<Piece> {
        let old = self.take(place, start, size);
        assert!(
            old.iter().all(|piece| was(piece.1)),
            "{start}+{size} of slot {place} turns into {into:?}, was {old:?}"
        );
        self.put(place, start, &[(size, into)]);
        old
    }

    /// Every use of these pieces lets `access` pass.
    pub fn all_pass(pieces: &[Piece], access: Access, fences: &Counted) -> bool {
        pieces.iter().all(|(_, kind)| match kind {
            Kind::Freed(stream, counter) => fences.use_passes(*stream, *counter, access),
            _ => true,
        })
    }

    /// Bytes with memory behind them, retired addresses not counted.
    pub fn backed(&self) -> u64 {
        let backed = |kind: &Kind| kind.is_free() || matches!(kind, Kind::Live(_) | Kind::Held);
        self.pieces.values().filter(|(_, kind)| backed(kind)).map(|(size, _)| size).sum()
    }

    /// Size of the longest stretch of free bytes that a search may find.
    pub fn largest_free(&self) -> u64 {
        let (mut largest, mut run, mut end) = (0, 0, (0, 0));
        for ((place, start), (size, kind)) in &self.pieces {
            run = match kind.is_free() {
                true if end == (*place, *start) => run + size,
                true => *size,
                false => 0,
            };
            end = (*place, start + size);
            largest = largest.max(run);
        }
        largest
    }

    /// Compares every block of a heap with the pieces, and its fence with every use under it.
    pub fn compare(&self, heap: &Heap<u64>, fences: &Counted) {
        let mut pieces = self.pieces.iter();
        for place in heap.places() {
            for block in heap.blocks(place) {
                let mut at = block.offset;
                while at < block.offset + block.size {
                    let (key, (size, kind)) = pieces.next().expect("a piece for every block");
                    assert_eq!((*key, kind.state()), ((place, at), block.state), "{block:?}");
                    assert!(at + size <= block.offset + block.size, "{block:?} is shorter than {kind:?} of {size}");
                    match kind {
                        Kind::Live(id) => assert_eq!((*id, *size), (block.id, block.size)),
                        Kind::Freed(stream, counter) => {
                            assert!(fences.covers(block.fence, *stream, *counter), "{block:?} forgets {kind:?}");
                        }
                        _ => {}
                    }
                    at += size;
                }
            }
        }
        assert!(pieces.next().is_none(), "the heap lacks a block");
        assert_eq!(heap.largest_free(), self.largest_free());
    }
}
