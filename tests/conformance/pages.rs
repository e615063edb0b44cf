//! The suite for backends with pages: by hand, then a random program against a shadow.

use larder::backend::Region;

use crate::{Random, Subject, check_bytes, check_zero};

/// Everything about pages.
pub fn conform(subject: &Subject<'_>) {
    pages_come_and_go(subject);
    ends_of_a_region(subject);
    many_small_and_one_large(subject);
    remap_moves_pages(subject);
    zero_is_zero_to_the_byte(subject);
    regions_from_four_threads(subject);
    (0..3).for_each(|seed| random_pages(subject, seed));
}

fn pages_come_and_go(subject: &Subject<'_>) {
    let region = subject.reserve_pages(4);
    let span = subject.pages(region, 1, 2);
    for round in 1..4 {
        subject.backend.back(span).unwrap();
        subject.expect_fresh(region, span.offset);
        subject.expect_fresh(region, span.offset + span.size - 1);
        subject.fill(span, region, round);
        subject.settle();
        subject.backend.unback(span).unwrap();
    }
    subject.backend.release(region.id).unwrap();
    let another = subject.reserve_pages(1);
    subject.backend.release(another.id).unwrap();
}

fn ends_of_a_region(subject: &Subject<'_>) {
    let region = subject.reserve_pages(5);
    let spans = [subject.pages(region, 0, 1), subject.pages(region, 4, 1)];
    for span in spans {
        subject.backend.back(span).unwrap();
        subject.fill(span, region, 7);
    }
    subject.backend.back(subject.pages(region, 1, 3)).unwrap();
    subject.expect(region, 0, 7);
    subject.expect(region, region.size - 1, 7);
    subject.settle();
    subject.backend.unback(subject.pages(region, 0, 5)).unwrap();
    subject.backend.release(region.id).unwrap();
}

fn many_small_and_one_large(subject: &Subject<'_>) {
    let region = subject.reserve_pages(32);
    for index in 0..32 {
        // 11 has no factor in common with 32, so every page comes once.
        let span = subject.pages(region, index * 11 % 32, 1);
        subject.backend.back(span).unwrap();
        subject.write(region, span.offset, 1, index as u8);
    }
    (0..32).for_each(|index| subject.expect(region, index * 11 % 32 * subject.page(), index as u8));
    subject.settle();
    for index in (0..32).step_by(2) {
        subject.backend.unback(subject.pages(region, index, 1)).unwrap();
    }
    for index in (1..32).step_by(2) {
        subject.backend.unback(subject.pages(region, index, 1)).unwrap();
    }
    subject.backend.back(subject.pages(region, 0, 32)).unwrap();
    subject.expect_fresh(region, region.size - 1);
    subject.settle();
    subject.backend.unback(subject.pages(region, 0, 32)).unwrap();
    subject.backend.release(region.id).unwrap();
}

fn remap_moves_pages(subject: &Subject<'_>) {
    if !subject.able.remap {
        return;
    }
    let (a, b) = (subject.reserve_pages(6), subject.reserve_pages(6));
    subject.backend.back(subject.pages(a, 0, 2)).unwrap();
    subject.fill(subject.pages(a, 0, 2), a, 9);
    subject.settle();
    for (from, first, to, target) in [(a, 0, a, 2), (a, 2, b, 4), (b, 4, a, 4)] {
        let (from, to_span) = (subject.pages(from, first, 2), subject.pages(to, target, 2));
        subject.backend.remap(from, to_span).unwrap();
        if subject.able.alias {
            subject.backend.unback(from).unwrap();
        }
        subject.fill(to_span, to, 9);
        subject.settle();
        subject.backend.back(from).unwrap();
        subject.backend.unback(from).unwrap();
    }
    subject.backend.unback(subject.pages(a, 4, 2)).unwrap();
    subject.backend.release(a.id).unwrap();
    subject.backend.release(b.id).unwrap();
}

fn zero_is_zero_to_the_byte(subject: &Subject<'_>) {
    let region = subject.reserve_pages(3);
    let whole = subject.pages(region, 0, 3);
    subject.backend.back(whole).unwrap();
    check_zero(subject, region);
    check_bytes(subject, region);
    subject.backend.unback(whole).unwrap();
    subject.backend.release(region.id).unwrap();
}

fn regions_from_four_threads(subject: &Subject<'_>) {
    std::thread::scope(|scope| {
        for thread in 1..=4_u8 {
            scope.spawn(move || {
                for round in 0..20 {
                    let region = subject.reserve_pages(3);
                    let span = subject.pages(region, round % 2, 2);
                    subject.backend.back(span).unwrap();
                    subject.fill(span, region, thread);
                    subject.settle();
                    subject.backend.unback(span).unwrap();
                    subject.backend.release(region.id).unwrap();
                }
            });
        }
    });
}

const REGIONS: u64 = 2;
const PAGES: u64 = 16;

