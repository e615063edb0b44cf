//! Traces out: events or whole programs as text, plain or gzip.
//!
//! Does not check that events make sense together (a reader does). Invariants: a line is written whole or not at
//! all; what is written reads back as the same events; after an error of the sink every later call fails.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Event, HEADER_LIMIT, LINE_LIMIT, NAME_LIMIT, Op, Trace, Version};

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The sink refused. Every later call fails too.
    #[error("cannot write the trace: {0}")]
    Io(#[from] io::Error),
    /// The text cannot stand in a line: a line end, a header key with `:` or called `version`, or outer spaces of a
    /// header.
    #[error("the {what} `{text}` cannot be written")]
    BadText {
        /// What it is.
        what: &'static str,
        /// Its beginning, escaped.
        text: String,
    },
    /// The text is longer than a reader accepts.
    #[error("the {what} has {bytes} bytes, more than {limit}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// Most bytes.
        limit: usize,
    },
    /// An alignment of 2^64 or more.
    #[error("an alignment of 2^{align_log2} is more than 2^63")]
    AlignTooLarge {
        /// Its logarithm.
        align_log2: u8,
    },
    /// Alignment, tag or pool in a file of version 1.
    #[error("block {id} has an alignment, a tag or a pool, which version 1 of the format cannot say")]
    NeedsVersionTwo {
        /// The block.
        id: u64,
    },
    /// A header, or a whole trace, after the first event.
    #[error("headers come before the first event")]
    LateHeader,
}

/// Writes a trace. [`finish`](Self::finish) completes it and says what went wrong.
///
/// A writer dropped without `finish` completes the file as well as it can, and an error of the sink is then lost.
pub struct Writer<W: Write> {
    /// `None` only after `finish`.
    sink: Option<Sink<W>>,
    text: Vec<u8>,
    version: Version,
    /// Whether the version was written.
    begun: bool,
    events_begun: bool,
    failure: Option<(io::ErrorKind, String)>,
}

enum Sink<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
}

/// Text gathered before it goes to the sink.
const CHUNK: usize = 1 << 15;

impl<W: Write> Writer<W> {
    /// Writes text, as version 1 unless more is asked for.
    pub fn plain(sink: W) -> Self {
        Writer::over(Sink::Plain(sink))
    }

    /// Writes gzip, as version 1 unless more is asked for. The bytes do not depend on time or machine.
    pub fn gzip(sink: W) -> Self {
        Writer::over(Sink::Gzip(GzEncoder::new(sink, Compression::best())))
    }

    fn over(sink: Sink<W>) -> Self {
        let text = Vec::with_capacity(CHUNK + LINE_LIMIT);
        Writer { sink: Some(sink), text, version: Version::One, begun: false, events_begun: false, failure: None }
    }

