//! The program: reads the command line and runs one of its actions.

use std::process::ExitCode;

use moeshard::cli::{self, Action, Cli};
use moeshard::sentence::sentence;
use moeshard::{
    bench, classify, doctor, embed, inspect, launch, loadtest, logging, serve, topology, train,
    verify,
};

// Many short-lived allocations from many threads: measurably faster than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let action = Cli::from_process().action;
    logging::start(matches!(&action, Action::Serve(args) if args.server.json_output));
    if matches!(action, Action::Serve(_)) {
        cli::warn_of_variables();
    }
    let alone = launch::check_alone;
    let result = match action {
        Action::Serve(args) => serve::run(*args),
        Action::Embed(args) => alone("embed").and_then(|()| embed::run(*args)),
        Action::Classify(args) => alone("classify").and_then(|()| classify::run(*args)),
        Action::Inspect(args) => inspect::run(*args),
        Action::Verify(args) => alone("verify").and_then(|()| verify::run(*args)),
        Action::Bench(args) => bench::run(*args),
        Action::Doctor(args) => doctor::run(args),
        Action::Loadtest(args) => loadtest::run(*args),
        Action::Train(args) => train::run(*args),
        Action::Topology(args) => topology::run(*args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moeshard: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.root_cause().downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
