//! Real data, which is never part of the repository.

use std::path::{Path, PathBuf};

/// The folder that `MOESHARD_DATA` names; without it a test says that it was skipped.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("MOESHARD_DATA").map(PathBuf::from);
    let shown = folder
        .as_ref()
        .map_or("$MOESHARD_DATA".into(), |f| f.display().to_string());
    let folder = folder.filter(|f| f.join("text").is_dir());
    if folder.is_none() {
        println!("skipped: no data at {shown}");
    }
    folder
}

/// A pair of sentences and how similar people found them, 0 to 5.
#[derive(Debug)]
pub struct Pair {
    /// The first sentence.
    pub a: String,
    /// The second sentence.
    pub b: String,
    /// 0 to 5.
    pub score: f64,
}

/// The English test split of the STS benchmark.
///
/// # Panics
/// If the file is not what it should be.
pub fn sts_b(folder: &Path) -> Vec<Pair> {
    rows(&folder.join("text/stsb/stsb-en-test.csv"), false)
        .into_iter()
        .map(|row| Pair {
            a: row[0].clone(),
            b: row[1].clone(),
            score: row[2].parse().expect("a score"),
        })
        .collect()
}

/// Queries and intents of the Banking77 test split.
///
/// # Panics
/// If the file is not what it should be.
pub fn banking77_test(folder: &Path) -> Vec<(String, String)> {
    rows(&folder.join("text/banking77/test.csv"), true)
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect()
}

fn rows(path: &Path, has_headers: bool) -> Vec<Vec<String>> {
    let reader = csv::ReaderBuilder::new()
        .has_headers(has_headers)
        .from_path(path);
    let mut reader = reader.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rows = reader
        .records()
        .map(|row| row.expect("a row").iter().map(str::to_owned).collect());
    rows.collect()
}

/// Spearman's rank correlation; ties share their mean rank.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    let (x, y) = (ranks(x), ranks(y));
    let mean = (x.len() as f64 - 1.0) / 2.0;
    let covariance = |a: &[f64], b: &[f64]| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum()
    };
    covariance(&x, &y) / (covariance(&x, &x) * covariance(&y, &y)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    while first < order.len() {
        let value = values[order[first]];
        let last = (first..order.len())
            .take_while(|&i| values[order[i]] == value)
            .count()
            + first;
        for &i in &order[first..last] {
            ranks[i] = (first + last - 1) as f64 / 2.0;
        }
        first = last;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spearman_knows_order_and_ties() {
        assert!((spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 90.0]) - 1.0).abs() < 1e-12);
        assert!((spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        // scipy.stats.spearmanr([1, 2, 2, 3], [1, 3, 2, 4]) = 0.9486832980505138
        let tied = spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 3.0, 2.0, 4.0]);
        assert!((tied - 0.948_683_298_050_513_8).abs() < 1e-12);
    }
}
