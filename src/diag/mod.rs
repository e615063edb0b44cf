//! Diagnosis: pictures of what an allocator holds.
//!
//! Everything here is a pure function of plain data ([`crate::snapshot`]): it takes no lock, reads no clock, asks no allocator, and
//! cannot make a bad day worse.
//!
//! | file | what |
//! |---|---|
//! | `text` | the segment map as text |

#![forbid(unsafe_code)]

mod text;

pub use text::SegmentMap;
