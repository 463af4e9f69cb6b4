//! See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match moeshard_paper::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moeshard-paper: {error:#}");
            ExitCode::FAILURE
        }
    }
}
