//! Events out of lines: parsing, and the rules that hold between lines.
//!
//! Does not know what the events are for. Invariants: an id is in exactly one of three states, never seen, live in a
//! slot, or freed; the slots of live ids are distinct and below the greatest number of ids ever live at once;
//! memory grows with the number of allocations read and with nothing else; after an error nothing more is read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use super::error::{TraceErrorKind as Kind, excerpt};
use super::lines::Lines;
use super::{Event, HEADER_COUNT_LIMIT, HEADER_LIMIT, NAME_COUNT_LIMIT, NAME_LIMIT, TraceError, Version};

/// How much of a file is read before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most lines; blank lines, headers and markers count, so that this bounds the time as well as the events.
    pub lines: u64,
}

impl Default for Limits {
    /// 100 million lines.
    fn default() -> Self {
        Limits { lines: 100_000_000 }
    }
}

/// The headers of a trace in the order of the file, the version left out.
///
/// At most [`HEADER_COUNT_LIMIT`] of at most [`HEADER_LIMIT`] bytes each are kept; others are counted only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    entries: Vec<(String, String)>,
    dropped: u64,
}

impl Headers {
    /// Value of the first header with this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(have, _)| *have == key).map(|(_, value)| value)
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// How many were not kept because of the limits.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn push(&mut self, key: &str, value: &str) {
        if self.entries.len() < HEADER_COUNT_LIMIT && key.len() + value.len() <= HEADER_LIMIT {
            self.entries.push((key.to_owned(), value.to_owned()));
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }
}

/// Names as small integers from 1, in the order of first sight; 0 is no name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    by_number: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u16>,
}

impl Names {
    pub(super) fn intern(&mut self, field: &'static str, name: &str) -> Result<u16, Kind> {
        if name.is_empty() {
            return Ok(0);
        }
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        if name.len() > NAME_LIMIT {
            return Err(Kind::NameTooLong { field, bytes: name.len(), limit: NAME_LIMIT });
        }
        if self.by_number.len() == NAME_COUNT_LIMIT {
            return Err(Kind::TooManyNames { limit: NAME_COUNT_LIMIT });
        }
        let name: Arc<str> = name.into();
        self.by_number.push(name.clone());
        let number = self.by_number.len() as u16; // at most NAME_COUNT_LIMIT
        self.numbers.insert(name, number);
        Ok(number)
    }

    pub(super) fn get(&self, number: u16) -> Option<&Arc<str>> {
        self.by_number.get(usize::from(number).checked_sub(1)?)
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }
}

/// Hands out the numbers of slots: the one given back last, else the next unused one.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    free: Vec<u32>,
    next: u32,
}

impl Slots {
    const LIMIT: u32 = u32::MAX - 2;

    pub(super) fn take(&mut self) -> Result<u32, Kind> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        if self.next == Self::LIMIT {
            return Err(Kind::TooManyLive { limit: Self::LIMIT });
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    pub(super) fn put(&mut self, slot: u32) {
        self.free.push(slot);
    }
}

/// What became of each id: a table for ids that are small for the number of allocations, a map for the others.
#[derive(Default)]
struct Ids {
    dense: Vec<u32>,
    sparse: HashMap<u64, u32>,
    seen: u64,
    slots: Slots,
}

impl Ids {
    const NEVER: u32 = u32::MAX;
    const FREED: u32 = u32::MAX - 1;
    /// Ids below this go to the table from the first.
    const DENSE_FLOOR: u64 = 1 << 12;

    fn state(&self, id: u64) -> u32 {
        match self.dense.get(usize::try_from(id).unwrap_or(usize::MAX)) {
            Some(&state) if state != Self::NEVER || self.sparse.is_empty() => state,
            _ => self.sparse.get(&id).copied().unwrap_or(Self::NEVER),
        }
    }

    fn set(&mut self, id: u64, state: u32) {
        if let Some(entry) = self.sparse.get_mut(&id) {
            *entry = state;
        } else if let Some(entry) = self.dense.get_mut(usize::try_from(id).unwrap_or(usize::MAX)) {
            *entry = state;
        } else if id < Self::DENSE_FLOOR.saturating_add(self.seen.saturating_mul(2)) {
            self.dense.resize(id as usize + 1, Self::NEVER); // at most twice what was allocated
            self.dense[id as usize] = state;
        } else {
            self.sparse.insert(id, state);
        }
    }

    fn allocate(&mut self, id: u64) -> Result<u32, Kind> {
        if self.state(id) != Self::NEVER {
            return Err(Kind::DuplicateId { id });
        }
        let slot = self.slots.take()?;
        self.seen += 1;
        self.set(id, slot);
        Ok(slot)
    }

