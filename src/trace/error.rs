//! What can be wrong with a trace file: where, and what.
//!
//! Knows no reader. Invariant: no error holds more than a few dozen bytes of the file, whatever the file holds.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why a trace could not be read, and at which line.
#[derive(Debug)]
pub struct TraceError {
    /// Line of the text, unpacked, from 1; 0 when the file could not be opened.
    pub line: u64,
    /// What is wrong.
    pub kind: TraceErrorKind,
    /// The file, when it is known.
    pub file: Option<PathBuf>,
}

impl TraceError {
    #[cold]
    pub(super) fn new(line: u64, kind: TraceErrorKind) -> Self {
        TraceError { line, kind, file: None }
    }

    #[cold]
    pub(super) fn in_file(mut self, path: &Path) -> Self {
        self.file = Some(path.to_owned());
        self
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        match self.line {
            0 | 1 if matches!(self.kind, TraceErrorKind::Io(_)) => write!(f, "{}", self.kind),
            0 => write!(f, "before line 1: {}", self.kind),
            line => write!(f, "line {line}: {}", self.kind),
        }
    }
}

impl std::error::Error for TraceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.kind)
    }
}

/// What is wrong with a line, or with the program it belongs to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceErrorKind {
    /// The file or stream could not be read.
    #[error("cannot read: {0}")]
    Io(#[source] std::io::Error),
    /// The gzip data ends before its own end mark.
    #[error("the gzip data ends too early (truncated file?)")]
    GzipTruncated,
    /// The gzip data is damaged.
    #[error("the gzip data is damaged: {reason}")]
    GzipCorrupt {
        /// As the decoder says it.
        reason: String,
    },
    /// A line passes [`LINE_LIMIT`](super::LINE_LIMIT).
    #[error("longer than {limit} bytes")]
    LineTooLong {
        /// Most bytes.
        limit: usize,
    },
    /// The file passes [`Limits::lines`](super::Limits::lines).
    #[error("more than {limit} lines")]
    TooManyLines {
        /// Most lines.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("not UTF-8 text")]
    NotUtf8,
    /// The version of the format is not one of those read here.
    #[error("format version `{text}` is not known (known: 1, 2)")]
    UnknownVersion {
        /// As the header gives it.
        text: String,
    },
    /// The version is given after the first event, when its lines were already read as another version.
    #[error("the format version is given after the first event")]
    LateVersion,
    /// A line begins with none of `a`, `f`, `u`, `m`, `#`.
    #[error("unknown event `{text}` (known: a, f, u, m)")]
    UnknownEvent {
        /// First word of the line, escaped.
        text: String,
    },
    /// A line ends before all of its fields.
    #[error("`{event}` without its field `{field}`")]
    MissingField {
        /// Letter of the event.
        event: char,
        /// The field.
        field: &'static str,
    },
    /// A field is no decimal number.
    #[error("`{field}` is `{text}`, not a decimal number")]
    BadNumber {
        /// The field.
        field: &'static str,
        /// Its beginning, escaped.
        text: String,
    },
    /// A number does not fit.
    #[error("`{field}` is {text}, more than {max}")]
    NumberTooLarge {
        /// The field.
        field: &'static str,
        /// Its beginning.
        text: String,
        /// Greatest value.
        max: u64,
    },
    /// An alignment is not a power of two.
    #[error("`align` is {align}, not a power of two")]
    BadAlign {
        /// The alignment.
        align: u64,
    },
    /// A `%` is not followed by two hexadecimal digits.
    #[error("`{field}` is `{text}`: `%` needs two hexadecimal digits")]
    BadEscape {
        /// The field.
        field: &'static str,
        /// Its beginning, escaped.
        text: String,
    },
    /// The name of a tag or pool passes [`NAME_LIMIT`](super::NAME_LIMIT).
    #[error("`{field}` is a name of {bytes} bytes, more than {limit}")]
    NameTooLong {
        /// The field.
        field: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// Most bytes.
        limit: usize,
    },
    /// Distinct names of tags and pools pass [`NAME_COUNT_LIMIT`](super::NAME_COUNT_LIMIT).
    #[error("more than {limit} names of tags and pools")]
    TooManyNames {
        /// Most names.
        limit: usize,
    },
    /// An id is allocated a second time, live or not.
    #[error("id {id} is allocated a second time")]
    DuplicateId {
        /// The id.
        id: u64,
    },
    /// An id is freed or used and was never allocated.
    #[error("`{event}` of id {id}, which was never allocated")]
    UnknownId {
        /// Letter of the event.
        event: char,
        /// The id.
        id: u64,
    },
    /// An id is freed or used after it was freed.
    #[error("`{event}` of id {id}, which is already freed")]
    FreedId {
        /// Letter of the event.
        event: char,
        /// The id.
        id: u64,
    },
    /// A slot of a program is freed or used while it holds nothing, or taken while it holds a block.
    #[error("slot {slot} does not hold what the operation needs")]
    BadSlot {
        /// The slot.
        slot: u32,
    },
    /// More blocks live at once than slots can be numbered.
    #[error("more than {limit} blocks live at once")]
    TooManyLive {
        /// Most blocks.
        limit: u32,
    },
    /// The sizes of all allocations together pass 2^64.
    #[error("all sizes together pass 2^64 bytes")]
    TotalOverflow,
}

/// At most 32 bytes of a field, as text for a message.
#[cold]
pub(super) fn excerpt(text: &[u8]) -> String {
    const MOST: usize = 32;
    let shown = text[..text.len().min(MOST)].escape_ascii().to_string();
    if text.len() > MOST { shown + "..." } else { shown }
}