    /// The version to write. Has no effect once something was written.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        if !self.begun {
            self.version = version;
        }
        self
    }

    /// Writes a header.
    ///
    /// # Errors
    /// After the first event; a text that would not read back; the sink.
    pub fn header(&mut self, key: &str, value: &str) -> Result<(), WriteError> {
        if self.events_begun {
            return Err(WriteError::LateHeader);
        }
        let clean = |text: &str| text == text.trim() && !text.contains('\n');
        if !clean(key) || key.contains(':') || key == "version" {
            return Err(bad_text("header key", key));
        }
        if !clean(value) {
            return Err(bad_text("header value", value));
        }
        within("header", key.len() + value.len(), HEADER_LIMIT)?;
        self.begin();
        self.text.extend_from_slice(format!("#{key}: {value}\n").as_bytes());
        self.flush_chunk()
    }

    /// Writes an event.
    ///
    /// # Errors
    /// A text that would not read back; an event that the version cannot say; the sink.
    pub fn event(&mut self, event: &Event) -> Result<(), WriteError> {
        match event {
            Event::Alloc { id, bytes, stream, align_log2, tag, pool } => {
                let extras = Extras {
                    align_log2: *align_log2,
                    tag: tag.as_deref().unwrap_or_default(),
                    pool: pool.as_deref().unwrap_or_default(),
                };
                self.alloc(*id, *bytes, *stream, &extras)
            }
            Event::Free { id } => self.numbers(b'f', &[*id]),
            Event::Use { id, stream } => self.numbers(b'u', &[*id, u64::from(*stream)]),
            Event::Mark { label } => self.mark(label),
        }
    }

    /// Writes a whole program, with ids from 0 in the order of allocation. It is written as version 2 when it needs it.
    /// Markers whose label was not kept are written without one.
    ///
    /// # Errors
    /// [`WriteError::LateHeader`] when something was written before; else as [`event`](Self::event).
    pub fn trace(&mut self, trace: &Trace) -> Result<(), WriteError> {
        if self.begun {
            return Err(WriteError::LateHeader);
        }
        if trace.needs_version_2() {
            self.version = Version::Two;
        }
        for (key, value) in trace.headers().iter() {
            self.header(key, value)?;
        }
        let mut ids = vec![0; trace.slots()];
        let mut next = 0;
        for op in trace.ops() {
            match *op {
                Op::Alloc { slot, bytes, stream, align_log2, tag, pool } => {
                    let name = |number| trace.name(number).unwrap_or_default();
                    let extras = Extras { align_log2, tag: name(tag), pool: name(pool) };
                    self.alloc(next, bytes, stream, &extras)?;
                    ids[slot as usize] = next;
                    next += 1;
                }
                Op::Free { slot } => self.numbers(b'f', &[ids[slot as usize]])?,
                Op::Use { slot, stream } => self.numbers(b'u', &[ids[slot as usize], u64::from(stream)])?,
                Op::Mark { label } => self.mark(trace.label(label))?,
            }
        }
        Ok(())
    }

    /// Completes the file and gives the sink back.
    ///
    /// # Errors
    /// When the sink refused now or earlier.
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.begin();
        self.flush_text()?;
        let mut inner = match self.sink.take() {
            Some(Sink::Plain(inner)) => inner,
            Some(Sink::Gzip(encoder)) => encoder.finish()?,
            None => return Err(io::Error::other("already finished").into()),
        };
        inner.flush()?;
        Ok(inner)
    }

    fn alloc(&mut self, id: u64, bytes: u64, stream: u16, extras: &Extras<'_>) -> Result<(), WriteError> {
        extras.check(id, self.version)?;
        self.put_numbers(b'a', &[id, bytes, u64::from(stream)]);
        if extras.align_log2 != 0 {
            self.text.extend_from_slice(b" align=");
            push_decimal(&mut self.text, 1 << extras.align_log2);
        }
        for (key, value) in [(" tag=", extras.tag), (" pool=", extras.pool)] {
            if !value.is_empty() {
                self.text.extend_from_slice(key.as_bytes());
                push_encoded(&mut self.text, value);
            }
        }
        self.end_line()
    }

    fn mark(&mut self, label: &str) -> Result<(), WriteError> {
        if label.contains('\n') {
            return Err(bad_text("label", label));
        }
        within("label", label.len(), LINE_LIMIT - 2)?;
        self.begin_event();
        self.text.push(b'm');
        if !label.is_empty() {
            self.text.push(b' ');
            self.text.extend_from_slice(label.as_bytes());
        }
        if label.ends_with('\r') {
            // Of a line that ends in two, one belongs to the label.
            self.text.push(b'\r');
        }
        self.end_line()
    }

    fn numbers(&mut self, letter: u8, numbers: &[u64]) -> Result<(), WriteError> {
        self.put_numbers(letter, numbers);
        self.end_line()
    }

    fn put_numbers(&mut self, letter: u8, numbers: &[u64]) {
        self.begin_event();
        self.text.push(letter);
        for &number in numbers {
            self.text.push(b' ');
            push_decimal(&mut self.text, number);
        }
    }

    fn end_line(&mut self) -> Result<(), WriteError> {
        self.text.push(b'\n');
        self.flush_chunk()
    }

    fn begin(&mut self) {
        if !self.begun && self.version == Version::Two {
            self.text.extend_from_slice(b"#version: 2\n");
        }
        self.begun = true;
    }

    fn begin_event(&mut self) {
        self.begin();
        self.events_begun = true;
    }

    fn flush_chunk(&mut self) -> Result<(), WriteError> {
        if self.text.len() < CHUNK { Ok(()) } else { self.flush_text() }
    }

    fn flush_text(&mut self) -> Result<(), WriteError> {
        if let Some((kind, message)) = &self.failure {
            self.text.clear();
            return Err(io::Error::new(*kind, message.clone()).into());
        }
        let result = match &mut self.sink {
            Some(Sink::Plain(inner)) => inner.write_all(&self.text),
            Some(Sink::Gzip(encoder)) => encoder.write_all(&self.text),
            None => Ok(()),
        };
        self.text.clear();
        result.map_err(|error| {
            self.failure = Some((error.kind(), error.to_string()));
            error.into()
        })
    }
}

impl<W: Write> Drop for Writer<W> {
    fn drop(&mut self) {
        if self.sink.is_some() && self.failure.is_none() {
            // The gzip encoder completes itself when it goes; there is nobody to tell of an error.
            let _ = self.flush_text();
            if let Some(Sink::Plain(inner)) = &mut self.sink {
                let _ = inner.flush();
            }
        }
    }
}

/// What only version 2 can say of an allocation.
struct Extras<'a> {
    align_log2: u8,
    tag: &'a str,
    pool: &'a str,
}

impl Extras<'_> {
    fn check(&self, id: u64, version: Version) -> Result<(), WriteError> {
        if self.align_log2 > 63 {
            return Err(WriteError::AlignTooLarge { align_log2: self.align_log2 });
        }
        within("tag", self.tag.len(), NAME_LIMIT)?;
        within("pool", self.pool.len(), NAME_LIMIT)?;
        let plain = self.align_log2 == 0 && self.tag.is_empty() && self.pool.is_empty();
        if plain || version == Version::Two { Ok(()) } else { Err(WriteError::NeedsVersionTwo { id }) }
    }
}

fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), WriteError> {
    if bytes <= limit { Ok(()) } else { Err(WriteError::TooLong { what, bytes, limit }) }
}

#[cold]
fn bad_text(what: &'static str, text: &str) -> WriteError {
    WriteError::BadText { what, text: super::error::excerpt(text.as_bytes()) }
}

fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8; // a digit
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn push_encoded(out: &mut Vec<u8>, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text.as_bytes() {
        if byte <= b' ' || matches!(byte, b'%' | b'=' | 0x7f) {
            out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        } else {
            out.push(byte);
        }
    }
}
