//! What one rank exchanges with which others in a round.

/// One rank's side of an exchange. Ranks hold matrices of rows, `[n_local, row_len]`; what one sends
/// and the other receives must be the same number of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Rows that this rank holds.
    pub n_local: usize,
    /// From whom rows come; each rank at most once, in any order.
    pub receive: Vec<Receive>,
    /// To whom rows go; each rank at most once, in any order.
    pub send: Vec<Send>,
}

/// Rows that come from one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    /// The sender.
    pub from: usize,
    /// How many rows it sends; none is no link.
    pub n_rows: usize,
}

/// Rows that go to one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// The receiver.
    pub to: usize,
    /// Which local rows, in the order in which they arrive; each below [`Links::n_local`], and a row
    /// may be named more than once. None is no link.
    pub rows: Vec<usize>,
}

impl Links {
    /// Rows that arrive in a round.
    pub fn n_halo(&self) -> usize {
        self.receive.iter().map(|link| link.n_rows).sum()
    }
}
