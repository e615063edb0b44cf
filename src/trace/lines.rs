//! Lines out of a byte source that may be gzip.
//!
//! Knows neither events nor headers. Invariants: memory is one fixed buffer and the decoder's window, whatever the
//! source holds; `start <= end <= buffer.len()`; the current line never includes its line end; `number` is the
//! line read last, or the one that could not be read.

use std::io::{ErrorKind, Read};
use std::ops::Range;

use flate2::read::MultiGzDecoder;

use super::LINE_LIMIT;
use super::error::TraceErrorKind;

const BUFFER: usize = 1 << 16;
const _: () = assert!(BUFFER > 2 * (LINE_LIMIT + 2));
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A source with its first two bytes put back before it, that remembers whether an error was its own.
struct Peeked<R> {
    head: [u8; 2],
    left: Range<usize>,
    inner: R,
    failed: bool,
}

impl<R: Read> Read for Peeked<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if !self.left.is_empty() && !out.is_empty() {
            let count = self.left.len().min(out.len());
            out[..count].copy_from_slice(&self.head[self.left.start..self.left.start + count]);
            self.left.start += count;
            return Ok(count);
        }
        let result = self.inner.read(out);
        self.failed |= result.as_ref().is_err_and(|error| error.kind() != ErrorKind::Interrupted);
        result
    }
}

enum Source<R: Read> {
    Unopened(R),
    Plain(Peeked<R>),
    Gzip(Box<MultiGzDecoder<Peeked<R>>>),
    Closed,
}

/// Looks at the first two bytes.
fn open<R: Read>(mut inner: R) -> Result<Source<R>, TraceErrorKind> {
    let mut head = [0; 2];
    let mut count = 0;
    while count < 2 {
        match inner.read(&mut head[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(TraceErrorKind::Io(error)),
        }
    }
    let gzip = count == 2 && head == GZIP_MAGIC;
    let peeked = Peeked { head, left: 0..count, inner, failed: false };
    Ok(if gzip { Source::Gzip(Box::new(MultiGzDecoder::new(peeked))) } else { Source::Plain(peeked) })
}

fn gzip_error<R: Read>(decoder: &MultiGzDecoder<Peeked<R>>, error: std::io::Error) -> TraceErrorKind {
    match error.kind() {
        _ if decoder.get_ref().failed => TraceErrorKind::Io(error),
        ErrorKind::UnexpectedEof => TraceErrorKind::GzipTruncated,
        _ => TraceErrorKind::GzipCorrupt { reason: error.to_string() },
    }
}

impl<R: Read> Source<R> {
    /// Bytes read into `out`; 0 at the end of the text.
    fn fill(&mut self, out: &mut [u8]) -> Result<usize, TraceErrorKind> {
        if matches!(self, Source::Unopened(_))
            && let Source::Unopened(inner) = std::mem::replace(self, Source::Closed)
        {
            *self = open(inner)?;
        }
        loop {
            let result = match self {
                Source::Plain(plain) => plain.read(out),
                Source::Gzip(decoder) => decoder.read(out),
                Source::Unopened(_) | Source::Closed => return Ok(0),
            };
            match (result, &*self) {
                (Ok(count), _) => return Ok(count),
                (Err(error), _) if error.kind() == ErrorKind::Interrupted => {}
                (Err(error), Source::Gzip(decoder)) => return Err(gzip_error(decoder, error)),
                (Err(error), _) => return Err(TraceErrorKind::Io(error)),
            }
        }
    }
}

/// The lines of a source, one at a time.
pub(super) struct Lines<R: Read> {
    source: Source<R>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    line: Range<usize>,
    ended: bool,
    number: u64,
    limit: u64,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(source: R, limit: u64) -> Self {
        Lines {
            source: Source::Unopened(source),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            line: 0..0,
            ended: false,
            number: 0,
            limit,
        }
    }

    /// The current line, without its end.
    #[inline]
    pub(super) fn line(&self) -> &[u8] {
        &self.buffer[self.line.clone()]
    }

    #[inline]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Goes to the next line; false at the end of the text.
    pub(super) fn advance(&mut self) -> Result<bool, TraceErrorKind> {
        self.number += 1;
        let mut scanned = 0;
        loop {
            let window = &self.buffer[self.start + scanned..self.end];
            if let Some(at) = window.iter().position(|&byte| byte == b'\n') {
                return self.accept(scanned + at, 1).map(|()| true);
            }
            scanned = self.end - self.start;
            if scanned > LINE_LIMIT + 1 {
                return Err(TraceErrorKind::LineTooLong { limit: LINE_LIMIT });
            }
            if self.ended {
                if scanned == 0 {
                    self.number -= 1;
                    return Ok(false);
                }
                return self.accept(scanned, 0).map(|()| true);
            }
            self.refill()?;
        }
    }

    /// Makes the next `length` bytes the current line, followed by `terminator` bytes.
    #[inline]
    fn accept(&mut self, length: usize, terminator: usize) -> Result<(), TraceErrorKind> {
        let mut end = self.start + length;
        self.line.start = self.start;
        self.start = end + terminator;
        if self.line.start < end && self.buffer[end - 1] == b'\r' {
            end -= 1;
        }
        self.line.end = end;
        if self.line.len() > LINE_LIMIT {
            return Err(TraceErrorKind::LineTooLong { limit: LINE_LIMIT });
        }
        if self.number > self.limit {
            return Err(TraceErrorKind::TooManyLines { limit: self.limit });
        }
        Ok(())
    }

    /// Moves what is unread to the front and reads more behind it.
    fn refill(&mut self) -> Result<(), TraceErrorKind> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let count = self.source.fill(&mut self.buffer[self.end..])?;
        self.end += count;
        self.ended = count == 0;
        Ok(())
    }
}
