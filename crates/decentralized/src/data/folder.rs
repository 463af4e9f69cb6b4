//! Finding the files of a data set under their usual names.

use std::path::{Path, PathBuf};

use super::DataError;

/// The first folder, `folder` itself or one of `subfolders` in it, with a file of one of `names`,
/// and that file.
pub(super) fn find(
    folder: &Path,
    subfolders: &[&str],
    what: &'static str,
    names: &[&str],
) -> Result<(PathBuf, PathBuf), DataError> {
    if !folder.is_dir() {
        return Err(DataError::NoFolder {
            folder: folder.into(),
        });
    }
    let within = subfolders.iter().map(|subfolder| folder.join(subfolder));
    for place in std::iter::once(folder.to_owned()).chain(within) {
        if let Some(file) = find_name(&place, names) {
            return Ok((place, file));
        }
    }
    Err(DataError::Missing {
        folder: folder.into(),
        what,
        names: names.join(", "),
        subfolders: match subfolders {
            [] => "no other folder".into(),
            some => some.join(", "),
        },
    })
}

fn find_name(place: &Path, names: &[&str]) -> Option<PathBuf> {
    let mut files = names.iter().map(|name| place.join(name));
    files.find(|file| file.is_file())
}
