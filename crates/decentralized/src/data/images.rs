//! Sets of images by name.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{DataError, Dataset, Normalization, cifar, folder, idx};

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
    /// Small photographs, 3 × 32 × 32, 50,000 and 10,000.
    Cifar10,
}

impl FromStr for ImageSet {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "mnist" => Ok(Self::Mnist),
            "fashion-mnist" => Ok(Self::FashionMnist),
            "cifar10" => Ok(Self::Cifar10),
            _ => Err(DataError::UnknownSet {
                name: name.into(),
                expected: "mnist, fashion-mnist or cifar10",
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
            Self::Cifar10 => "cifar10",
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
            Self::Cifar10 => Normalization::cifar10(),
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
            Self::Cifar10 => {
                let names = cifar_names(split);
                let find = |place: &Path, subfolders: &[&str], name: &'static str| {
                    folder::find(place, subfolders, "CIFAR-10 records", &[name])
                };
                let (place, _) = find(folder, self.subfolders(), names[0])?;
                let found = names.iter().map(|name| Ok(find(&place, &[], name)?.1));
                let files: Vec<PathBuf> = found.collect::<Result<_, DataError>>()?;
                cifar::read(&files, normalization)
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
            Self::Cifar10 => &["cifar10", "cifar-10", "CIFAR10", "cifar-10-batches-bin"],
        }
    }
}

fn cifar_names(split: Split) -> &'static [&'static str] {
    match split {
        Split::Train => &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        Split::Test => &["test_batch.bin"],
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
    use super::super::real;
    use super::*;

    #[test]
    fn mnist_is_read_whole() {
        let Some(folder) = real::folder("mnist/train-images-idx3-ubyte.gz") else {
            return;
        };
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
        let values = train.features.iter().map(|&value| f64::from(value));
        let (mean, variance) = moments(values);
        assert!(
            mean.abs() < 1e-3 && (variance - 1.0).abs() < 1e-3,
            "{mean}, {variance}"
        );
        // Of NumPy's `((bytes / float32(255)) - float32(.1307)) / float32(.3081)`, viewed as uint32.
        let bits = train
            .features
            .iter()
            .map(|value| u64::from(value.to_bits()));
        assert_eq!(bits.sum::<u64>(), 133_582_963_370_532_093);
        let test = ImageSet::Mnist.read(&folder, Split::Test).expect("MNIST");
        assert_eq!(test.n_examples(), 10_000);
        assert_eq!(test.labels[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
    }

    #[test]
    fn cifar10_is_read_whole() {
        let Some(folder) = real::folder("cifar10/data_batch_1.bin") else {
            return;
        };
        let train = ImageSet::Cifar10
            .read(&folder, Split::Train)
            .expect("CIFAR-10");
        assert_eq!((train.n_examples(), train.n_features), (50_000, 3072));
        for class in 0..10 {
            assert_eq!(
                train.labels.iter().filter(|&&label| label == class).count(),
                5000
            );
        }
        for channel in 0..3 {
            let planes = train.features.chunks(1024).skip(channel).step_by(3);
            let values = planes.flatten().map(|&value| f64::from(value));
            let (mean, variance) = moments(values);
            // Also of copies that went through JPEG.
            assert!(mean.abs() < 0.01, "{mean}");
            assert!((variance - 1.0).abs() < 0.05, "{variance}");
        }
    }

    /// Mean and variance.
    fn moments(values: impl Iterator<Item = f64>) -> (f64, f64) {
        let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for value in values {
            n += 1.0;
            sum += value;
            squares += value * value;
        }
        (sum / n, squares / n - (sum / n) * (sum / n))
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
    fn cifar_needs_all_of_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let within = folder.path().join("cifar-10-batches-bin");
        std::fs::create_dir(&within).expect("created");
        for batch in 1..=4 {
            let record = vec![batch; 3073];
            let file = within.join(format!("data_batch_{batch}.bin"));
            std::fs::write(file, record).expect("written");
        }
        let read = |split| ImageSet::Cifar10.read(folder.path(), split);
        let error = read(Split::Train).expect_err("missing").to_string();
        let expect = "cifar-10-batches-bin: no CIFAR-10 records found: looked for data_batch_5.bin \
                      there and in no other folder";
        assert!(error.ends_with(expect), "{error}");
        std::fs::write(within.join("data_batch_5.bin"), vec![5; 3073 * 2]).expect("written");
        assert_eq!(
            read(Split::Train).expect("sound").labels,
            [1, 2, 3, 4, 5, 5]
        );
        let error = read(Split::Test).expect_err("missing").to_string();
        assert!(
            error.contains("looked for test_batch.bin there and in cifar10, "),
            "{error}"
        );
    }

    #[test]
    fn a_set_is_known_by_its_name() {
        for set in [ImageSet::Mnist, ImageSet::FashionMnist, ImageSet::Cifar10] {
            assert_eq!(set.name().parse::<ImageSet>().expect("a set"), set);
        }
        let error = "mnits".parse::<ImageSet>().expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "no data set is called \"mnits\", expected mnist, fashion-mnist or cifar10"
        );
    }
}
