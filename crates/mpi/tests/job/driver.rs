//! Starts the jobs and counts what they report.

use std::env;
use std::ffi::OsString;
use std::io;
use std::process::{Command, ExitCode, Output};

use crate::rank::REPORT;
use crate::{CHECKS, lost};

const WORLD_SIZES: [usize; 4] = [1, 2, 4, 8];

/// Seconds after which `mpirun` ends a job that hangs.
const DEADLINE: &str = "120";

/// Runs every case whose name contains one of the filters; without filters, all.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|part| name.contains(*part));
    let mut tally = Tally::default();
    println!();
    for world_size in WORLD_SIZES {
        let names = CHECKS.into_iter().flatten().map(|check| check.name);
        let wanted: Vec<&str> = names
            .filter(|name| is_wanted(&full_name(world_size, name)))
            .collect();
        if !wanted.is_empty() {
            run_job(world_size, &wanted, &mut tally);
        }
    }
    for case in &lost::CASES {
        let name = format!("lost::{}", case.name);
        if is_wanted(&name) {
            tally.add(&name, lost::holds(case));
        }
    }
    tally.finish()
}

fn full_name(world_size: usize, check: &str) -> String {
    format!("p{world_size}::{check}")
}

/// One job, and one result for each of its checks.
fn run_job(world_size: usize, names: &[&str], tally: &mut Tally) {
    let output = match start(world_size, names) {
        Ok(output) => output,
        Err(error) => {
            tally.add(&full_name(world_size, "mpirun"), Err(error.to_string()));
            return;
        }
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut reports = stdout.lines().filter_map(|line| line.strip_prefix(REPORT));
    let stderr = String::from_utf8_lossy(&output.stderr);
    for name in names {
        let held = match reports.next().and_then(|line| line.split_once(' ')) {
            Some((reported, "ok")) if reported == *name => Ok(()),
            Some((reported, _)) if reported == *name => Err(format!("it does not hold\n{stderr}")),
            _ => Err("the job did not report it".to_owned()),
        };
        tally.add(&full_name(world_size, name), held);
    }
    let left = match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}\n{stderr}", output.status)),
    };
    tally.add(&full_name(world_size, "job_ends_well"), left);
}

/// Runs this program as the ranks of a job.
pub(crate) fn start(world_size: usize, args: &[&str]) -> io::Result<Output> {
    let mpirun = env::var_os("MOESHARD_MPIRUN").unwrap_or_else(|| OsString::from("mpirun"));
    Command::new(mpirun)
        .args([
            "--allow-run-as-root",
            "--oversubscribe",
            "--bind-to",
            "none",
        ])
        .args(["--timeout", DEADLINE, "-n", &world_size.to_string()])
        .arg(env::current_exe()?)
        .args(args)
        // Containers often forbid reading another process' memory, and Open MPI then warns.
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        .output()
}

#[derive(Default)]
struct Tally {
    n_passed: usize,
    failures: Vec<(String, String)>,
}

impl Tally {
    fn add(&mut self, name: &str, held: Result<(), String>) {
        match held {
            Ok(()) => {
                self.n_passed += 1;
                println!("test {name} ... ok");
            }
            Err(why) => {
                println!("test {name} ... FAILED");
                self.failures.push((name.to_owned(), why));
            }
        }
    }

    fn finish(self) -> ExitCode {
        if !self.failures.is_empty() {
            println!("\nfailures:");
        }
        for (name, why) in &self.failures {
            println!("\n---- {name} ----\n{why}");
        }
        let (n_failed, n_passed) = (self.failures.len(), self.n_passed);
        let outcome = if n_failed == 0 { "ok" } else { "FAILED" };
        println!("\ntest result: {outcome}. {n_passed} passed; {n_failed} failed; 0 ignored\n");
        ExitCode::from(u8::from(n_failed > 0))
    }
}
