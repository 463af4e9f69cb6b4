//! See the library.

fn main() -> anyhow::Result<()> {
    moeshard_gpu_check::main()
}
