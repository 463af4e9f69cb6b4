//! The mixing matrix W: after each step node `i`'s model becomes `Σ_j W[i, j] · model[j]`.

/// How far the sum of a row or column may be from one.
pub const SUM_TOLERANCE: f64 = 1e-9;

/// A doubly stochastic matrix, `[n_nodes, n_nodes]`, of which only the entries that are not zero are
/// kept: row `i` says whose models node `i` averages, with which weights.
///
/// Not symmetric in general: `W[i, j] > 0` is an edge *from* `j` *to* `i`.
#[derive(Clone, Debug, PartialEq)]
pub struct MixingMatrix {
    /// `[n_nodes + 1]`: row `i` has entries `offsets[i] .. offsets[i + 1]`.
    offsets: Vec<usize>,
    /// Ascending within a row.
    cols: Vec<u32>,
    weights: Vec<f64>,
}

/// Why a matrix is no mixing matrix.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MixingError {
    /// An entry outside the matrix, or twice in a row.
    #[error(
        "row {row} of the mixing matrix names column {col} twice or beyond its {n_nodes} nodes"
    )]
    Column {
        /// The row.
        row: usize,
        /// The column.
        col: usize,
        /// The size of the matrix.
        n_nodes: usize,
    },
    /// An entry that is negative, infinite or not a number.
    #[error(
        "entry ({row}, {col}) of the mixing matrix is {weight}, expected a non-negative number"
    )]
    Weight {
        /// The row.
        row: usize,
        /// The column.
        col: usize,
        /// The entry.
        weight: f64,
    },
    /// A row or column whose entries do not sum to one.
    #[error(
        "{axis} {idx} of the mixing matrix sums to {sum}, expected 1 (within {SUM_TOLERANCE:e})"
    )]
    Sum {
        /// "row" or "column".
        axis: &'static str,
        /// Which one.
        idx: usize,
        /// Its sum.
        sum: f64,
    },
}

impl MixingMatrix {
    /// From the entries of each row, in any order; zeros are left out.
    ///
    /// # Errors
    /// If the matrix is not doubly stochastic.
    pub fn new(rows: Vec<Vec<(u32, f64)>>) -> Result<Self, MixingError> {
        let n_nodes = rows.len();
        let mut matrix = Self {
            offsets: vec![0],
            cols: Vec::new(),
            weights: Vec::new(),
        };
        let mut col_sums = vec![0.0; n_nodes];
        for (row, mut entries) in rows.into_iter().enumerate() {
            entries.sort_by_key(|&(col, _)| col);
            let mut row_sum = 0.0;
            for (i, &(col, weight)) in entries.iter().enumerate() {
                let is_twice = i > 0 && entries[i - 1].0 == col;
                let col_idx = col as usize;
                if is_twice || col_idx >= n_nodes {
                    let col = col_idx;
                    return Err(MixingError::Column { row, col, n_nodes });
                }
                if !(weight >= 0.0 && weight.is_finite()) {
                    let col = col_idx;
                    return Err(MixingError::Weight { row, col, weight });
                }
                row_sum += weight;
                col_sums[col_idx] += weight;
                if weight > 0.0 {
                    matrix.cols.push(col);
                    matrix.weights.push(weight);
                }
            }
            check_sum("row", row, row_sum)?;
            matrix.offsets.push(matrix.cols.len());
        }
        for (col, sum) in col_sums.into_iter().enumerate() {
            check_sum("column", col, sum)?;
        }
        Ok(matrix)
    }

    /// Number of nodes.
    #[must_use]
    pub fn n_nodes(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whose models node `row` averages, ascending, and their weights.
    #[must_use]
    pub fn row(&self, row: usize) -> (&[u32], &[f64]) {
        let entries = self.offsets[row]..self.offsets[row + 1];
        (&self.cols[entries.clone()], &self.weights[entries])
    }

    /// The entries `(row, col, weight)`, row by row.
    pub fn entries(&self) -> impl Iterator<Item = (usize, usize, f64)> + '_ {
        (0..self.n_nodes()).flat_map(|row| {
            let (cols, weights) = self.row(row);
            let entries = cols.iter().zip(weights);
            entries.map(move |(&col, &weight)| (row, col as usize, weight))
        })
    }
}

// In absolute error: a matrix of large entries of both signs could have any sum otherwise.
fn check_sum(axis: &'static str, idx: usize, sum: f64) -> Result<(), MixingError> {
    match (sum - 1.0).abs() <= SUM_TOLERANCE {
        true => Ok(()),
        false => Err(MixingError::Sum { axis, idx, sum }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_doubly_stochastic_matrices_pass() {
        let check = |rows: Vec<Vec<(u32, f64)>>, expect: &str| {
            let error = MixingMatrix::new(rows).expect_err("not doubly stochastic");
            assert_eq!(error.to_string(), expect);
        };
        check(
            vec![vec![(0, 1.0)], vec![(0, 1.0)]],
            "column 0 of the mixing matrix sums to 2, expected 1 (within 1e-9)",
        );
        check(
            vec![vec![(0, 0.5)], vec![(1, 1.0)]],
            "row 0 of the mixing matrix sums to 0.5, expected 1 (within 1e-9)",
        );
        check(
            vec![vec![(0, 2.0), (1, -1.0)], vec![(0, -1.0), (1, 2.0)]],
            "entry (0, 1) of the mixing matrix is -1, expected a non-negative number",
        );
        check(
            vec![vec![(2, 1.0)], vec![(1, 1.0)]],
            "row 0 of the mixing matrix names column 2 twice or beyond its 2 nodes",
        );
        let half = vec![(1, 0.5), (0, 0.5)];
        let matrix = MixingMatrix::new(vec![half.clone(), half]).expect("doubly stochastic");
        assert_eq!(matrix.row(1), (&[0, 1][..], &[0.5, 0.5][..]));
        assert_eq!(matrix.entries().count(), 4);
    }
}
