//! The CUDA kernels. There is no logic here: what a kernel computes is said at the top of its file in
//! `cuda/`, and who launches it knows why.
