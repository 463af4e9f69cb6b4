//! Every operation of the CPU device against a plain f64 version, on random inputs of odd sizes,
//! on every kernel path, dtype and number of threads.

mod attention;
mod experts;
mod products;
mod refusals;
mod rows;
mod support;
