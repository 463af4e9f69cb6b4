//! Examples with their labels, read from files.
//!
//! Files come from strangers: nothing in one can crash the process or make it allocate more than the
//! file really holds.
//!
//! - [`images`]: sets of images by name, found in a folder and normalised.
//! - [`idx`], [`cifar`]: the formats of MNIST and its like, and of CIFAR-10.
//! - [`text`]: texts with labels; the caller makes vectors of them.
//! - [`read_class_counts`]: how many examples of each class nodes hold, without the examples.

pub mod cifar;
mod class_table;
mod dataset;
mod error;
mod folder;
pub mod idx;
pub mod images;
mod normalize;
#[cfg(test)]
mod real;
mod source;
pub(crate) mod table;
pub mod text;

pub use class_table::read_class_counts;
pub use dataset::{Dataset, ImageShape};
pub use error::DataError;
pub use images::{ImageSet, Split};
pub use normalize::Normalization;
pub use text::{TextColumns, TextSet};
