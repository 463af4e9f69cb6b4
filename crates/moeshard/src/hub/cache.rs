//! What the cache has of one model.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Repo, RepoType};

use super::files::is_complete;
use super::{HubError, HubModel};

/// The snapshots of one model, one folder a commit.
pub(super) struct Snapshots {
    root: PathBuf,
}

impl Snapshots {
    pub(super) fn new(cache_dir: &Path, id: &str) -> Self {
        let folder = Repo::new(id.to_owned(), RepoType::Model).folder_name();
        Self {
            root: cache_dir.join(folder),
        }
    }

    /// The folder of a commit, whether it exists or not.
    pub(super) fn dir(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The snapshot of a branch, a tag or a commit, if it is whole.
    pub(super) fn complete(&self, revision: &str) -> Option<HubModel> {
        let pointed = fs::read_to_string(self.root.join("refs").join(revision)).ok();
        let commit = pointed.map_or(revision.to_owned(), |commit| commit.trim().to_owned());
        let dir = self.dir(&commit);
        is_complete(&dir).then_some(HubModel { dir, commit })
    }

    /// Notes which commit a branch or a tag is.
    pub(super) fn point(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.root.join("refs").join(revision);
        let parent = path.parent().unwrap_or(&self.root);
        let written = fs::create_dir_all(parent).and_then(|()| fs::write(&path, commit));
        written.map_err(|source| HubError::Io { path, source })
    }
}
