//! Sets of images by name.

use std::path::Path;
use std::str::FromStr;

use super::{DataError, Dataset, Normalization, folder, idx};

/// Which part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What models learn from.
    Train,
    /// What they are judged by.
    Test,
}

/// A set of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSet {
    /// Handwritten digits, 1 × 28 × 28, 60,000 and 10,000.
    Mnist,
    /// Clothes, in MNIST's shape and format.
    FashionMnist,
}

impl FromStr for ImageSet {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "mnist" => Ok(Self::Mnist),
            "fashion-mnist" => Ok(Self::FashionMnist),
            _ => Err(DataError::UnknownSet {
                name: name.into(),
                expected: "mnist, fashion-mnist",
            }),
        }
    }
}

impl ImageSet {
    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
        }
    }

    /// Number of classes.
    #[must_use]
    pub fn n_classes(self) -> usize {
        10
    }

    /// Mean and deviation of the training set.
    #[must_use]
    pub fn normalization(self) -> Normalization {
        match self {
            Self::Mnist => Normalization::mnist(),
            Self::FashionMnist => Normalization::fashion_mnist(),
        }
    }

    /// Reads a part of the set, normalised as usual, from the official files in `folder` or in one of
    /// the usual folders inside it.
    ///
    /// # Errors
    /// If a file is missing or not what it should be.
    pub fn read(self, folder: &Path, split: Split) -> Result<Dataset, DataError> {
        self.read_normalized(folder, split, &self.normalization())
    }

    /// The same with another normalisation.
    ///
    /// # Errors
    /// If a file is missing or not what it should be, or the normalisation is of other channels.
    pub fn read_normalized(
        self,
        folder: &Path,
        split: Split,
        normalization: &Normalization,
    ) -> Result<Dataset, DataError> {
        match self {
            Self::Mnist | Self::FashionMnist => {
                let (images, labels) = idx_names(split);
                let subfolders = self.subfolders();
                let (place, images) = folder::find(folder, subfolders, "IDX images", &images)?;
                // Of the same folder: labels of another set would fit only by accident.
                let (_, labels) = folder::find(&place, &[], "IDX labels", &labels)?;
                idx::read(&images, &labels, self.n_classes(), normalization)
            }
        }
    }

    /// Where the set's files lie when others lie beside them; `raw` is torchvision's.
    fn subfolders(self) -> &'static [&'static str] {
        match self {
            Self::Mnist => &["mnist", "MNIST", "raw", "MNIST/raw"],
            Self::FashionMnist => &[
                "fashion-mnist",
                "fashion_mnist",
                "FashionMNIST",
                "raw",
                "FashionMNIST/raw",
            ],
        }
    }
}

/// Names of the file of images and of the file of labels. Archives are sometimes unpacked with a dot
/// for the second dash.
fn idx_names(split: Split) -> ([&'static str; 4], [&'static str; 4]) {
    match split {
        Split::Train => (
            [
                "train-images-idx3-ubyte",
                "train-images-idx3-ubyte.gz",
                "train-images.idx3-ubyte",
                "train-images.idx3-ubyte.gz",
            ],
            [
                "train-labels-idx1-ubyte",
                "train-labels-idx1-ubyte.gz",
                "train-labels.idx1-ubyte",
                "train-labels.idx1-ubyte.gz",
            ],
        ),
        Split::Test => (
            [
                "t10k-images-idx3-ubyte",
                "t10k-images-idx3-ubyte.gz",
                "t10k-images.idx3-ubyte",
                "t10k-images.idx3-ubyte.gz",
            ],
            [
                "t10k-labels-idx1-ubyte",
                "t10k-labels-idx1-ubyte.gz",
                "t10k-labels.idx1-ubyte",
                "t10k-labels.idx1-ubyte.gz",
            ],
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The folder of real data; without it a test says that it was skipped.
    fn real_data() -> Option<PathBuf> {
        let folder = std::env::var_os("MOESHARD_DATA").map(PathBuf::from);
        let shown = folder
            .as_ref()
            .map_or("$MOESHARD_DATA".into(), |f| f.display().to_string());
        let folder = folder.filter(|folder| folder.join("mnist").is_dir());
        if folder.is_none() {
            println!("skipped: no data at {shown}");
        }
        folder
    }

    #[test]
    fn mnist_is_read_whole() {
        let Some(folder) = real_data() else { return };
        let start = std::time::Instant::now();
        let train = ImageSet::Mnist.read(&folder, Split::Train).expect("MNIST");
        println!("60,000 images in {:.0?}", start.elapsed());
        assert_eq!((train.n_examples(), train.n_features), (60_000, 784));
        let mut counts = [0; 10];
        train
            .labels
            .iter()
            .for_each(|&label| counts[label as usize] += 1);
        // As published with the set.
        assert_eq!(
            counts,
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        );
        let values = || train.features.iter().map(|&value| f64::from(value));
        let n_values = train.features.len() as f64;
        let mean = values().sum::<f64>() / n_values;
        let variance = values().map(|value| value * value).sum::<f64>() / n_values - mean * mean;
        assert!(
            mean.abs() < 1e-3 && (variance - 1.0).abs() < 1e-3,
            "{mean}, {variance}"
        );
        let test = ImageSet::Mnist.read(&folder, Split::Test).expect("MNIST");
        assert_eq!(test.n_examples(), 10_000);
        assert_eq!(test.labels[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
    }

    #[test]
    fn missing_files_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let check = |expect: &str| {
            let error = ImageSet::Mnist.read(folder.path(), Split::Test);
            let error = error.expect_err("missing").to_string();
            assert_eq!(
                error,
                expect.replace("DIR", &folder.path().display().to_string())
            );
        };
        let images = "t10k-images-idx3-ubyte, t10k-images-idx3-ubyte.gz, t10k-images.idx3-ubyte, \
                      t10k-images.idx3-ubyte.gz";
        check(&format!(
            "DIR: no IDX images found: looked for {images} there and in mnist, MNIST, raw, MNIST/raw"
        ));
        let within = folder.path().join("mnist");
        std::fs::create_dir(&within).expect("created");
        std::fs::write(within.join("t10k-images.idx3-ubyte"), []).expect("written");
        let labels = images.replace("images", "labels").replace("idx3", "idx1");
        check(&format!(
            "DIR/mnist: no IDX labels found: looked for {labels} there and in no other folder"
        ));
        std::fs::write(within.join("t10k-labels-idx1-ubyte.gz"), []).expect("written");
        check("DIR/mnist/t10k-images.idx3-ubyte: cut short: expected 16 bytes, found 0");
        let nowhere = folder.path().join("nowhere");
        let error = ImageSet::Mnist
            .read(&nowhere, Split::Test)
            .expect_err("missing");
        let expect = "nowhere: expected a folder of data, found none of that name";
        assert!(error.to_string().ends_with(expect), "{error}");
    }

    #[test]
    fn a_set_is_known_by_its_name() {
        for set in [ImageSet::Mnist, ImageSet::FashionMnist] {
            assert_eq!(set.name().parse::<ImageSet>().expect("a set"), set);
        }
        let error = "mnits".parse::<ImageSet>().expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "no data set is called \"mnits\", expected mnist, fashion-mnist"
        );
    }
}
