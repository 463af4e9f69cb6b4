//! Random numbers that follow from one seed.

use rand::SeedableRng;

/// The generator of everything random here: the same numbers on every machine.
pub type Rng = rand::rngs::ChaCha8Rng;

/// A generator of its own for each `stream` of a seed, so that nothing depends on the order in which
/// nodes, rounds or threads draw.
#[must_use]
pub fn rng(seed: u64, stream: u64) -> Rng {
    let mut rng = Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
