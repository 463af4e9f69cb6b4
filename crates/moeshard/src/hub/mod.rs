//! From a hub id to a folder with the files of the model.
//!
//! The hub is asked for the commit behind a revision and for its list of files; the files that a
//! model needs are then fetched *at that commit*, so that a push during a long download cannot mix
//! two versions. Small files come first and weights last: a snapshot with weights is complete. A
//! download that is cut is resumed where it stopped, in this run or in the next.
//!
//! What is in the cache is used without the network if the revision is a commit, if
//! `HF_HUB_OFFLINE` is set, or if the hub cannot be reached. The cache has the layout of
//! `huggingface_hub`, and is shared with it.

mod cache;
mod error;
mod files;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

pub use error::HubError;

use crate::progress::Progress;
use crate::secret::Secret;
use cache::Snapshots;
use files::Wanted;

/// How long the hub may take to describe a model before a copy in the cache is used instead.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long another process may hold the file that is wanted.
const LOCK_PATIENCE: Duration = Duration::from_secs(3600);

/// Where the hub is and how to talk to it.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Base of every address, for example `https://huggingface.co`.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache_dir: PathBuf,
    /// Sent to the hub if the model is private or gated.
    pub token: Option<Secret>,
    /// Use the cache alone.
    pub offline: bool,
    /// How often a download that broke is taken up again.
    pub n_retries: usize,
}

/// A model of the hub, on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// The folder with its files.
    pub dir: PathBuf,
    /// The commit that they are of.
    pub commit: String,
}

/// Makes sure that the files of a model are on this machine.
///
/// # Errors
/// If the model, the revision or its weights do not exist, access is refused, or the network is
/// needed and cannot be reached.
pub fn fetch(config: &HubConfig, id: &str, revision: &str) -> Result<HubModel, HubError> {
    let snapshots = Snapshots::new(&config.cache_dir, id);
    let cached = snapshots.complete(revision);
    if let Some(model) = &cached
        && (config.offline || model.commit == revision)
    {
        return Ok(model.clone());
    }
    if config.offline {
        return Err(HubError::NotCached {
            id: id.into(),
            revision: revision.into(),
            cache: config.cache_dir.clone(),
        });
    }
    let hub = Hub::new(config, id, revision)?;
    match (hub.info(cached.is_some()), cached) {
        (Ok(info), _) => hub.download(&info, &snapshots),
        (Err(HubError::Unreachable { reason, .. }), Some(model)) => {
            tracing::warn!(
                id,
                reason,
                "the hub cannot be reached: using the copy in the cache"
            );
            Ok(model)
        }
        (Err(error), _) => Err(error),
    }
}

/// One model of the hub.
struct Hub<'a> {
    config: &'a HubConfig,
    id: &'a str,
    revision: &'a str,
    api: Api,
}

impl<'a> Hub<'a> {
    fn new(config: &'a HubConfig, id: &'a str, revision: &'a str) -> Result<Self, HubError> {
        let mut builder = ApiBuilder::from_cache(Cache::new(config.cache_dir.clone()))
            .with_endpoint(config.endpoint.clone())
            .with_retries(config.n_retries)
            .with_user_agent("moeshard", env!("CARGO_PKG_VERSION"));
        if let Some(token) = &config.token {
            builder = builder.with_token(Some(token.reveal().to_owned()));
        }
        let api = builder
            .build()
            .map_err(|e| unreachable_hub(config, id, e.to_string()))?;
        Ok(Self {
            config,
            id,
            revision,
            api,
        })
    }

    /// The commit and the files of the revision. Asked on a thread of its own: a network that
    /// swallows packets answers after minutes, and there may be a copy in the cache.
    fn info(&self, has_copy: bool) -> Result<RepoInfo, HubError> {
        let (answer, asked) = channel();
        let repo = self.repo(self.revision);
        thread::spawn(move || answer.send(repo.info()));
        let patience = if has_copy { PATIENCE } else { 6 * PATIENCE };
        let info = asked.recv_timeout(patience).map_err(|error| {
            let reason = match error {
                RecvTimeoutError::Timeout => format!("no answer within {} s", patience.as_secs()),
                RecvTimeoutError::Disconnected => "the request was lost".to_owned(),
            };
            unreachable_hub(self.config, self.id, reason)
        })?;
        info.map_err(|error| self.explain(&error, None))
    }

    fn repo(&self, revision: &str) -> ApiRepo {
        self.api.repo(self.hf_repo(revision))
    }

