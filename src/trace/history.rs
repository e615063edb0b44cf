//! From what happened to a live allocator to a trace.
//!
//! What was live when the whole part of the history begins comes first, as allocations; then the events of every pool, in
//! order. So each pool reaches the same peak as it did in that time, however much was overwritten before.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use super::{Event, NAME_LIMIT, Version, WriteError, Writer};
use crate::ids::{BlockId, PoolId};
use crate::snapshot::{Action, BlockState, Event as Happened, Snapshot};

/// A block's name over all pools.
type Key = (PoolId, BlockId);

/// What a trace says of an allocation.
#[derive(Clone)]
struct Piece {
    bytes: u64,
    stream: u16,
    align_log2: u8,
    tag: String,
}

impl Piece {
    fn of(event: &Happened) -> Piece {
        let align_log2 = event.align.trailing_zeros() as u8;
        Piece { bytes: event.requested, stream: event.stream.0, align_log2, tag: event.tag.clone() }
    }
}

/// Writes the history of a snapshot as a trace of version 2, and completes it.
///
/// It begins where the events of all pools are whole. Blocks that were live then stand in front, in the order of their pools and
/// ids; what alignment they were asked for, and the further streams that used them by then, is not known any more. A snapshot without
/// a history gives its live blocks alone. Labels and pools' names may be any text; of long ones the beginning is written, within
/// [`NAME_LIMIT`](super::NAME_LIMIT).
///
/// ```
/// use larder::{Allocator, Config, trace};
///
/// let host = Allocator::host(Config::default().history(1000))?;
/// drop(host.alloc(4096)?);
/// let text = trace::write_history(&host.snapshot(), trace::Writer::plain(Vec::new()))?;
/// assert_eq!(text, b"#version: 2\na 0 4096 0\nf 0\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What the sink says.
pub fn write_history<W: Write>(snapshot: &Snapshot, writer: Writer<W>) -> Result<W, WriteError> {
    let mut writer = writer.version(Version::Two);
    let history = snapshot.history.as_ref();
    let events = history.map_or(&[][..], |history| &history.events);
    let begin = events.partition_point(|event| event.stamp < history.map_or(0, |history| history.whole_from()));
    if let Some(lost) = history.map(|history| history.overwritten() + begin as u64).filter(|lost| *lost > 0) {
        writer.header("lost", &lost.to_string())?;
    }
    let pools = pool_names(snapshot);
    let mut ids = BTreeMap::new();
    let mut next = 0;
    let mut alloc = |writer: &mut Writer<W>, ids: &mut BTreeMap<Key, u64>, key: Key, piece: &Piece| {
        ids.insert(key, next);
        next += 1;
        writer.event(&Event::Alloc {
            id: next - 1,
            bytes: piece.bytes,
            stream: piece.stream,
            align_log2: piece.align_log2,
            tag: (!piece.tag.is_empty()).then(|| cut(&piece.tag, NAME_LIMIT).into()),
            pool: pools.get(&key.0).cloned().flatten(),
        })
    };
    for (key, piece) in live_before(snapshot, &events[begin..]) {
        alloc(&mut writer, &mut ids, key, &piece)?;
    }
    for event in &events[begin..] {
        let Some(block) = event.block else { continue };
        let key = (event.pool, block);
        match event.action {
            Action::Alloc => alloc(&mut writer, &mut ids, key, &Piece::of(event))?,
            Action::Free => {
                if let Some(id) = ids.remove(&key) {
                    writer.event(&Event::Free { id })?;
                }
            }
            Action::Use => {
                if let Some(id) = ids.get(&key) {
                    writer.event(&Event::Use { id: *id, stream: event.stream.0 })?;
                }
            }
            _ => {}
        }
    }
    writer.finish()
}

/// The beginning of a text, of at most so many bytes and whole characters.
fn cut(text: &str, most: usize) -> &str {
    let ends = text.char_indices().map(|(at, character)| at + character.len_utf8());
    &text[..ends.take_while(|end| *end <= most).last().unwrap_or(0)]
}

/// What was live when these events, the last before the snapshot, began: what they free without having allocated it, and what is
/// live at the end without having been allocated by them.
fn live_before(snapshot: &Snapshot, events: &[Happened]) -> BTreeMap<Key, Piece> {
    let mut known = BTreeSet::new();
    let mut before = BTreeMap::new();
    for event in events {
        let Some(block) = event.block else { continue };
        let key = (event.pool, block);
        match event.action {
            Action::Alloc => drop(known.insert(key)),
            Action::Free if !known.contains(&key) => drop(before.insert(key, Piece::of(event))),
            _ => {}
        }
    }
    for pool in &snapshot.pools {
        let live = pool.regions.iter().flat_map(|region| &region.blocks).filter(|b| b.state == BlockState::Live);
        for block in live {
            let key = (pool.id, block.id);
            let piece = Piece { bytes: block.requested, stream: block.stream.0, align_log2: 0, tag: block.tag.clone() };
            if !known.contains(&key) {
                before.insert(key, piece);
            }
        }
    }
    before
}

/// What each pool is called in the trace: nothing for the first one, and a name of its own where two have the same.
fn pool_names(snapshot: &Snapshot) -> BTreeMap<PoolId, Option<Arc<str>>> {
    /// With room for a pool's number behind it.
    fn short(name: &str) -> &str {
        cut(name, NAME_LIMIT - 8)
    }
    let shared = |name: &str| snapshot.pools[1..].iter().filter(|pool| short(&pool.name) == name).count() > 1;
    let named = |name: &str, id: PoolId| match short(name) {
        "" => format!("{id}"),
        name if shared(name) => format!("{name} {id}"),
        name => name.to_string(),
    };
    let name = |(at, pool): (usize, &crate::snapshot::PoolRecord)| {
        (pool.id, (at > 0).then(|| named(&pool.name, pool.id).into()))
    };
    snapshot.pools.iter().enumerate().map(name).collect()
}
