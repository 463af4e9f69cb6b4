//! The small files of a model, from a folder or from within the program.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use crate::model_error::{ModelError, Result};

/// Where a model's files are.
pub(super) enum Files<'a> {
    /// In a folder.
    Folder(&'a Path),
    /// In the program: name and contents.
    Static(&'a [(&'static str, &'static [u8])]),
}

impl Files<'_> {
    /// The contents of a file, if there is one of this name.
    pub(super) fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            Self::Static(files) => {
                let found = files.iter().find(|(file, _)| *file == name);
                Ok(found.map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Self::Folder(dir) => match std::fs::read(dir.join(name)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(error) if is_absent(&error) => Ok(None),
                Err(source) => Err(ModelError::Io {
                    file: name.into(),
                    source,
                }),
            },
        }
    }

    /// A parsed JSON file, if there is one of this name.
    pub(super) fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        let json = |source| ModelError::Json {
            file: name.into(),
            source,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(json)
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
