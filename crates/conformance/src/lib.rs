//! What every [`Device`](moeshard_tensor::device::Device) must compute, against plain loops.
