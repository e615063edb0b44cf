//! Allocation traces: what a program asked of an allocator, as a text file, as a stream of events, and as the dense
//! program that a replay runs.
//!
//! Reading and writing know files and numbers only, no allocator, backend or memory: nothing there allocates what a trace
//! asks for. [`replay`] does, on an allocator of its own; [`write_history`] reads a snapshot of one. A trace file is hostile input: whatever its bytes, reading it ends with a
//! [`Trace`] or a [`TraceError`] that names the line, in memory bounded by the [`Limits`], without a panic.
//!
//! # The format
//!
//! Text, one event a line, plain or gzip (told apart by the first two bytes; several gzip members are one text).
//! Lines end in `\n` or `\r\n`; blank lines are skipped; no line is longer than [`LINE_LIMIT`] bytes. Fields are
//! separated by spaces or tabs. Numbers are decimal. The order is program order.
//!
//! ```text
//! #key: value                 header; without a colon, a comment
//! a <id> <bytes> <stream>     allocate; bytes as requested, an id is never used twice, stream 0 is the default
//! f <id>                      free, on the stream of the block
//! u <id> <stream>             used on another stream from here on
//! m <label...>                marker: iteration, phase, request; the label is the rest of the line as it stands
//! ```
//!
//! What is live at the end stays live. That is version 1, and what it means when no version is given. A version-1
//! reader ignores fields after those it knows.
//!
//! Version 2 says `#version: 2` before the first event and gives meaning to further fields of an `a` line, each
//! `key=value`: `align=<power of two>`, `tag=<text>` (a label for accounting), `pool=<text>` (the pool the block comes
//! from). In a value the byte `%`, the byte `=`, and every control byte and space are written as `%` and two
//! hexadecimal digits. An empty value is no value; the last of two equal keys counts; keys not known here are ignored.
//!
//! # Example
//!
//! ```
//! use larder::trace::{Op, Reader, Trace};
//!
//! let text = "a 7 4096 0\nm step\na 9 512 1\nf 7\n";
//! let trace = Trace::from_reader(Reader::new(text.as_bytes()))?;
//! assert_eq!((trace.events(), trace.slots(), trace.peak_requested()), (3, 2, 4608));
//! assert_eq!(trace.ops()[3], Op::Free { slot: 0 });
//!
//! let error = Trace::from_reader(Reader::new(&b"a 7 4096 0\nf 8\n"[..])).unwrap_err();
//! assert_eq!(error.to_string(), "line 2: `f` of id 8, which was never allocated");
//! # Ok::<(), larder::trace::TraceError>(())
//! ```

mod cpu_time;
mod error;
mod history;
mod lines;
pub mod models;
mod program;
mod read;

pub mod replay;
mod write;

use std::sync::Arc;

pub use error::{TraceError, TraceErrorKind};
pub use history::write_history;
pub use program::{Alloc, Builder, Op, Trace};
pub use read::{Headers, Limits, Reader};
pub use write::{WriteError, Writer};

/// Longest line in bytes, its end not counted.
pub const LINE_LIMIT: usize = 4096;
/// Most headers kept of one trace.
pub const HEADER_COUNT_LIMIT: usize = 64;
/// Longest header kept, key and value together, in bytes.
pub const HEADER_LIMIT: usize = 1024;
/// Most distinct names of tags and pools in one trace.
pub const NAME_COUNT_LIMIT: usize = u16::MAX as usize;
/// Longest name of a tag or pool in bytes, as decoded.
pub const NAME_LIMIT: usize = 256;
/// Most bytes of marker labels kept of one trace.
pub const LABEL_BYTES_LIMIT: usize = 1_000_000;

/// One line of a trace that is not a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `a`: allocate.
    Alloc {
        /// Names the block for the rest of the trace.
        id: u64,
        /// Bytes as requested; 0 is an allocation without memory.
        bytes: u64,
        /// Stream it is allocated on.
        stream: u16,
        /// Logarithm of the alignment asked for; 0 when none was.
        align_log2: u8,
        /// Label for accounting; never empty.
        tag: Option<Arc<str>>,
        /// Pool it comes from; `None` is the default one; never empty.
        pool: Option<Arc<str>>,
    },
    /// `f`: free.
    Free {
        /// The block.
        id: u64,
    },
    /// `u`: used on a further stream from here on.
    Use {
        /// The block.
        id: u64,
        /// The stream.
        stream: u16,
    },
    /// `m`: marker.
    Mark {
        /// Text as it stands in the file.
        label: String,
    },
}

/// Which version of the format a file is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Version {
    /// Sizes and streams only.
    #[default]
    One,
    /// Also alignment, tags and pools.
    Two,
}
