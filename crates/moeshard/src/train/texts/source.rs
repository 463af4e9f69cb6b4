//! The files of a task of texts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::train::args::TaskArgs;

/// Forms of files with labelled texts.
const EXTENSIONS: [&str; 5] = ["csv", "tsv", "jsonl", "ndjson", "json"];

/// The one set of texts that has a name.
const BANKING77: &str = "banking77";

/// Where its files may be within the folder of data.
const PLACES: [&str; 3] = ["", "banking77", "text/banking77"];

/// Where texts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// What the task is called, for people.
    pub(super) name: String,
    /// To learn from.
    pub(super) train: PathBuf,
    /// To measure on; `None`: a part of `train`.
    pub(super) test: Option<PathBuf>,
}

/// Whether a task is one of texts.
#[must_use]
pub fn is_text(task: &str) -> bool {
    let extension = Path::new(task).extension().and_then(|e| e.to_str());
    task == BANKING77 || extension.is_some_and(|e| EXTENSIONS.contains(&e))
}

/// Finds the files of a task of texts.
///
/// # Errors
/// If a folder is needed and not named, or has not the files.
pub(super) fn find(args: &TaskArgs) -> Result<Files> {
    if args.task != BANKING77 {
        let train = PathBuf::from(&args.task);
        let name = train.file_stem().unwrap_or_default().to_string_lossy();
        return Ok(Files {
            name: name.into_owned(),
            test: args.test_data.clone(),
            train,
        });
    }
    let folder = args
        .data
        .as_deref()
        .with_context(|| format!("--task {BANKING77} needs the folder of its files: --data DIR"))?;
    let mut places = PLACES.iter().map(|place| folder.join(place));
    let Some(place) = places.find(|place| place.join("train.csv").is_file()) else {
        bail!(
            "{}: expected train.csv in it, in {} or in {}, found none",
            folder.display(),
            PLACES[1],
            PLACES[2]
        );
    };
    let own = place.join("test.csv");
    Ok(Files {
        name: BANKING77.to_owned(),
        train: place.join("train.csv"),
        test: (args.test_data.clone()).or_else(|| own.is_file().then_some(own)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_of_texts_has_a_name_or_is_a_file() {
        for task in ["banking77", "a.csv", "x/y.tsv", "b.jsonl", "c.ndjson"] {
            assert!(is_text(task), "{task}");
        }
        for task in ["mnist", "cifar10", "csv", "a.txt", ""] {
            assert!(!is_text(task), "{task}");
        }
    }
}
