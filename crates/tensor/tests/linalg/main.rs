//! The layers of training against plain loops in f64, finite differences and candle's autograd, on
//! every instruction set of this machine.

mod conv;
mod lenet;
mod norm;
mod pool;
mod support;
