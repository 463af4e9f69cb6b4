//! How long something takes on the device.

use std::time::{Duration, Instant};

use moeshard_cuda::CudaDevice;
use moeshard_cuda::driver::Driver;
use moeshard_tensor::device::Result;

use crate::scale::Scale;

/// Passes before the first that counts: memory is taken, and graphs are captured.
const N_WARM_UP: usize = 3;

/// Median over rounds of the time of one pass, of which many are asked for before the device is waited for.
pub(crate) fn of_passes<R: Driver>(
    device: &CudaDevice<R>,
    scale: &Scale,
    pass: impl Fn() -> Result<()>,
) -> Result<Duration> {
    let round = |n| {
        let start = Instant::now();
        for _ in 0..n {
            pass()?;
            device.start()?;
        }
        device.wait()?;
        Ok(start.elapsed() / n as u32)
    };
    round(N_WARM_UP)?;
    let times: Result<Vec<_>> = (0..scale.n_rounds).map(|_| round(scale.n_passes)).collect();
    Ok(median(times?))
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