    fn live(&self, event: char, id: u64) -> Result<u32, Kind> {
        match self.state(id) {
            Self::NEVER => Err(Kind::UnknownId { event, id }),
            Self::FREED => Err(Kind::FreedId { event, id }),
            slot => Ok(slot),
        }
    }

    fn free(&mut self, id: u64) -> Result<u32, Kind> {
        let slot = self.live('f', id)?;
        self.set(id, Self::FREED);
        self.slots.put(slot);
        Ok(slot)
    }
}

/// An event with its block as a slot and its names as numbers; the label of a marker stays in the line.
pub(super) enum Record {
    Alloc { id: u64, slot: u32, bytes: u64, stream: u16, align_log2: u8, tag: u16, pool: u16 },
    Free { id: u64, slot: u32 },
    Use { id: u64, slot: u32, stream: u16 },
    Mark,
}

/// What is known after the lines read so far.
#[derive(Default)]
pub(super) struct Parser {
    pub(super) version: Version,
    pub(super) headers: Headers,
    pub(super) names: Names,
    ids: Ids,
    begun: bool,
}

#[inline]
fn is_gap(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The fields of a line after its letter.
struct Fields<'a> {
    event: char,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let start = self.rest.iter().position(|&byte| !is_gap(byte))?;
        let rest = &self.rest[start..];
        let (field, rest) = rest.split_at(rest.iter().position(|&byte| is_gap(byte)).unwrap_or(rest.len()));
        self.rest = rest;
        Some(field)
    }

    #[inline]
    fn number(&mut self, field: &'static str, max: u64) -> Result<u64, Kind> {
        match self.next() {
            Some(text) => number(field, text, max),
            None => Err(Kind::MissingField { event: self.event, field }),
        }
    }
}

#[inline]
fn number(field: &'static str, text: &[u8], max: u64) -> Result<u64, Kind> {
    let mut value = Some(0u64);
    for &byte in text {
        if !byte.is_ascii_digit() {
            return Err(Kind::BadNumber { field, text: excerpt(text) });
        }
        value = value.and_then(|v| v.checked_mul(10)?.checked_add(u64::from(byte - b'0')));
    }
    match value {
        _ if text.is_empty() => Err(Kind::BadNumber { field, text: String::new() }),
        Some(value) if value <= max => Ok(value),
        _ => Err(Kind::NumberTooLarge { field, text: excerpt(text), max }),
    }
}

fn utf8(text: &[u8]) -> Result<&str, Kind> {
    std::str::from_utf8(text).map_err(|_| Kind::NotUtf8)
}

/// Text of a value in which bytes are written as `%` and two digits.
fn decode<'a>(field: &'static str, text: &'a [u8]) -> Result<Cow<'a, str>, Kind> {
    if !text.contains(&b'%') {
        return utf8(text).map(Cow::Borrowed);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(Kind::BadEscape { field, text: excerpt(text) });
        };
        out.push((high * 16 + low) as u8); // two digits
        rest = &after[2..];
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| Kind::NotUtf8)
}

/// Bytes of the line that are the label of a marker.
pub(super) fn label_of(line: &[u8]) -> &[u8] {
    line.get(2..).unwrap_or_default()
}

impl Parser {
    /// The event of a line; `None` for a line without one.
    fn parse(&mut self, line: &[u8]) -> Result<Option<Record>, Kind> {
        let Some((&letter, rest)) = line.split_first() else { return Ok(None) };
        if letter == b'#' {
            return self.header(rest).map(|()| None);
        }
        if !rest.first().is_none_or(|&byte| is_gap(byte)) || !matches!(letter, b'a' | b'f' | b'u' | b'm') {
            return unknown(line);
        }
        self.begun = true;
        let mut fields = Fields { event: char::from(letter), rest };
        Ok(Some(match letter {
            b'a' => self.alloc(&mut fields)?,
            b'f' => {
                let id = fields.number("id", u64::MAX)?;
                Record::Free { id, slot: self.ids.free(id)? }
            }
            b'u' => {
                let id = fields.number("id", u64::MAX)?;
                let stream = fields.number("stream", u64::from(u16::MAX))? as u16;
                Record::Use { id, slot: self.ids.live('u', id)?, stream }
            }
            _ => utf8(label_of(line)).map(|_| Record::Mark)?,
        }))
    }

