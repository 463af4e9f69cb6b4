//! Activations and routings in a device's memory.

use std::rc::Rc;

use moeshard_tensor::dtype::DType;

use crate::memory::Piece;
use crate::pass::Word;

/// The smallest step between two padded numbers of rows.
const STEP: usize = 16;

/// Rows are computed up to one of a few numbers, so that batches of about the same size launch the same
/// and share a graph: at most an eighth more than there are.
pub(crate) fn padded(n: usize) -> usize {
    let step = (n.next_power_of_two() / 16).max(STEP);
    n.next_multiple_of(step)
}

/// Activations `[n_rows, n_cols]`.
#[derive(Debug)]
pub struct Tensor {
    pub(crate) content: Content,
    pub(crate) dtype: DType,
    pub(crate) n_rows: usize,
    /// Rows that there is room for; what the last ones hold is arbitrary.
    pub(crate) n_padded: usize,
    pub(crate) n_cols: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Row after row.
    Rows(Rc<Piece>),
    /// What experts have said, not yet summed: whoever needs the sum may add something to it at once.
    Weighted(Rc<Weighted>),
}

/// `factor · Σ_k gate[t, k] · y[place[t, k]]`
#[derive(Debug)]
pub(crate) struct Weighted {
    /// `[_, n_cols]`, in the order of experts; `None` if there is no expert.
    pub(crate) y: Option<Rc<Piece>>,
    /// u32 `[n_padded, top_k]`
    pub(crate) place: Option<Rc<Piece>>,
    /// f32 `[n_padded, top_k]`
    pub(crate) gate: Option<Rc<Piece>>,
    pub(crate) top_k: usize,
    pub(crate) factor: f32,
}

impl Weighted {
    /// The same, times a factor more.
    pub(crate) fn scaled(&self, factor: f32) -> Self {
        let Self { y, place, gate, .. } = self;
        Self {
            y: y.clone(),
            place: place.clone(),
            gate: gate.clone(),
            top_k: self.top_k,
            factor: self.factor * factor,
        }
    }
}

/// Where each token of a batch goes.
#[derive(Debug)]
pub struct Routing {
    /// u32 `[n_padded, top_k]`
    pub(crate) idx: Rc<Piece>,
    /// f32 `[n_padded, top_k]`
    pub(crate) gate: Rc<Piece>,
    pub(crate) n_tokens: usize,
    pub(crate) n_padded: usize,
    pub(crate) top_k: usize,
    pub(crate) n_experts: usize,
}

pub(crate) fn word(piece: Option<&Rc<Piece>>) -> Word {
    piece.map_or(Word::NULL, |piece| Word::piece(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_small_and_takes_few_values() {
        let mut sizes = std::collections::BTreeSet::new();
        for n in 1..40_000 {
            let padded = padded(n);
            assert!(
                padded >= n && (padded - n) * 8 <= n.max(8 * STEP),
                "{n}: {padded}"
            );
            assert_eq!(super::padded(padded), padded);
            sizes.insert(padded);
        }
        assert!(sizes.len() < 100, "{}", sizes.len());
        assert_eq!(padded(0), 0);
    }
}
