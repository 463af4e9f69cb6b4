//! `moeshard topology list`: what there is.

use std::io::{self, Write};

use anyhow::Result;
use moeshard_decentralized::topology::known;

/// Lists every topology and its parameters, a line each.
///
/// # Errors
/// If standard output is closed.
pub fn run() -> Result<()> {
    let mut out = io::stdout().lock();
    for rule in known() {
        writeln!(out, "{:<22} {}", rule.name, rule.summary)?;
        for parameter in rule.parameters {
            writeln!(out, "  {:<20} {}", parameter.name, parameter.summary)?;
        }
    }
    writeln!(
        out,
        "\nParameters follow the name, as in random:d=10 or d-cliques:size=10,inter=ring."
    )?;
    Ok(())
}
