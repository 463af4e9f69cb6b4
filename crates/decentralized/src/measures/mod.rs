//! What is good or bad about a topology, told before training.
//!
//! - [`Heterogeneity`]: how far averages over neighbours are from those over all, as bias and variance.
//! - [`LabelSkew`]: how far the classes of nodes, neighbourhoods and cliques are from those of all.
//! - [`Spectrum`]: how fast models come to agree.
//! - [`Links`]: edges, degrees, components.
//! - [`Traffic`]: messages and bytes of a round.

mod heterogeneity;
mod label_skew;
mod lanczos;
mod links;
mod spectrum;
mod traffic;

pub use heterogeneity::Heterogeneity;
pub(crate) use heterogeneity::distance_from_average;
pub use label_skew::LabelSkew;
pub use links::Links;
pub use spectrum::{Spectrum, is_symmetric, smallest_eigenvalue};
pub use traffic::{Traffic, n_messages};
