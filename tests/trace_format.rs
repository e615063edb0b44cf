//! The trace format: what is written reads back, figures of real traces are exact, and nothing in a file can make the
//! reader panic, hang or grow without bound.

use std::io::{Cursor, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use larder::trace::{
    Alloc, Builder, Event, Limits, Op, Reader, Trace, TraceError, TraceErrorKind as Kind, Version, WriteError, Writer,
    models,
};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn read(bytes: &[u8]) -> Result<Trace, TraceError> {
    Trace::from_reader(Reader::new(bytes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn events(bytes: &[u8]) -> Vec<Event> {
    Reader::new(bytes).map(|event| event.unwrap()).collect()
}

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A random program as events. `extras` makes it need version 2.
fn random_events(seed: u64, count: usize, extras: u64) -> Vec<Event> {
    let mut random = Random(seed);
    let names = ["kv", "a b", "100%", "x=y", "line\nend", "\t\r", "größe", "%41", "\u{85}\u{2028}", "é\u{7f}"];
    let labels = ["", "iteration 1 B=16", "  spaced  ", "\tü", "request [(375, 500)]", "#no header", "a\rb"];
    let (mut live, mut out, mut next) = (Vec::new(), Vec::new(), 0u64);
    for _ in 0..count {
        match random.below(10) {
            0..4 => {
                let jump = if random.below(50) == 0 { 1 << 40 } else { 2 };
                next += 1 + random.below(jump);
                let name = |random: &mut Random| {
                    let pick = random.below(100) < extras;
                    pick.then(|| Arc::<str>::from(names[random.below(10) as usize]))
                };
                let align_log2 = if random.below(100) < extras { random.below(64) as u8 } else { 0 };
                let (tag, pool) = (name(&mut random), name(&mut random));
                let bytes = random.next() >> (20 + random.below(44));
                let stream = (random.next() >> (48 + random.below(16))) as u16;
                out.push(Event::Alloc { id: next, bytes, stream, align_log2, tag, pool });
                live.push(next);
            }
            4..7 if !live.is_empty() => {
                let at = random.below(live.len() as u64) as usize;
                out.push(Event::Free { id: live.swap_remove(at) });
            }
            7..9 if !live.is_empty() => {
                let id = live[random.below(live.len() as u64) as usize];
                out.push(Event::Use { id, stream: random.below(65536) as u16 });
            }
            _ => out.push(Event::Mark { label: labels[random.below(7) as usize].to_owned() }),
        }
    }
    out
}

fn write_events(mut writer: Writer<Vec<u8>>, events: &[Event]) -> Vec<u8> {
    writer.header("name", "random: and a colon").unwrap();
    for event in events {
        writer.event(event).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn what_is_written_reads_back_as_the_same_events() {
    for seed in 0..60 {
        let extras = if seed % 2 == 0 { 0 } else { 30 };
        let version = if extras == 0 && seed % 4 == 0 { Version::One } else { Version::Two };
        let program = random_events(seed, 2000, extras);
        for writer in [Writer::plain(Vec::new()), Writer::gzip(Vec::new())] {
            let bytes = write_events(writer.version(version), &program);
            let mut reader = Reader::new(&bytes[..]);
            let back: Vec<Event> = reader.by_ref().map(|event| event.unwrap()).collect();
            assert_eq!(back, program, "seed {seed}");
            assert_eq!(reader.version(), version);
            assert_eq!(reader.headers().get("name"), Some("random: and a colon"));
        }
    }
}

#[test]
fn a_trace_written_and_read_is_the_same_trace() {
    for seed in 0..40 {
        let extras = if seed % 2 == 0 { 0 } else { 30 };
        let bytes = write_events(Writer::plain(Vec::new()).version(Version::Two), &random_events(seed, 3000, extras));
        let trace = read(&bytes).unwrap();
        let mut writer = Writer::gzip(Vec::new());
        writer.trace(&trace).unwrap();
        let again = read(&writer.finish().unwrap()).unwrap();
        assert_eq!(again.version(), if extras == 0 { Version::One } else { Version::Two });
        assert_eq!(again.ops(), trace.ops());
        let mut writer = Writer::plain(Vec::new()).version(Version::Two);
        writer.trace(&trace).unwrap();
        assert_eq!(read(&writer.finish().unwrap()).unwrap(), trace);
    }
}

/// Recomputes every figure from events alone, with an ordered map from ids to sizes.
#[test]
fn figures_agree_with_a_shadow() {
    for seed in 100..130 {
        let program = random_events(seed, 3000, 10);
        let bytes = write_events(Writer::plain(Vec::new()).version(Version::Two), &program);
        let trace = read(&bytes).unwrap();
        let mut live = std::collections::BTreeMap::new();
        let (mut now, mut peak, mut most, mut total, mut count) = (0u64, 0, 0, 0u64, 0);
        for event in &program {
            match event {
                Event::Alloc { id, bytes, .. } => {
                    live.insert(*id, *bytes);
                    now += bytes;
                    total += bytes;
                }
                Event::Free { id } => now -= live.remove(id).unwrap(),
                _ => {}
            }
            count += u64::from(!matches!(event, Event::Mark { .. }));
            peak = now.max(peak);
            most = live.len().max(most);
        }
        assert_eq!((trace.peak_requested(), trace.total_allocated()), (peak, total));
        assert_eq!((trace.events(), trace.marks()), (count, program.len() as u64 - count));
        assert_eq!((trace.slots(), trace.max_live(), trace.live_at_end()), (most, most as u64, live.len() as u64));
        let mut held = vec![false; trace.slots()];
        for op in trace.ops() {
            match *op {
                Op::Alloc { slot, .. } => assert!(!std::mem::replace(&mut held[slot as usize], true)),
                Op::Free { slot } => assert!(std::mem::replace(&mut held[slot as usize], false)),
                Op::Use { slot, .. } => assert!(held[slot as usize]),
                Op::Mark { .. } => {}
            }
        }
    }
}

#[test]
fn line_ends_blank_lines_and_further_fields() {
    let one = events(b"#x: y\r\n\r\n  \t \na 1 2 3 align=7 junk \xff\r\n\nm  two words \r\nm\nf\t1   extra\nm");
    assert_eq!(
        one,
        [
            Event::Alloc { id: 1, bytes: 2, stream: 3, align_log2: 0, tag: None, pool: None },
            Event::Mark { label: " two words ".into() },
            Event::Mark { label: String::new() },
            Event::Free { id: 1 },
            Event::Mark { label: String::new() },
        ]
    );
    let two = events(b"#version: 2\na 01 0 0 hint=3 bare tag= pool=a%20b%3d align=64 pool=c%25 tag=%c3%bc");
    let (tag, pool) = (Some("ü".into()), Some("c%".into()));
    assert_eq!(two, [Event::Alloc { id: 1, bytes: 0, stream: 0, align_log2: 6, tag, pool }]);
    assert_eq!(events(b"#version: 1\n# a remark\na 1 2 3 align=7").len(), 1);
    assert!(events(b"").is_empty());
}

#[test]
fn a_label_may_end_like_a_line() {
    let label = |text: &str| Event::Mark { label: text.to_owned() };
    let read = events(b"m a\r\r\r\nm \r\r\nm b\r");
    assert_eq!(read, [label("a\r\r"), label("\r"), label("b")]);
    assert_eq!(events(&write_events(Writer::plain(Vec::new()), &read)), read);
    let longest = [label(&format!("{}\r", "x".repeat(4093)))];
    assert_eq!(events(&write_events(Writer::plain(Vec::new()), &longest)), longest);
}

#[test]
fn members_of_gzip_are_one_text() {
    let mut bytes = gzip(b"a 1 10 0\na 2 2");
    bytes.extend(gzip(b""));
    bytes.extend(gzip(b"0 0\nf 1\n"));
    let trace = read(&bytes).unwrap();
    assert_eq!((trace.events(), trace.peak_requested()), (3, 30));
}

/// One byte at a time, with interruptions, and in the end an error of its own.
struct Slow<'a> {
    left: &'a [u8],
    turn: u32,
    then: Option<std::io::ErrorKind>,
}

impl Read for Slow<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.turn += 1;
        if self.turn.is_multiple_of(3) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        match (self.left.split_first(), self.then) {
            (Some((&byte, rest)), _) => {
                out[0] = byte;
                self.left = rest;
                Ok(1)
            }
            (None, None) => Ok(0),
            (None, Some(kind)) => Err(kind.into()),
        }
    }
}

#[test]
fn sources_may_be_slow_and_may_fail() {
    let text = b"a 1 10 0\nm x\nf 1\n";
    for bytes in [text.to_vec(), gzip(text)] {
        let slow = |then| Trace::from_reader(Reader::new(Slow { left: &bytes, turn: 0, then }));
        assert_eq!(slow(None).unwrap(), read(text).unwrap());
        for kind in [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::InvalidInput] {
            let error = slow(Some(kind)).unwrap_err();
            assert!(matches!(&error.kind, Kind::Io(source) if source.kind() == kind), "{error}");
        }
    }
    let error = Trace::load(data("there is no such file")).unwrap_err();
    assert!(matches!(error.kind, Kind::Io(_)) && error.line == 0);
    assert!(error.to_string().contains("no such file: cannot read"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

/// Each thing that can be wrong with a text: where, what, and how it is said.
#[test]
fn every_fault_is_named_with_its_line() {
    let long = format!("m {}\n", "x".repeat(4095));
    let long_name = format!("#version: 2\na 1 2 0 tag={}", "n".repeat(257));
    type Case<'a> = (&'a [u8], u64, fn(&Kind) -> bool, &'a str);
    let cases: &[Case] = &[
        (long.as_bytes(), 1, |k| matches!(k, Kind::LineTooLong { limit: 4096 }), "longer than 4096"),
        (b"a 1 2 0\nm \xff\n", 2, |k| matches!(k, Kind::NotUtf8), "UTF-8"),
        (b"#x: \xff\n", 1, |k| matches!(k, Kind::NotUtf8), "UTF-8"),
        (b"\x89PNG\n", 1, |k| matches!(k, Kind::NotUtf8), "UTF-8"),
        (b"#version: 2\na 1 2 0 tag=%ff", 2, |k| matches!(k, Kind::NotUtf8), "UTF-8"),
        (b"\n#version: 3\n", 2, |k| matches!(k, Kind::UnknownVersion { .. }), "version `3`"),
        (b"m\n#version: 2\n", 2, |k| matches!(k, Kind::LateVersion), "after the first event"),
        (b"\n\nalloc 1 2 3", 3, |k| matches!(k, Kind::UnknownEvent { .. }), "`alloc`"),
        (b" a 1 2 3", 1, |k| matches!(k, Kind::UnknownEvent { .. }), "unknown event"),
        (b"a 1 2", 1, |k| matches!(k, Kind::MissingField { event: 'a', field: "stream" }), "`stream`"),
        (b"a", 1, |k| matches!(k, Kind::MissingField { field: "id", .. }), "`id`"),
        (b"a 1 2 0\nu 1", 2, |k| matches!(k, Kind::MissingField { event: 'u', .. }), "`u` without"),
        (b"a 1 -2 0", 1, |k| matches!(k, Kind::BadNumber { field: "bytes", .. }), "`-2`"),
        (b"a 1 \xff 0", 1, |k| matches!(k, Kind::BadNumber { .. }), "`\\xff`"),
        (b"#version: 2\na 1 2 0 align=", 2, |k| matches!(k, Kind::BadNumber { field: "align", .. }), "`align` is"),
        (b"a 1 18446744073709551616 0", 1, |k| matches!(k, Kind::NumberTooLarge { .. }), "18446744073709551616"),
        (b"a 1 2 65536", 1, |k| matches!(k, Kind::NumberTooLarge { max: 65535, .. }), "more than 65535"),
        (b"#version: 2\na 1 2 0 align=48", 2, |k| matches!(k, Kind::BadAlign { align: 48 }), "48"),
        (b"#version: 2\na 1 2 0 align=0", 2, |k| matches!(k, Kind::BadAlign { align: 0 }), "power of two"),
        (b"#version: 2\na 1 2 0 pool=%4", 2, |k| matches!(k, Kind::BadEscape { field: "pool", .. }), "`%4`"),
        (long_name.as_bytes(), 2, |k| matches!(k, Kind::NameTooLong { bytes: 257, .. }), "257"),
        (b"a 1 2 0\na 1 2 0", 2, |k| matches!(k, Kind::DuplicateId { id: 1 }), "second time"),
        (b"a 1 2 0\nf 1\n\na 1 2 0", 4, |k| matches!(k, Kind::DuplicateId { id: 1 }), "second time"),
        (b"f 9", 1, |k| matches!(k, Kind::UnknownId { event: 'f', id: 9 }), "never allocated"),
        (b"u 9999999999 1", 1, |k| matches!(k, Kind::UnknownId { event: 'u', .. }), "never allocated"),
        (b"a 1 2 0\nf 1\nf 1", 3, |k| matches!(k, Kind::FreedId { event: 'f', id: 1 }), "already freed"),
        (b"a 9999999 2 0\nf 9999999\nu 9999999 1", 3, |k| matches!(k, Kind::FreedId { event: 'u', .. }), "freed"),
        (b"a 1 18446744073709551615 0\nf 1\na 2 1 0", 3, |k| matches!(k, Kind::TotalOverflow), "2^64"),
    ];
    for (text, line, is, says) in cases {
        for bytes in [text.to_vec(), gzip(text)] {
            let error = read(&bytes).unwrap_err();
            let shown = error.to_string();
            assert_eq!(error.line, *line, "{shown}");
            assert!(is(&error.kind), "{error:?}");
            assert!(shown.starts_with(&format!("line {line}: ")) && shown.contains(says), "{shown}");
            assert!(shown.len() < 200, "{shown}");
        }
    }
    let error = Trace::from_reader(Reader::with_limits(&b"\n\n#\n\nm"[..], Limits { lines: 4 })).unwrap_err();
    assert!(error.line == 5 && matches!(error.kind, Kind::TooManyLines { limit: 4 }), "{error}");
    let mut reader = Reader::new(&b"f 1\nm\n"[..]);
    assert!(reader.next().unwrap().is_err());
    assert!(reader.next().is_none(), "nothing after an error");
}

#[test]
fn names_and_headers_and_labels_are_bounded() {
    let mut text = String::from("#version: 2\n");
    for id in 0..65_535 {
        text += &format!("a {id} 1 0 tag=t{id}\n");
    }
    assert_eq!(read(text.as_bytes()).unwrap().names(), 65_535);
    text += "a 65535 1 0 pool=t7\na 65536 1 0 pool=one-more\n";
    let error = read(text.as_bytes()).unwrap_err();
    assert!(error.line == 65_538 && matches!(error.kind, Kind::TooManyNames { limit: 65_535 }), "{error}");

    let mut text = format!("#long: {}\n", "x".repeat(1021));
    for key in 0..70 {
        text += &format!("#k{key}: v\n");
    }
    for _ in 0..300 {
        text += &format!("m {}\n", "y".repeat(4000));
    }
    let trace = read(text.as_bytes()).unwrap();
    assert_eq!((trace.headers().iter().count(), trace.headers().dropped()), (64, 7));
    assert_eq!((trace.marks(), trace.labels_dropped()), (300, 50));
    assert_eq!((trace.label(1).len(), trace.label(250).len(), trace.label(251).len()), (4000, 4000, 0));
}

#[test]
fn ids_may_be_dense_or_wild() {
    let mut random = Random(5);
    let mut text = String::new();
    let ids: Vec<u64> = (0..20_000).map(|n| if n % 3 == 0 { random.next() } else { 60_000 - n }).collect();
    for id in &ids {
        text += &format!("a {id} 1 0\n");
    }
    for id in &ids {
        text += &format!("u {id} 2\nf {id}\n");
    }
    let trace = read(text.as_bytes()).unwrap();
    assert_eq!((trace.slots(), trace.live_at_end(), trace.events()), (20_000, 0, 60_000));
    for id in ids.iter().step_by(1001) {
        let error = read(format!("{text}a {id} 1 0\n").as_bytes()).unwrap_err();
        assert!(error.line == 60_001 && matches!(error.kind, Kind::DuplicateId { .. }), "{error}");
    }
}

/// Every cut and every flipped byte of a file ends in a trace or an error with a line; a cut gzip file never passes.
#[test]
fn cut_and_damaged_files_end_in_an_error() {
    let mut writer = Writer::plain(Vec::new()).version(Version::Two);
    writer.trace(&models::serving(3, 3, 2)).unwrap();
    let text = writer.finish().unwrap();
    let packed = gzip(&text);
    let sink = |bytes: &[u8]| {
        let result = read(bytes);
        if let Err(error) = &result {
            assert!(error.line > 0 && error.to_string().len() < 300, "{error}");
        }
        result
    };
    assert!(sink(&text).is_ok() && sink(&packed).is_ok());
    for cut in (1..packed.len()).step_by(97) {
        let error = sink(&packed[..cut]).unwrap_err();
        assert!(cut == 1 || matches!(error.kind, Kind::GzipTruncated), "{cut}: {error}");
    }
    let mut damaged = packed.clone();
    for at in (0..packed.len()).step_by(101) {
        damaged[at] ^= 0xff;
        let _ = sink(&damaged);
        damaged[at] = packed[at];
    }
    damaged[packed.len() / 2] ^= 0xff;
    assert!(sink(&damaged).is_err());
    let short = &text[..text.len().min(40_000)];
    for cut in (0..short.len()).step_by(97) {
        let _ = sink(&short[..cut]);
    }
    let mut damaged = short.to_vec();
    for at in (0..short.len()).step_by(101) {
        damaged[at] ^= 0xff;
        let _ = sink(&damaged);
        damaged[at] = short[at];
    }
    let mut tail = packed.clone();
    tail.extend(b"not gzip");
    assert!(matches!(sink(&tail).unwrap_err().kind, Kind::GzipCorrupt { .. } | Kind::GzipTruncated));
}

#[test]
fn noise_ends_in_an_error() {
    let mut random = Random(9);
    let alphabet = b"aafum# 0123456789\n\n\n%=vx:\xff\t\r";
    for _ in 0..3000 {
        let length = random.below(200);
        let text: Vec<u8> = (0..length).map(|_| alphabet[random.below(alphabet.len() as u64) as usize]).collect();
        let _ = read(&text);
        let _ = read(&gzip(&text));
        let mut headed = b"\x1f\x8b\x08\x00".to_vec();
        headed.extend(&text);
        assert!(read(&headed).is_err());
    }
}

/// Small files that unpack to very much: bounded memory, and an end within seconds.
#[test]
fn gzip_bombs_end() {
    let size = if cfg!(debug_assertions) { 64 << 20 } else { 1 << 30 };
    let bomb = |byte: u8| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        std::io::copy(&mut std::io::repeat(byte).take(size), &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let error = read(&bomb(b'x')).unwrap_err();
    assert!(error.line == 1 && matches!(error.kind, Kind::LineTooLong { .. }), "{error}");
    match read(&bomb(b'\n')) {
        Ok(trace) => assert!(size < 100_000_000 && trace.events() == 0),
        Err(error) => assert!(matches!(error.kind, Kind::TooManyLines { .. }), "{error}"),
    }
}

struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let count = bytes.len().min(self.0);
        self.0 -= count;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_sink_is_told() {
    let trace = models::serving(3, 3, 2);
    for room in [0, 5, 1000, 20_000, 40_000] {
        for mut writer in [Writer::plain(Full(room)), Writer::gzip(Full(room / 8))] {
            let first = writer.trace(&trace);
            assert!(matches!(writer.finish(), Err(WriteError::Io(e)) if e.kind() == std::io::ErrorKind::StorageFull));
            if let Err(error) = first {
                assert!(matches!(error, WriteError::Io(_)), "{error}");
            }
        }
    }
    let mut sink = Cursor::new(Vec::new());
    let mut writer = Writer::gzip(&mut sink);
    writer.trace(&trace).unwrap();
    drop(writer);
    assert_eq!(read(sink.get_ref()).unwrap(), trace, "a writer that is dropped completes the file");
}

#[test]
fn what_would_not_read_back_is_refused() {
    let mut writer = Writer::plain(Vec::new());
    let alloc = |align_log2, tag: &str| {
        let tag = (!tag.is_empty()).then(|| tag.into());
        Event::Alloc { id: 1, bytes: 2, stream: 0, align_log2, tag, pool: None }
    };
    let mark = |label: &str| Event::Mark { label: label.to_owned() };
    for (key, value) in [("a:b", "x"), (" a", "x"), ("version", "2"), ("a", "x\ny"), ("a", "x "), ("a\n", "")] {
        assert!(matches!(writer.header(key, value), Err(WriteError::BadText { .. })), "{key:?} {value:?}");
    }
    assert!(matches!(writer.header("a", &"x".repeat(1024)), Err(WriteError::TooLong { .. })));
    assert!(matches!(writer.event(&mark("a\nb")), Err(WriteError::BadText { .. })));
    assert!(matches!(writer.event(&mark(&"x".repeat(4095))), Err(WriteError::TooLong { .. })));
    assert!(matches!(writer.event(&alloc(3, "")), Err(WriteError::NeedsVersionTwo { id: 1 })));
    assert!(matches!(writer.event(&alloc(0, "t")), Err(WriteError::NeedsVersionTwo { id: 1 })));
    assert!(matches!(writer.event(&alloc(64, "")), Err(WriteError::AlignTooLarge { .. })));
    writer.event(&mark(&"x".repeat(4094))).unwrap();
    assert!(matches!(writer.header("a", "b"), Err(WriteError::LateHeader)));
    assert!(matches!(writer.trace(&Trace::default()), Err(WriteError::LateHeader)));
    assert_eq!(events(&writer.finish().unwrap()), [mark(&"x".repeat(4094))], "what was refused left nothing");
    let mut writer = Writer::plain(Vec::new()).version(Version::Two);
    assert!(matches!(writer.event(&alloc(0, &"t".repeat(257))), Err(WriteError::TooLong { .. })));
    writer.event(&alloc(63, &" ".repeat(256))).unwrap();
    assert_eq!(events(&writer.finish().unwrap()), [alloc(63, &" ".repeat(256))]);
}

#[test]
fn a_builder_refuses_slots_that_hold_nothing() {
    let mut builder = Builder::new();
    let block = Alloc { bytes: 7, ..Alloc::default() };
    let slot = builder.alloc(block).unwrap();
    builder.free(slot).unwrap();
    assert!(matches!(builder.free(slot), Err(Kind::BadSlot { .. })));
    assert!(matches!(builder.use_on(slot, 1), Err(Kind::BadSlot { .. })));
    assert!(builder.alloc(Alloc { align_log2: 64, ..block }).is_err());
    assert!(builder.alloc(Alloc { bytes: u64::MAX, ..block }).is_err());
    assert_eq!(builder.alloc(block).unwrap(), slot, "an allocation refused costs no slot");
    assert_eq!(builder.finish().slots(), 1);
}

#[test]
fn streams_can_be_joined_and_dealt() {
    let trace = read(b"a 1 10 3\nm\na 2 20 1\nu 2 0\nm\nm\na 3 5 0\nf 2\n").unwrap();
    assert_eq!(trace.streams().collect::<Vec<_>>(), [0, 1, 3]);
    let streams = |trace: &Trace| -> Vec<u16> {
        let stream = |op: &Op| if let Op::Alloc { stream, .. } = op { Some(*stream) } else { None };
        trace.ops().iter().filter_map(stream).collect()
    };
    let one = trace.on_one_stream();
    assert_eq!(streams(&one), [0, 0, 0]);
    assert_eq!((one.events(), one.marks(), one.peak_requested(), one.slots()), (4, 3, 35, 3));
    assert_eq!(one.streams().collect::<Vec<_>>(), [0]);
    assert_eq!(streams(&trace.spread(2)), [0, 1, 1]);
    assert_eq!(streams(&trace.spread(4)), [0, 1, 3]);
    assert_eq!(trace.spread(1), one);
    assert_eq!(trace.spread(0), one);
}

/// name, events, peak requested, most live blocks, distinct streams
type Figures = (&'static str, u64, u64, u64, usize);

const RECORDED: [Figures; 12] = [
    ("01_gpt2m_train_pad", 202_850, 35_688_351_728, 1462, 1),
    ("02_llama8b_train_ckpt", 209_588, 67_174_518_396, 1750, 1),
    ("03_lora_llama7b_pad", 206_525, 65_669_833_740, 2191, 1),
    ("04_serve_llama7b_conv", 606_151, 3_222_259_992, 198, 1),
    ("05_sd15_mixed", 161_881, 3_743_477_230, 1161, 1),
    ("06_resnet50_server", 100_212, 404_461_816, 327, 1),
    ("07_fasterrcnn", 100_773, 2_963_416_912, 450, 1),
    ("08_mixtral_infer", 300_082, 12_866_693_520, 133, 1),
    ("09_whisper_beam", 254_041, 1_073_629_202, 309, 1),
    ("10_multimodel", 250_027, 7_081_254_670, 1754, 4),
    ("11_synthetic_robson", 147_450, 8_388_608, 16384, 1),
    ("12_synthetic_sawtooth", 79_984, 556_070_912, 67, 1),
];

fn assert_figures(path: PathBuf, figures: Figures) {
    let trace = Trace::load(path).unwrap();
    let (name, events, peak, live, streams) = figures;
    assert_eq!((trace.events(), trace.peak_requested(), trace.max_live()), (events, peak, live), "{name}");
    assert_eq!((trace.streams().len(), trace.slots() as u64), (streams, live), "{name}");
}

#[test]
fn figures_of_the_recorded_server_are_exact() {
    assert_figures(data("06_resnet50_server.gz"), RECORDED[5]);
    let trace = Trace::load(data("06_resnet50_server.gz")).unwrap();
    assert_eq!((trace.marks(), trace.live_at_end(), trace.total_allocated()), (223, 320, 89_836_384_724));
    assert_eq!(trace.label(2), "request 0 resnet50 batch 5 res 224");
    assert_eq!(trace.headers().get("model"), Some("ResNet-50"));
    assert_eq!((trace.version(), trace.names()), (Version::One, 0));
}

#[test]
fn figures_of_all_recorded_traces_are_exact() {
    let folder = std::env::var_os("LARDER_TRACES")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/traces"), PathBuf::from);
    for figures in RECORDED {
        let path = folder.join(format!("{}.gz", figures.0));
        if path.exists() {
            let start = std::time::Instant::now();
            assert_figures(path, figures);
            println!("{}: {:.0} ms", figures.0, start.elapsed().as_secs_f64() * 1e3);
        } else {
            println!("not run: {} is not there (set LARDER_TRACES)", path.display());
        }
    }
}

/// With LARDER_BLESS set, writes the file instead of comparing.
#[test]
fn the_small_serving_trace_is_what_its_model_makes() {
    let trace = models::serving(7, 7, 2);
    let path = data("serving_small.gz");
    if std::env::var_os("LARDER_BLESS").is_some() {
        let mut writer = Writer::gzip(std::fs::File::create(&path).unwrap());
        writer.trace(&trace).unwrap();
        writer.finish().unwrap();
    }
    assert!(std::fs::metadata(&path).unwrap().len() < 60_000);
    assert_eq!(Trace::load(&path).unwrap(), trace);
}

#[test]
fn models_are_sound_sized_as_said_and_repeat() {
    let made = [
        models::serving(1, 40, 1),
        models::serving(1, 40, 2),
        models::serving(2, 40, 4),
        models::serving(3, 80, 8),
        models::training(1, 24, 20),
        models::holes(1, 16_000),
    ];
    for trace in &made {
        println!(
            "{:?} seed {:?}: events {} peak {} MiB max live {} streams {} allocated {} GiB",
            trace.headers().get("name"),
            trace.headers().get("seed"),
            trace.events(),
            trace.peak_requested() >> 20,
            trace.max_live(),
            trace.streams().len(),
            trace.total_allocated() >> 30,
        );
        assert!((20_000..=200_000).contains(&trace.events()));
        assert!((1 << 30..=8 << 30).contains(&trace.peak_requested()));
        for op in trace.ops() {
            if let Op::Alloc { bytes, .. } = op {
                assert!((512..=256 << 20).contains(bytes));
            }
        }
        let mut writer = Writer::plain(Vec::new());
        writer.trace(trace).unwrap();
        assert_eq!(&read(&writer.finish().unwrap()).unwrap(), trace);
    }
    let uses = |trace: &Trace| trace.ops().iter().filter(|op| matches!(op, Op::Use { .. })).count();
    for (trace, streams) in made.iter().zip([1, 2, 4, 8]) {
        assert_eq!(trace.streams().len(), streams);
        assert_eq!(uses(trace) > 100, streams > 1);
    }
    assert_eq!(models::serving(2, 40, 4), made[2]);
    assert_ne!(models::serving(4, 40, 4), made[2]);
    for trace in [models::serving(1, 0, 0), models::training(1, 0, 0), models::training(1, 0, 2), models::holes(1, 0)] {
        assert!(trace.events() < 200);
    }
}
