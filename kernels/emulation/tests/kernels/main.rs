//! Every kernel on the emulated device against plain loops in f64, over odd shapes.

mod attention;
mod grouped_gemm;
mod hopper;
mod routing;
mod rows;
mod support;
