//! From a live allocator's recording to a trace.

use std::io::Write;

use super::{Event, Version, WriteError, Writer};
use crate::allocator::{Event as Happened, Recording};

impl From<&Happened> for Event {
    fn from(happened: &Happened) -> Event {
        match happened {
            Happened::Alloc { id, bytes, align, stream, tag } => Event::Alloc {
                id: *id,
                bytes: *bytes,
                stream: stream.0,
                align_log2: align.checked_ilog2().unwrap_or(0) as u8,
                tag: (!tag.is_empty()).then(|| tag.as_str().into()),
                pool: None,
            },
            Happened::Free { id } => Event::Free { id: *id },
            Happened::Use { id, stream } => Event::Use { id: *id, stream: stream.0 },
        }
    }
}

/// Writes a recording as a trace of version 2, and completes it.
///
/// ```
/// use larder::{Allocator, Config, trace};
///
/// let host = Allocator::host(Config::default())?;
/// host.record(1_000_000);
/// drop(host.alloc(4096)?);
/// let text = trace::write_recording(&host.recorded(), trace::Writer::plain(Vec::new()))?;
/// assert_eq!(text, b"#version: 2\na 0 4096 0\nf 0\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What the sink says; a tag too long for a trace.
pub fn write_recording<W: Write>(recording: &Recording, writer: Writer<W>) -> Result<W, WriteError> {
    let mut writer = writer.version(Version::Two);
    if recording.lost > 0 {
        writer.header("lost", &recording.lost.to_string())?;
    }
    for event in &recording.events {
        writer.event(&event.into())?;
    }
    writer.finish()
}
