//! What is checked, an operation or a promise a file.

mod attention;
mod experts;
mod products;
mod refusals;
mod routing;
mod rows;
mod whole;

use moeshard_tensor::device::Device;

use crate::suite::Suite;

/// Every case, those first that others rely on.
pub(crate) fn all<D: Device>(suite: &mut Suite<'_, D>) {
    rows::cases(suite);
    products::cases(suite);
    attention::cases(suite);
    routing::cases(suite);
    experts::cases(suite);
    refusals::cases(suite);
    whole::cases(suite);
}
