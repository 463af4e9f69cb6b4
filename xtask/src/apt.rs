//! Packages of Debian and Ubuntu.

use std::process::Command;

use anyhow::{Context, bail};

use crate::process;

/// Installs packages if this may be done without asking anybody: as root, as in a CI container, or
/// with a `sudo` that wants no password.
///
/// # Errors
/// Names the packages if they cannot be installed.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    let names = packages.join(" ");
    let Some(apt_get) = apt_get()? else {
        bail!("install (Debian and Ubuntu) {names}");
    };
    println!("installing {names}");
    process::output(command(&apt_get).args(["update", "-qq"]))?;
    let mut install = command(&apt_get);
    install.args(["install", "-y", "-qq", "--no-install-recommends"]);
    let installed = process::output(install.args(packages)).map(drop);
    installed.with_context(|| format!("cannot install {names}"))
}

/// The words that run `apt-get` with the right to install; none where that cannot be.
fn apt_get() -> anyhow::Result<Option<Vec<&'static str>>> {
    if process::output(Command::new("apt-get").arg("--version")).is_err() {
        return Ok(None);
    }
    let user = process::output(Command::new("id").arg("-u"))?;
    if user.trim() == "0" {
        return Ok(Some(vec!["apt-get"]));
    }
    let sudo = process::output(Command::new("sudo").args(["-n", "true"]));
    // `sudo` keeps no variables, so this one is set behind it.
    let with_sudo = vec![
        "sudo",
        "-n",
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
    ];
    Ok(sudo.is_ok().then_some(with_sudo))
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
