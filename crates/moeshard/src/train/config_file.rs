//! `--config FILE`: flags as keys of a TOML file.
//!
//! The values become the defaults of their flags, so the command line and the environment win, and
//! whatever is wrong with a value is said as it is for the flag.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use clap::{ArgAction, Command};
use toml::Value;

/// The command with the file's values as defaults.
///
/// # Errors
/// If the file cannot be read, is no TOML, or has a key that is no flag of the command.
pub fn with_defaults(command: Command, path: &Path) -> Result<Command> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let table: toml::Table = text.parse().map_err(|error| {
        let line = line_of(&error, &text);
        anyhow!("{name}, line {line} is no TOML: {}", error.message())
    })?;
    let mut command = command;
    for (key, value) in table {
        let Some(id) = flag(&command, &key) else {
            let known = closest(&command, &key);
            bail!(
                "{name}: `{key}` is no flag of {}{known}",
                command.get_name()
            );
        };
        let values = texts(&value).with_context(|| {
            format!(
                "{name}: `{key}` is a {}, expected a value",
                value.type_str()
            )
        })?;
        let takes_many = command.get_arguments().any(|arg| {
            arg.get_id() == id.as_str() && matches!(arg.get_action(), ArgAction::Append)
        });
        if let (Value::Array(_), true) = (
            &value,
            values.len() != 1 && !takes_many || values.is_empty(),
        ) {
            let expected = if takes_many {
                "at least one"
            } else {
                "one value"
            };
            bail!(
                "{name}: `{key}` is a list of {}, expected {expected}",
                values.len()
            );
        }
        // Defaults are part of the command, which lives as long as the program.
        let values = values.into_iter().map(|text| &*text.leak());
        command = command.mut_arg(id, |arg| arg.default_values(values));
    }
    Ok(command)
}

/// Where a file is wrong, from 1.
fn line_of(error: &toml::de::Error, text: &str) -> usize {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or(text);
    1 + before.matches('\n').count()
}

/// The id of the flag that a key names.
fn flag(command: &Command, key: &str) -> Option<String> {
    let mut flags = command.get_arguments();
    let flag = flags.find(|arg| arg.get_long() == Some(key))?;
    let id = flag.get_id().to_string();
    (!["config", "help", "version"].contains(&id.as_str())).then_some(id)
}

/// Suggests the flag that a key was most likely meant to be.
fn closest(command: &Command, key: &str) -> String {
    let flags = command.get_arguments().filter_map(clap::Arg::get_long);
    let distance = |flag: &&str| edits(flag, key);
    match flags.min_by_key(distance) {
        Some(flag) if edits(flag, key) <= 3 => format!("; did you mean `{flag}`?"),
        _ => String::new(),
    }
}

/// Letters to insert, remove or replace (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A value as it would stand on the command line.
fn texts(value: &Value) -> Option<Vec<String>> {
    Some(match value {
        Value::String(text) => vec![text.clone()],
        Value::Integer(n) => vec![n.to_string()],
        Value::Float(x) => vec![x.to_string()],
        Value::Boolean(b) => vec![b.to_string()],
        Value::Array(values) => {
            let each: Option<Vec<_>> = values.iter().map(texts).collect();
            each?.concat()
        }
        Value::Datetime(_) | Value::Table(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("epochs", "epochs"), 0);
        assert_eq!(edits("epochs", "epoch"), 1);
        assert_eq!(edits("seed", "sede"), 2);
        assert_eq!(edits("", "abc"), 3);
    }
}
