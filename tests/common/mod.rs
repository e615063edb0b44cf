//! What the laws share: reproducible chance, and whether to run long.
#![allow(dead_code)]

pub mod world;

/// Where random programs take their decisions from.
#[derive(Clone, Debug)]
pub enum Rng {
    /// splitmix64: the same seed gives the same numbers everywhere.
    Seeded(u64),
    /// Bytes that a fuzzer chose, and zeros behind them; of each no more are taken than the decision needs.
    Chosen(std::vec::IntoIter<u8>),
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng::Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn chosen(bytes: &[u8]) -> Self {
        Rng::Chosen(Vec::from(bytes).into_iter())
    }

    /// Whether all chosen bytes are taken; seeds have no end.
    pub fn is_spent(&self) -> bool {
        matches!(self, Rng::Chosen(bytes) if bytes.len() == 0)
    }

    pub fn next(&mut self) -> u64 {
        self.bits(u64::BITS)
    }

    /// A number of at least so many bits.
    fn bits(&mut self, count: u32) -> u64 {
        let state = match self {
            Rng::Seeded(state) => state,
            Rng::Chosen(bytes) => {
                return bytes.take(count.div_ceil(8) as usize).fold(0, |z, byte| z << 8 | u64::from(byte));
            }
        };
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits(u64::BITS - (n - 1).leading_zeros()) % n
    }

    /// From `low` to `high`, both among them.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Small numbers often, large ones sometimes, up to `max`.
    pub fn skewed(&mut self, max: u64) -> u64 {
        let bits = 64 - max.leading_zeros() as u64;
        let top = self.range(1, bits);
        self.range(1, (1u64 << top).min(max))
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Whether `LARDER_FULL=1` asks for the long runs.
pub fn full() -> bool {
    std::env::var("LARDER_FULL").is_ok_and(|value| value == "1")
}

/// `short` by default, `long` when the long runs are asked for; a small part of `short` where the program is interpreted.
pub fn runs(short: u64, long: u64) -> u64 {
    if cfg!(miri) {
        short.div_ceil(50)
    } else if full() {
        long
    } else {
        short
    }
}

/// Compares a text that people read with the committed one of this name; `UPDATE_EXPECT=1` rewrites that.
pub fn golden(name: &str, text: &str) {
    // Tests run in the root of the package; checkers build some without cargo, which would name it.
    let path = std::path::Path::new("tests/golden").join(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    assert!(text == expected, "{} differs (UPDATE_EXPECT=1 rewrites it):\n{text}", path.display());
}
