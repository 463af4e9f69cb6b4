//! Examples and their labels in memory.

use std::path::Path;

use super::DataError;

/// What images look like: planes of rows of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Colours.
    pub channels: usize,
    /// Rows of a plane.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
}

impl ImageShape {
    /// Features of one image, `channels · height · width`.
    #[must_use]
    pub fn n_features(&self) -> usize {
        self.channels * self.height * self.width
    }
}

/// Examples of `n_features` numbers with a label each.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// Numbers of one example.
    pub n_features: usize,
    /// Labels are below this.
    pub n_classes: usize,
    /// `[n_examples, n_features]`; those of an image are `[channels, height, width]`.
    pub features: Vec<f32>,
    /// `[n_examples]`
    pub labels: Vec<u32>,
    /// Of images; `None` for anything else.
    pub shape: Option<ImageShape>,
}

impl Dataset {
    /// A data set of vectors, which came from `file`: only messages use that name.
    ///
    /// # Errors
    /// Without examples, with another number of vectors than labels, with a label that is not below
    /// `n_classes`, or with a feature that is not finite.
    pub fn new(
        file: &Path,
        n_features: usize,
        n_classes: usize,
        features: Vec<f32>,
        labels: Vec<u32>,
    ) -> Result<Self, DataError> {
        if labels.is_empty() || n_features == 0 {
            return Err(DataError::Empty { file: file.into() });
        }
        if labels.len().checked_mul(n_features) != Some(features.len()) {
            return Err(DataError::Shape {
                file: file.into(),
                expected: format!("{} vectors of {n_features} features", labels.len()),
                found: format!("{} numbers", features.len()),
            });
        }
        check_labels(file, &labels, n_classes)?;
        if let Some(at) = features.iter().position(|value| !value.is_finite()) {
            return Err(DataError::NotFinite {
                file: file.into(),
                example_idx: at / n_features,
                feature_idx: at % n_features,
                value: features[at],
            });
        }
        Ok(Self {
            n_features,
            n_classes,
            features,
            labels,
            shape: None,
        })
    }

    /// Number of examples.
    #[must_use]
    pub fn n_examples(&self) -> usize {
        self.labels.len()
    }

    /// Features of one example, `[n_features]`.
    #[must_use]
    pub fn example(&self, example_idx: usize) -> &[f32] {
        &self.features[example_idx * self.n_features..][..self.n_features]
    }

    /// Keeps the first `n_examples`; all of them if there are no more.
    ///
    /// Published setups keep the first 50,000 of MNIST's 60,000 for training.
    #[must_use]
    pub fn first(mut self, n_examples: usize) -> Self {
        let n_examples = n_examples.min(self.n_examples());
        self.labels.truncate(n_examples);
        self.features.truncate(n_examples * self.n_features);
        self
    }
}

/// Whether every label is below `n_classes`.
pub(super) fn check_labels(file: &Path, labels: &[u32], n_classes: usize) -> Result<(), DataError> {
    let wrong = labels.iter().position(|&label| label as usize >= n_classes);
    match wrong {
        None => Ok(()),
        Some(example_idx) => Err(DataError::Label {
            file: file.into(),
            example_idx,
            label: labels[example_idx],
            n_classes,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(n_features: usize, features: &[f32], labels: &[u32]) -> String {
        let (features, labels) = (features.to_vec(), labels.to_vec());
        let made = Dataset::new(Path::new("x.csv"), n_features, 2, features, labels);
        made.expect_err("unsound").to_string()
    }

    #[test]
    fn unsound_vectors_are_told_from_sound_ones() {
        assert_eq!(
            error(2, &[0.0, 1.0, 2.0, f32::NAN], &[0, 1]),
            "x.csv: feature 1 of example 1 is NaN, expected a finite number"
        );
        assert_eq!(
            error(1, &[0.0, f32::INFINITY], &[0, 1]),
            "x.csv: feature 0 of example 1 is inf, expected a finite number"
        );
        assert_eq!(
            error(1, &[0.0, 1.0], &[0, 2]),
            "x.csv: example 1 has label 2, expected one below 2"
        );
        assert_eq!(
            error(2, &[0.0, 1.0], &[0, 1]),
            "x.csv: expected 2 vectors of 2 features, found 2 numbers"
        );
        assert_eq!(
            error(2, &[], &[]),
            "x.csv: expected at least one example, found none"
        );
        let file = Path::new("x.csv");
        let sound = Dataset::new(file, 2, 2, vec![0.0, 1.0, 2.0, 3.0], vec![1, 0]).expect("sound");
        assert_eq!(sound.n_examples(), 2);
        assert_eq!(sound.example(1), [2.0, 3.0]);
        assert_eq!(sound.clone().first(9), sound);
        let first = sound.first(1);
        assert_eq!((first.features, first.labels), (vec![0.0, 1.0], vec![1]));
    }
}