/// What is known of two regions: which physical page is behind each page, and what byte it holds at both ends.
struct Shadow {
    regions: Vec<Region>,
    /// By region and page: an index into `bytes`.
    behind: Vec<Vec<Option<usize>>>,
    /// By physical page, never used again: its byte, when it is known.
    bytes: Vec<Option<u8>>,
}

impl Shadow {
    fn fresh(&mut self, byte: Option<u8>) -> Option<usize> {
        self.bytes.push(byte);
        Some(self.bytes.len() - 1)
    }

    /// The pages of a region from `first` on that are all backed, or all not backed, as `first` is; at most `most`.
    fn run(&self, region: usize, first: u64, most: u64) -> u64 {
        let pages = &self.behind[region][first as usize..];
        let same = pages.iter().take_while(|page| page.is_some() == pages[0].is_some()).count() as u64;
        same.min(most)
    }

    fn check(&self, subject: &Subject<'_>) {
        for (region, pages) in self.regions.iter().zip(&self.behind) {
            for (index, page) in pages.iter().enumerate() {
                if let Some(byte) = page.and_then(|physical| self.bytes[physical]) {
                    subject.expect(*region, index as u64 * subject.page(), byte);
                    subject.expect(*region, (index as u64 + 1) * subject.page() - 1, byte);
                }
            }
        }
    }
}

/// A random program over pages against a shadow of what must be true.
fn random_pages(subject: &Subject<'_>, seed: u64) {
    let mut random = Random(seed);
    let regions: Vec<Region> = (0..REGIONS).map(|_| subject.reserve_pages(PAGES)).collect();
    let behind = vec![vec![None; PAGES as usize]; REGIONS as usize];
    let mut shadow = Shadow { regions, behind, bytes: Vec::new() };
    for step in 0..2_000 {
        random_step(subject, &mut shadow, &mut random);
        if step % 50 == 0 {
            shadow.check(subject);
        }
    }
    shadow.check(subject);
    subject.settle();
    for (region, pages) in shadow.regions.iter().zip(&shadow.behind) {
        for (index, _) in pages.iter().enumerate().filter(|(_, page)| page.is_some()) {
            subject.backend.unback(subject.pages(*region, index as u64, 1)).unwrap();
        }
        subject.backend.back(subject.pages(*region, 0, PAGES)).expect("the whole region in one piece");
        subject.backend.unback(subject.pages(*region, 0, PAGES)).unwrap();
        subject.backend.release(region.id).unwrap();
    }
}

fn random_step(subject: &Subject<'_>, shadow: &mut Shadow, random: &mut Random) {
    let (index, first) = (random.below(REGIONS) as usize, random.below(PAGES));
    let count = shadow.run(index, first, 1 + random.below(6));
    let (region, span) = (shadow.regions[index], subject.pages(shadow.regions[index], first, count));
    let pages = first as usize..(first + count) as usize;
    if shadow.behind[index][first as usize].is_none() {
        subject.backend.back(span).unwrap();
        let byte = subject.fresh.map(|_| 0);
        pages.for_each(|page| shadow.behind[index][page] = shadow.fresh(byte));
        return;
    }
    match random.below(8) {
        0..=1 => {
            subject.settle();
            subject.backend.unback(span).unwrap();
            shadow.behind[index][pages].fill(None);
        }
        2..=3 => random_remap(subject, shadow, random, (index, first, count)),
        4..=6 => {
            let byte = random.below(256) as u8;
            for page in pages {
                subject.write(region, page as u64 * subject.page(), 1, byte);
                subject.write(region, (page as u64 + 1) * subject.page() - 1, 1, byte);
                let physical = shadow.behind[index][page].unwrap();
                shadow.bytes[physical] = Some(byte);
            }
        }
        _ => {
            subject.zero(region, span.offset, span.size);
            for page in pages {
                let physical = shadow.behind[index][page].unwrap();
                shadow.bytes[physical] = Some(0);
            }
        }
    }
}

fn random_remap(subject: &Subject<'_>, shadow: &mut Shadow, random: &mut Random, from: (usize, u64, u64)) {
    let (index, first, count) = from;
    let (target, place) = (random.below(REGIONS) as usize, random.below(PAGES));
    let free = shadow.behind[target][place as usize].is_none();
    if !subject.able.remap || !free {
        return;
    }
    let count = shadow.run(target, place, count);
    let (from, to) =
        (subject.pages(shadow.regions[index], first, count), subject.pages(shadow.regions[target], place, count));
    subject.settle();
    subject.backend.remap(from, to).unwrap();
    for page in 0..count as usize {
        let source = shadow.behind[index][first as usize + page];
        shadow.behind[target][place as usize + page] = if subject.able.alias {
            source
        } else {
            // The contents of moved pages are not promised: a backend may give other memory for the old.
            shadow.behind[index][first as usize + page] = None;
            shadow.fresh(None)
        };
    }
}
