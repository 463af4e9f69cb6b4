//! ARCHITECTURE.md's promises about who uses whom, compared with what cargo says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Names on the left of a colon with those on its right.
type Lists = BTreeMap<String, BTreeSet<String>>;

#[test]
fn crates_use_only_those_that_the_arrows_allow() -> Result<()> {
    let allowed = block(&architecture()?, "arrows")?;
    let members = Members::of_workspace()?;
    let named: BTreeSet<&String> = allowed.keys().collect();
    let existing: BTreeSet<&String> = members.uses.keys().collect();
    assert_eq!(named, existing, "the members named in ARCHITECTURE.md");
    for (member, used) in &members.uses {
        let may = &allowed[member];
        for other in used {
            assert!(
                may.contains(other) || may.contains("*"),
                "{member} uses {other}; ARCHITECTURE.md allows it {may:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn some_libraries_stay_behind_one_door() -> Result<()> {
    let doors = block(&architecture()?, "only")?;
    let members = Members::of_workspace()?;
    ensure!(doors.len() > 5, "the list of libraries is gone");
    for (library, may) in &doors {
        let users: BTreeSet<String> = members.users_of(library);
        assert_eq!(&users, may, "the members that use {library}");
    }
    Ok(())
}

#[test]
fn every_dependency_has_its_reason_and_its_user() -> Result<()> {
    let declared = declared_dependencies()?;
    let explained = table_rows(&architecture()?, "## Dependencies")?;
    assert_eq!(
        declared, explained,
        "[workspace.dependencies] (left) and the table of ARCHITECTURE.md (right)"
    );
    let members = Members::of_workspace()?;
    for name in &declared {
        assert!(
            members.mentioned.contains(name),
            "no member depends on {name}: remove it from Cargo.toml"
        );
    }
    Ok(())
}

#[test]
fn every_declared_dependency_is_used_in_code() -> Result<()> {
    let members = Members::of_workspace()?;
    for (member, folder) in &members.folders {
        let code = code_under(folder)?;
        for name in &members.declares[member] {
            let ident = name.replace('-', "_");
            assert!(
                mentions(&code, &ident),
                "{member} depends on {name}, and its code never says `{ident}`"
            );
        }
    }
    Ok(())
}

#[test]
fn the_encoder_never_names_cuda() -> Result<()> {
    let sources = rust_files(&root().join("crates/encoder/src"))?;
    ensure!(sources.len() > 3, "the encoder's sources have moved");
    for file in sources {
        let text = fs::read_to_string(&file)?.to_lowercase();
        for word in ["cuda", "nvidia", "cudarc", "nccl"] {
            assert!(!text.contains(word), "{} says {word}", file.display());
        }
    }
    Ok(())
}

#[test]
fn the_lines_of_a_block_are_understood() -> Result<()> {
    let text = "x\n```arrows\na:\nb: a, c\n```\n```only\nd: e\n```\n";
    let lists = block(text, "arrows")?;
    assert_eq!(lists["a"], BTreeSet::new());
    assert_eq!(lists["b"], BTreeSet::from(["a".to_owned(), "c".to_owned()]));
    assert_eq!(lists.len(), 2);
    assert!(block(text, "none").is_err());
    assert!(mentions("use serde::de;", "serde"));
    assert!(!mentions("use serde_json::Value;", "serde"));
    Ok(())
}

/// The members of the workspace under their short names (`moeshard-tensor` is `tensor`).
struct Members {
    /// Members that each uses outside its own tests.
    uses: Lists,
    /// External crates that each uses outside its own tests, optional ones included.
    libraries: Lists,
    /// External crates that each declares, for tests or not.
    declares: Lists,
    /// Every external crate that any declares.
    mentioned: BTreeSet<String>,
    folders: BTreeMap<String, PathBuf>,
}

impl Members {
    fn of_workspace() -> Result<Self> {
        let metadata = metadata()?;
        let packages = metadata["packages"].as_array().context("packages")?;
        let mut members = Self {
            uses: Lists::new(),
            libraries: Lists::new(),
            declares: Lists::new(),
            mentioned: BTreeSet::new(),
            folders: BTreeMap::new(),
        };
        for package in packages {
            members.add(package)?;
        }
        Ok(members)
    }

    fn add(&mut self, package: &Value) -> Result<()> {
        let name = short(package["name"].as_str().context("name")?);
        let manifest = Path::new(package["manifest_path"].as_str().context("manifest_path")?);
        let folder = manifest.parent().context("no folder")?;
        self.folders.insert(name.clone(), folder.to_owned());
        let mut uses = BTreeSet::new();
        let (mut libraries, mut declares) = (BTreeSet::new(), BTreeSet::new());
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            let used = dependency["name"].as_str().context("name")?;
            // A member and a library may have one short name: only a library has a source.
            let is_member = dependency["source"].is_null();
            let is_used = dependency["kind"] != "dev";
            if is_used && is_member {
                uses.insert(short(used));
            } else if is_used {
                libraries.insert(used.to_owned());
            }
            if !is_member {
                declares.insert(used.to_owned());
            }
        }
        self.mentioned.extend(declares.iter().cloned());
        self.uses.insert(name.clone(), uses);
        self.libraries.insert(name.clone(), libraries);
        self.declares.insert(name, declares);
        Ok(())
    }

    /// The members that use a library outside tests; `tests` itself may use any.
    fn users_of(&self, library: &str) -> BTreeSet<String> {
        let users = self.libraries.iter();
        let users = users.filter(|(_, used)| used.contains(library));
        users
            .map(|(name, _)| name.clone())
            .filter(|name| name != "tests")
            .collect()
    }
}

fn short(package: &str) -> String {
    package
        .strip_prefix("moeshard-")
        .unwrap_or(package)
        .to_owned()
}

/// Reads manifests only, so it needs neither the network nor a lock file of today.
fn metadata() -> Result<Value> {
    let cargo = std::env::var_os("CARGO").context("run this through cargo")?;
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root())
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {stderr}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn architecture() -> Result<String> {
    fs::read_to_string(root().join("ARCHITECTURE.md")).context("ARCHITECTURE.md")
}

/// The `name: a, b` lines between "```language" and "```".
fn block(text: &str, language: &str) -> Result<Lists> {
    let fence = format!("```{language}");
    let mut lines = text.lines().skip_while(|line| **line != fence);
    lines
        .next()
        .with_context(|| format!("ARCHITECTURE.md has no block {fence}"))?;
    lines
        .take_while(|line| *line != "```")
        .map(|line| {
            let (name, rest) = line
                .split_once(':')
                .with_context(|| format!("no colon: {line}"))?;
            let names = rest
                .split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty());
            Ok((name.trim().to_owned(), names.map(str::to_owned).collect()))
        })
        .collect()
}

/// First cells of the table under a heading, without its two head lines.
fn table_rows(text: &str, heading: &str) -> Result<BTreeSet<String>> {
    let section = text.split_once(heading).context("no such heading")?.1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let [name, reason, ..] = cells[..] else {
            return None;
        };
        (!reason.is_empty()).then(|| name.trim_matches('`').to_owned())
    });
    Ok(rows.skip(2).collect())
}

/// External names of the root manifest's `[workspace.dependencies]`.
fn declared_dependencies() -> Result<BTreeSet<String>> {
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let section = manifest
        .split_once("[workspace.dependencies]\n")
        .context("no [workspace.dependencies]")?
        .1;
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let names = lines
        .filter(|line| !line.starts_with('#') && !line.contains("path = "))
        .filter_map(|line| line.split_once(" = "));
    Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
}

fn code_under(folder: &Path) -> Result<String> {
    let files = rust_files(folder)?;
    let texts: std::io::Result<Vec<String>> = files.iter().map(fs::read_to_string).collect();
    Ok(texts?.join("\n"))
}

/// Whether the code says `ident` as a whole word before `::`, `!`, `;` or the like.
fn mentions(code: &str, ident: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(ident).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + ident.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part)
    })
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}
