//! What a caller must not do is a typed error on every backend.

use larder::backend::{BackendError, Span};
use larder::ids::{EventId, RegionId, StreamId};

use crate::{Subject, grow};

/// Asserts that a call was refused as a breach of the contract.
#[track_caller]
fn breach(result: Result<(), BackendError>) {
    assert!(matches!(result, Err(BackendError::Contract { .. })), "{result:?}");
}

/// A span that has no bytes to show.
#[track_caller]
fn shows_nothing(subject: &Subject<'_>, span: Span) {
    if subject.backend.shows_bytes() {
        breach(subject.backend.bytes(span, &mut |part| panic!("{} bytes of {span:?} are shown", part.len())));
    }
}

/// What a caller must not do is an error, changes nothing, and does not disturb what comes after. For a backend of its own:
/// a simulated device remembers what it was asked.
pub fn refused(subject: &Subject<'_>) {
    let nobody = RegionId(u32::MAX);
    breach(subject.backend.release(nobody));
    breach(subject.backend.zero(StreamId(0), Span { region: nobody, offset: 0, size: 64 }));
    breach(subject.backend.done(EventId(u64::MAX)).map(drop));
    match subject.able.page {
        Some(_) => refused_on_pages(subject),
        None => refused_on_segments(subject),
    }
}

fn refused_on_pages(subject: &Subject<'_>) {
    let (backend, page) = (subject.backend, subject.page());
    let region = subject.reserve_pages(6);
    let span = |offset, size| Span { region: region.id, offset, size };
    let pages = |first, count| subject.pages(region, first, count);
    breach(backend.reserve(page + 1).map(drop));
    breach(backend.release(RegionId(region.id.0 + 1)));
    backend.back(pages(1, 2)).unwrap();
    subject.fill(pages(1, 2), region, 3);
    let impossible = [
        span(page, 0),
        span(1, page),
        span(page, page - 1),
        span(page / 2, page),
        span(6 * page, page),
        span(5 * page, 2 * page),
        span(u64::MAX - page + 1, page),
        span(0, u64::MAX - page + 1),
        Span { region: RegionId(u32::MAX), offset: 0, size: page },
    ];
    for wrong in impossible {
        breach(backend.back(wrong));
        breach(backend.unback(wrong));
        if subject.able.remap {
            breach(backend.remap(wrong, pages(3, 1)));
            breach(backend.remap(pages(1, 1), wrong));
        }
    }
    for wrong in [pages(1, 1), pages(2, 1), pages(0, 2), pages(2, 2), pages(0, 6)] {
        breach(backend.back(wrong));
    }
    for wrong in [pages(0, 1), pages(0, 2), pages(2, 2), pages(0, 6)] {
        breach(backend.unback(wrong));
    }
    if subject.able.remap {
        breach(backend.remap(pages(1, 2), pages(2, 2)));
        breach(backend.remap(pages(1, 1), pages(2, 1)));
        breach(backend.remap(pages(1, 1), pages(1, 1)));
        breach(backend.remap(pages(0, 1), pages(3, 1)));
        breach(backend.remap(pages(0, 2), pages(3, 2)));
        breach(backend.remap(pages(1, 2), pages(3, 3)));
    }
    for (offset, size) in [(0, 1), (page, 0), (page - 1, 2), (3 * page - 1, 2), (6 * page, 1), (u64::MAX, 2)] {
        breach(backend.zero(StreamId(0), span(offset, size)));
        shows_nothing(subject, span(offset, size));
    }
    breach(backend.release(region.id));
    subject.expect(region, page, 3);
    subject.expect(region, 3 * page - 1, 3);
    backend.back(pages(0, 1)).expect("what was refused left nothing behind");
    backend.back(pages(3, 3)).expect("what was refused left nothing behind");
    subject.settle();
    backend.unback(pages(0, 6)).unwrap();
    breach(backend.unback(pages(0, 6)));
    backend.release(region.id).unwrap();
    breach(backend.release(region.id));
    breach(backend.back(pages(0, 1)));
}

fn refused_on_segments(subject: &Subject<'_>) {
    let region = grow(subject, 100_000);
    subject.write(region, 0, region.size, 5);
    for (offset, size) in [(0, 0), (region.size, 1), (region.size - 1, 2), (u64::MAX, 2), (1, u64::MAX)] {
        breach(subject.backend.zero(StreamId(0), Span { region: region.id, offset, size }));
        shows_nothing(subject, Span { region: region.id, offset, size });
    }
    subject.expect(region, 0, 5);
    subject.expect(region, region.size - 1, 5);
    subject.backend.release(region.id).unwrap();
    breach(subject.backend.release(region.id));
    breach(subject.backend.zero(StreamId(0), Span { region: region.id, offset: 0, size: 1 }));
    let again = grow(subject, 100_000);
    subject.backend.release(again.id).unwrap();
}
