//! Token ids by chance, the same in every run.

/// A linear congruential generator (Knuth's MMIX) of ids below `vocab_size`.
pub(crate) struct RandomIds {
    state: u64,
    vocab_size: u64,
}

impl RandomIds {
    /// Starts from the same seed every time.
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self {
            state: 1,
            vocab_size: vocab_size.max(1) as u64,
        }
    }

    /// The next `n` ids.
    pub(crate) fn take(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> u32 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) % self.vocab_size) as u32
    }
}
