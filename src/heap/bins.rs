//! Bins: which bin a size belongs to, and the first bin at or above one that holds anything.
//!
//! Each power of two is cut into 32 bins, so a bin spans at most 1/32 of its size: below 32 quanta every size has a bin of its own,
//! whatever the quantum is. Bins know indices of records only; the links are in the records.
//!
//! Invariants: `words[b / 64]` has bit `b % 64` iff `heads[b] != 0`; `top` has bit `w` iff `words[w] != 0`.

/// Bits of the size that choose the bin within a power of two.
const MANTISSA_BITS: u32 = 5;
const MANTISSA: u64 = 1 << MANTISSA_BITS;
/// Enough for every size below 2^63 bytes, and a power of two, so that a remainder is a mask.
const WORDS: usize = 32;
/// Number of bins.
pub(crate) const BINS: usize = WORDS * 64;

const _: () = assert!(bin_of(u64::MAX >> 1) < BINS);

/// The bin of a size. Monotone in the size.
#[inline(always)]
pub(crate) const fn bin_of(bytes: u64) -> usize {
    // What is left after the shift has its leading bit at MANTISSA_BITS, unless nothing was shifted: that bit counts one power of two.
    let shift = 63 - MANTISSA_BITS - (bytes | MANTISSA).leading_zeros();
    ((shift as usize) << MANTISSA_BITS) + (bytes >> shift) as usize
}

/// Heads of the lists of all bins, with a bitmap over them in two levels.
pub(crate) struct Bins {
    top: u32,
    words: [u64; WORDS],
    heads: [u32; BINS],
}

impl Bins {
    pub(crate) fn new() -> Self {
        Bins { top: 0, words: [0; WORDS], heads: [0; BINS] }
    }

    #[inline(always)]
    pub(crate) fn head(&self, bin: usize) -> u32 {
        self.heads[bin % BINS]
    }

    /// A bin gets a new head, not 0; it may have been empty. Answers the old head.
    #[inline(always)]
    pub(crate) fn push(&mut self, bin: usize, index: u32) -> u32 {
        let word = bin / 64 % WORDS;
        self.words[word] |= 1 << (bin % 64);
        self.top |= 1 << word;
        std::mem::replace(&mut self.heads[bin % BINS], index)
    }

    /// The head of a bin goes and `index` follows; 0 makes the bin empty.
    #[inline(always)]
    pub(crate) fn pop(&mut self, bin: usize, index: u32) {
        self.heads[bin % BINS] = index;
        if index == 0 {
            let word = bin / 64 % WORDS;
            self.words[word] &= !(1 << (bin % 64));
            if self.words[word] == 0 {
                self.top &= !(1 << word);
            }
        }
    }

    /// The lowest bin at or above `bin` that is not empty.
    #[inline(always)]
    pub(crate) fn next(&self, bin: usize) -> Option<usize> {
        let word = bin / 64;
        if word >= WORDS {
            return None;
        }
        let here = self.words[word] & (u64::MAX << (bin % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        let above = self.top & (u32::MAX << word << 1);
        if above == 0 {
            return None;
        }
        let word = above.trailing_zeros() as usize % WORDS;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }

    /// The highest bin that is not empty.
    pub(crate) fn highest(&self) -> Option<usize> {
        if self.top == 0 {
            return None;
        }
        let word = 31 - self.top.leading_zeros() as usize;
        Some(word * 64 + 63 - self.words[word].leading_zeros() as usize)
    }

    /// Whether the bitmaps agree with the heads.
    pub(crate) fn consistent(&self) -> bool {
        (0..BINS).all(|bin| (self.heads[bin] != 0) == (self.words[bin / 64] >> (bin % 64) & 1 == 1))
            && (0..WORDS).all(|word| (self.words[word] != 0) == (self.top >> word & 1 == 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_monotone_and_narrow() {
        let mut last = 0;
        for quanta in 1..200_000u64 {
            let bin = bin_of(quanta);
            assert!(bin == last || bin == last + 1, "{quanta}");
            last = bin;
        }
        for exponent in 6..62 {
            for step in 0..32u64 {
                let low = (1 << exponent) + (step << (exponent - 5));
                let high = low + (1 << (exponent - 5)) - 1;
                assert_eq!(bin_of(low), bin_of(high));
                assert_eq!(bin_of(high) + 1, bin_of(high + 1));
            }
        }
        assert!(bin_of(u64::MAX >> 1) < BINS);
    }

    #[test]
    fn next_and_highest_follow_the_heads() {
        let mut bins = Bins::new();
        assert_eq!((bins.next(0), bins.highest()), (None, None));
        let set = [0, 1, 63, 64, 700, 1023, BINS - 1];
        for bin in set {
            bins.push(bin, 7);
        }
        assert!(bins.consistent());
        for bin in 0..BINS {
            assert_eq!(bins.next(bin), set.iter().copied().find(|s| *s >= bin), "{bin}");
        }
        assert_eq!(bins.next(BINS), None);
        for bin in set {
            bins.pop(bin, 0);
        }
        assert!(bins.consistent() && bins.next(0).is_none());
    }
}
