//! Examples with their labels, read from files.
//!
//! Files come from strangers: nothing in one can crash the process or make it allocate more than the
//! file really holds.
//!
//! - [`images`]: sets of images by name, found in a folder and normalised.
//! - [`idx`]: the format of MNIST and its like.

mod dataset;
mod error;
mod folder;
pub mod idx;
pub mod images;
mod normalize;
mod source;

pub use dataset::{Dataset, ImageShape};
pub use error::DataError;
pub use images::{ImageSet, Split};
pub use normalize::Normalization;
