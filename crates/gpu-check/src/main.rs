//! See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match moeshard_gpu_check::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}
