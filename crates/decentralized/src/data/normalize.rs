//! Pixels as numbers around zero.

use super::DataError;

/// Mean and standard deviation of each channel, of pixels between 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalization {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Normalization {
    /// One mean and one standard deviation a channel.
    ///
    /// # Errors
    /// Unless there are as many of one as of the other, all finite, every deviation above zero.
    pub fn new(mean: &[f32], std: &[f32]) -> Result<Self, DataError> {
        let error = |what, expected: String, found: String| DataError::Normalization {
            what,
            expected,
            found,
        };
        if mean.len() != std.len() || mean.is_empty() {
            let (expected, found) = (format!("one of each of {} means", mean.len()), std.len());
            return Err(error("deviations", expected, found.to_string()));
        }
        if let Some(mean) = mean.iter().find(|mean| !mean.is_finite()) {
            return Err(error("mean", "a finite number".into(), mean.to_string()));
        }
        let is_scale = |std: &f32| std.is_finite() && *std > 0.0;
        if let Some(std) = std.iter().find(|std| !is_scale(std)) {
            let expected = "a number above zero".into();
            return Err(error("standard deviation", expected, std.to_string()));
        }
        Ok(Self {
            mean: mean.to_vec(),
            std: std.to_vec(),
        })
    }

    /// MNIST's own: mean 0.1307, deviation 0.3081.
    #[must_use]
    pub fn mnist() -> Self {
        Self {
            mean: vec![0.1307],
            std: vec![0.3081],
        }
    }

    /// Fashion-MNIST's own.
    #[must_use]
    pub fn fashion_mnist() -> Self {
        Self {
            mean: vec![0.2860],
            std: vec![0.3530],
        }
    }

    /// CIFAR-10's own, of its red, green and blue planes.
    #[must_use]
    pub fn cifar10() -> Self {
        Self {
            mean: vec![0.4914, 0.4822, 0.4465],
            std: vec![0.2470, 0.2435, 0.2616],
        }
    }

    /// The value of each possible pixel, channel by channel: `(pixel / 255 − mean) / std`, in f32 and
    /// in this order as the usual preprocessing does, so that features agree with it bit for bit.
    ///
    /// # Errors
    /// If there are other than `channels` means.
    pub(super) fn tables(&self, channels: usize) -> Result<Vec<[f32; 256]>, DataError> {
        if self.mean.len() != channels {
            return Err(DataError::Normalization {
                what: "means",
                expected: format!("one for each of {channels} channels"),
                found: self.mean.len().to_string(),
            });
        }
        let table = |(mean, std): (&f32, &f32)| {
            std::array::from_fn(|pixel| (pixel as f32 / 255.0 - mean) / std)
        };
        Ok(self.mean.iter().zip(&self.std).map(table).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_holds_each_pixel_normalised() {
        let tables = Normalization::mnist().tables(1).expect("one channel");
        assert_eq!(tables[0][0], -0.1307_f32 / 0.3081);
        assert!((tables[0][255] - 2.821_486_6).abs() < 1e-6);
        assert!(Normalization::mnist().tables(3).is_err());
    }

    #[test]
    fn what_cannot_normalise_is_refused() {
        let check = |mean: &[f32], std: &[f32], expect: &str| {
            let error = Normalization::new(mean, std).expect_err("unsound");
            assert_eq!(error.to_string(), expect);
        };
        let (number, above) = ("a finite number", "a number above zero");
        check(
            &[f32::NAN],
            &[1.0],
            &format!("the normalisation has mean NaN, expected {number}"),
        );
        check(
            &[0.0],
            &[0.0],
            &format!("the normalisation has standard deviation 0, expected {above}"),
        );
        check(
            &[0.0, 0.0],
            &[1.0],
            "the normalisation has deviations 1, expected one of each of 2 means",
        );
        assert!(Normalization::new(&[0.5], &[0.5]).is_ok());
    }
}
