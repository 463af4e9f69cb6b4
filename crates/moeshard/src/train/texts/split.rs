//! Examples kept apart to measure on, where there is no file of such.

use anyhow::{Result, ensure};
use moeshard_decentralized::data::TextSet;
use moeshard_decentralized::seed;
use rand::seq::SliceRandom;

/// One example of so many of a class is kept apart.
const ONE_OF: usize = 5;

/// Stream of the seed from which it is drawn who that is, beyond those of nodes and rounds.
const STREAM: u64 = (1 << 60) + 2;

/// Keeps a fifth of each class apart: at least one example, unless it is the only one.
///
/// # Errors
/// If no class has two examples.
pub(super) fn split(set: &TextSet, seed: u64) -> Result<(TextSet, TextSet)> {
    let mut classes = vec![Vec::new(); set.n_classes()];
    for (example, &label) in set.labels.iter().enumerate() {
        classes[label as usize].push(example);
    }
    let mut rng = seed::rng(seed, STREAM);
    let mut is_test = vec![false; set.n_examples()];
    for class in &mut classes {
        class.shuffle(&mut rng);
        let n = ((class.len() + ONE_OF / 2) / ONE_OF).max(1);
        let n = n.min(class.len().saturating_sub(1));
        class[..n]
            .iter()
            .for_each(|&example| is_test[example] = true);
    }
    ensure!(
        is_test.contains(&true),
        "{}: expected two examples of a label, to learn from one and measure on the other, found one \
         of each; name a file to measure on with --test-data",
        set.file.display()
    );
    let part = |wanted: bool| {
        let picked = || (0..set.n_examples()).filter(|&example| is_test[example] == wanted);
        TextSet {
            file: set.file.clone(),
            texts: picked().map(|example| set.texts[example].clone()).collect(),
            labels: picked().map(|example| set.labels[example]).collect(),
            label_names: set.label_names.clone(),
        }
    };
    Ok((part(false), part(true)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn set(counts: &[usize]) -> TextSet {
        let labels = counts
            .iter()
            .zip(0..)
            .flat_map(|(&n, label)| vec![label; n]);
        let labels: Vec<u32> = labels.collect();
        TextSet {
            file: "a.csv".into(),
            texts: (0..labels.len()).map(|i| i.to_string()).collect(),
            labels,
            label_names: (0..counts.len()).map(|i| format!("label {i}")).collect(),
        }
    }

    fn counts(set: &TextSet) -> Vec<usize> {
        let of = |label| set.labels.iter().filter(|&&l| l as usize == label).count();
        (0..set.n_classes()).map(of).collect()
    }

    #[test]
    fn a_fifth_of_each_class_is_kept_apart() {
        let whole = set(&[100, 10, 7, 3, 2, 1]);
        let (train, test) = split(&whole, 1).expect("a split");
        assert_eq!(counts(&test), [20, 2, 1, 1, 1, 0]);
        assert_eq!(counts(&train), [80, 8, 6, 2, 1, 1]);
        let texts = train.texts.iter().chain(&test.texts);
        let texts: BTreeSet<&String> = texts.collect();
        assert_eq!(texts.len(), whole.n_examples());
        for part in [&train, &test] {
            for (text, label) in part.texts.iter().zip(&part.labels) {
                let example: usize = text.parse().expect("a number");
                assert_eq!(whole.labels[example], *label);
            }
        }
        assert_eq!(split(&whole, 1).expect("a split").1, test);
        assert_ne!(split(&whole, 2).expect("a split").1, test);
    }

    #[test]
    fn a_class_of_one_cannot_be_measured() {
        let error = split(&set(&[1, 1]), 1).expect_err("nothing to measure on");
        assert!(error.to_string().contains("--test-data"), "{error}");
    }
}