    fn hf_repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.to_owned(), RepoType::Model, revision.to_owned())
    }

    /// Fetches what the snapshot lacks, then points the revision at it.
    fn download(&self, info: &RepoInfo, snapshots: &Snapshots) -> Result<HubModel, HubError> {
        if info.sha.is_empty() || !info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(HubError::BadCommit {
                id: self.id.into(),
                found: info.sha.clone(),
            });
        }
        let dir = snapshots.dir(&info.sha);
        let repo = self.repo(&info.sha);
        let names = info.siblings.iter().map(|file| file.rfilename.as_str());
        let wanted = Wanted::choose(self.id, names)?;
        for file in &wanted.small {
            self.download_file(&repo, &dir, file)?;
        }
        self.download_file(&repo, &dir, wanted.weights)?;
        for shard in wanted.shards(self.id, &dir)? {
            self.download_file(&repo, &dir, &shard)?;
        }
        snapshots.point(self.revision, &info.sha)?;
        Ok(HubModel {
            dir,
            commit: info.sha.clone(),
        })
    }

    /// Fetches one file unless it is there; waits while another process fetches it.
    fn download_file(&self, repo: &ApiRepo, dir: &Path, file: &str) -> Result<(), HubError> {
        let path = dir.join(file);
        let started = Instant::now();
        let mut n_repairs = 0;
        while !path.exists() {
            let bar = FileProgress {
                bar: None,
                name: file.to_owned(),
            };
            match repo.download_with_progress(file, bar) {
                Ok(_) => break,
                Err(ApiError::LockAcquisition(_)) if started.elapsed() < LOCK_PATIENCE => {
                    tracing::info!(
                        file,
                        "waiting for another process that downloads the same file"
                    );
                }
                Err(error) if n_repairs == 0 && is_broken_part(&error) => {
                    n_repairs += 1;
                    self.remove_part(repo, file)?;
                }
                Err(error) => return Err(self.explain(&error, Some(file))),
            }
        }
        Ok(())
    }

    /// Removes the part of a download that cannot be taken up: it is longer than the file, or as
    /// long, left by a process that died before it could rename it.
    fn remove_part(&self, repo: &ApiRepo, file: &str) -> Result<(), HubError> {
        let metadata = self.api.metadata(&repo.url(file));
        let metadata = metadata.map_err(|error| self.explain(&error, Some(file)))?;
        let cache = Cache::new(self.config.cache_dir.clone()).repo(self.hf_repo(self.revision));
        let mut part = cache.blob_path(metadata.etag());
        part.set_extension("part");
        std::fs::remove_file(&part).map_err(|source| HubError::Io { path: part, source })
    }

    /// What an error of the client means for the user.
    fn explain(&self, error: &ApiError, file: Option<&str>) -> HubError {
        let (id, revision) = (self.id.to_owned(), self.revision.to_owned());
        let endpoint = self.config.endpoint.clone();
        match (root(error), file) {
            (Root::Status(404), None) => HubError::NoSuchModel {
                id,
                revision,
                endpoint,
            },
            (Root::Status(401), None) => HubError::Private { id, endpoint },
            (Root::Status(401 | 403), _) => HubError::Gated { id, endpoint },
            (Root::Status(status), file) => {
                let file = file.unwrap_or("its description").to_owned();
                HubError::Status {
                    id,
                    file,
                    status,
                    endpoint,
                }
            }
            (Root::Local(reason), _) => HubError::Local {
                id,
                cache: self.config.cache_dir.clone(),
                reason,
            },
            (Root::Network(reason), Some(file)) => HubError::Broken {
                id,
                file: file.to_owned(),
                reason,
            },
            (Root::Network(reason), None) => unreachable_hub(self.config, &id, reason),
        }
    }
}

fn unreachable_hub(config: &HubConfig, id: &str, reason: String) -> HubError {
    HubError::Unreachable {
        id: id.to_owned(),
        endpoint: config.endpoint.clone(),
        reason,
    }
}

/// What an error of the client comes down to.
enum Root {
    Status(u16),
    Network(String),
    Local(String),
}

fn root(error: &ApiError) -> Root {
    match error {
        ApiError::TooManyRetries(inner) => root(inner),
        ApiError::RequestError(inner) => match inner.as_ref() {
            ureq::Error::StatusCode(status) => Root::Status(*status),
            other => Root::Network(other.to_string()),
        },
        ApiError::IoError(inner) if is_of_the_disk(inner) => Root::Local(inner.to_string()),
        ApiError::LockAcquisition(path) => {
            Root::Local(format!("another process holds {}", path.display()))
        }
        other => Root::Network(other.to_string()),
    }
}

/// Errors of the connection and of the cache's disk come as the same type.
fn is_of_the_disk(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::NotADirectory
            | ErrorKind::AlreadyExists
    )
}

fn is_broken_part(error: &ApiError) -> bool {
    matches!(error, ApiError::InvalidResume) || matches!(root(error), Root::Status(416))
}

/// Tells the progress of one file.
struct FileProgress {
    bar: Option<Progress>,
    name: String,
}

impl hf_hub::api::Progress for FileProgress {
    fn init(&mut self, size: usize, _filename: &str) {
        let label = format!("downloading {}", self.name);
        self.bar = Some(Progress::new(label, Some(size as u64)));
    }

    fn update(&mut self, size: usize) {
        if let Some(bar) = &self.bar {
            bar.add(size as u64);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