    fn alloc(&mut self, fields: &mut Fields<'_>) -> Result<Record, Kind> {
        let id = fields.number("id", u64::MAX)?;
        let bytes = fields.number("bytes", u64::MAX)?;
        let stream = fields.number("stream", u64::from(u16::MAX))? as u16;
        let (mut align_log2, mut tag, mut pool) = (0, 0, 0);
        if self.version == Version::Two {
            while let Some(field) = fields.next() {
                let split = field.iter().position(|&byte| byte == b'=').unwrap_or(field.len());
                let value = field.get(split + 1..).unwrap_or_default();
                match &field[..split] {
                    b"align" => align_log2 = align(value)?,
                    b"tag" => tag = self.names.intern("tag", &decode("tag", value)?)?,
                    b"pool" => pool = self.names.intern("pool", &decode("pool", value)?)?,
                    _ => {}
                }
            }
        }
        Ok(Record::Alloc { id, slot: self.ids.allocate(id)?, bytes, stream, align_log2, tag, pool })
    }

    fn header(&mut self, text: &[u8]) -> Result<(), Kind> {
        let Some((key, value)) = utf8(text)?.split_once(':') else { return Ok(()) };
        let (key, value) = (key.trim(), value.trim());
        if key != "version" {
            self.headers.push(key, value);
            return Ok(());
        }
        if self.begun {
            return Err(Kind::LateVersion);
        }
        self.version = match value {
            "1" => Version::One,
            "2" => Version::Two,
            _ => return Err(Kind::UnknownVersion { text: excerpt(value.as_bytes()) }),
        };
        Ok(())
    }
}

fn align(value: &[u8]) -> Result<u8, Kind> {
    match number("align", value, u64::MAX)? {
        align if align.is_power_of_two() => Ok(align.trailing_zeros() as u8), // at most 63
        align => Err(Kind::BadAlign { align }),
    }
}

/// A line of gaps is blank; any other is no event.
#[cold]
fn unknown(line: &[u8]) -> Result<Option<Record>, Kind> {
    if line.iter().all(|&byte| is_gap(byte)) {
        return Ok(None);
    }
    utf8(line)?;
    let word = line.split(|&byte| is_gap(byte)).next().unwrap_or_default();
    Err(Kind::UnknownEvent { text: excerpt(if word.is_empty() { line } else { word }) })
}

/// The events of a trace, one at a time, from any source of bytes, plain or gzip.
///
/// Yields each event, or one error after which it yields nothing. Holds 64 KiB of text, the decoder, and a few bytes
/// per allocation read. A damaged gzip file yields the events before the damage first.
pub struct Reader<R: Read> {
    lines: Lines<R>,
    parser: Parser,
    done: bool,
}

impl<R: Read> Reader<R> {
    /// Reads with the default [`Limits`]. Nothing is read before the first event is asked for.
    pub fn new(source: R) -> Self {
        Reader::with_limits(source, Limits::default())
    }

    /// Reads with these limits.
    pub fn with_limits(source: R, limits: Limits) -> Self {
        Reader { lines: Lines::new(source, limits.lines), parser: Parser::default(), done: false }
    }

    /// The version the file gives; complete once the first event was read.
    pub fn version(&self) -> Version {
        self.parser.version
    }

    /// The headers read so far.
    pub fn headers(&self) -> &Headers {
        &self.parser.headers
    }

    /// Number of the line read last, from 1.
    pub fn line(&self) -> u64 {
        self.lines.number()
    }

    pub(super) fn next_record(&mut self) -> Result<Option<Record>, TraceError> {
        if self.done {
            return Ok(None);
        }
        match self.step() {
            Ok(Some(record)) => Ok(Some(record)),
            Ok(None) => {
                self.done = true;
                Ok(None)
            }
            Err(kind) => {
                self.done = true;
                Err(TraceError::new(self.lines.number(), kind))
            }
        }
    }

    fn step(&mut self) -> Result<Option<Record>, Kind> {
        while self.lines.advance()? {
            if let Some(record) = self.parser.parse(self.lines.line())? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Label of the marker read last. It was found to be UTF-8 when the line was read.
    pub(super) fn label(&self) -> &str {
        std::str::from_utf8(label_of(self.lines.line())).unwrap_or_default()
    }

    pub(super) fn into_parts(self) -> (Version, Headers, Names) {
        (self.parser.version, self.parser.headers, self.parser.names)
    }

    fn event(&self, record: Record) -> Event {
        match record {
            Record::Alloc { id, bytes, stream, align_log2, tag, pool, .. } => {
                let name = |number| self.parser.names.get(number).cloned();
                Event::Alloc { id, bytes, stream, align_log2, tag: name(tag), pool: name(pool) }
            }
            Record::Free { id, .. } => Event::Free { id },
            Record::Use { id, stream, .. } => Event::Use { id, stream },
            Record::Mark => Event::Mark { label: self.label().to_owned() },
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Event, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_record() {
            Ok(record) => record.map(|record| Ok(self.event(record))),
            Err(error) => Some(Err(error)),
        }
    }
}
