//! Arguments that cannot be used, and the checks that several commands share.

use moeshard_batcher::ModelInfo;

use crate::display::listed;
use crate::machine;

/// Most threads of a kind; a system gives out no more than some ten thousand in all.
const MAX_THREADS: usize = 1024;

/// An argument that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgError {
    /// A number is below its range.
    #[error("{flag} must be at least {least}, got {found}")]
    TooSmall {
        /// The flag.
        flag: &'static str,
        /// The smallest value.
        least: usize,
        /// The value given.
        found: usize,
    },
    /// A number is above its range.
    #[error("{flag} must be at most {most}, got {found}")]
    TooLarge {
        /// The flag.
        flag: &'static str,
        /// The largest value.
        most: usize,
        /// The value given.
        found: usize,
    },
    /// A name is none of those known.
    #[error("{flag} must be {expected}, got `{found}`")]
    Unknown {
        /// The flag.
        flag: &'static str,
        /// The names known.
        expected: &'static str,
        /// The name given.
        found: String,
    },
    /// A flag needs another one.
    #[error("{flag} {found} has no effect without {needs}; got {instead}")]
    Needs {
        /// The flag.
        flag: &'static str,
        /// Its value.
        found: String,
        /// What it needs.
        needs: &'static str,
        /// What is there instead.
        instead: String,
    },
    /// The model is neither a folder nor a hub id.
    #[error(
        "--model `{found}` is neither a folder on this machine nor a hub id such as owner/name"
    )]
    NoSuchModel {
        /// The value given.
        found: String,
    },
    /// The model has no prompt of the name.
    #[error("{flag} `{found}` is no prompt of {model}, which has {known}")]
    NoSuchPrompt {
        /// The flag.
        flag: &'static str,
        /// The name given.
        found: String,
        /// The model.
        model: String,
        /// The names of its prompts.
        known: String,
    },
    /// A GPU was asked for.
    #[error("no GPU can be used: {reason}; --device cpu runs on the CPU")]
    NoGpu {
        /// What is missing, and where it was looked for.
        reason: String,
    },
    /// Any other impossible value.
    #[error("{flag} {reason}")]
    Other {
        /// The flag.
        flag: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl ArgError {
    /// [`ArgError::Other`]; `reason` follows the flag.
    pub(crate) fn other(flag: &'static str, reason: impl Into<String>) -> Self {
        Self::Other {
            flag,
            reason: reason.into(),
        }
    }

    /// Refuses `found` if it is below 1.
    ///
    /// # Errors
    /// [`ArgError::TooSmall`].
    pub fn at_least_one(flag: &'static str, found: usize) -> Result<usize, Self> {
        if found == 0 {
            return Err(Self::TooSmall {
                flag,
                least: 1,
                found,
            });
        }
        Ok(found)
    }

    /// As [`ArgError::at_least_one`], for a flag that may be left out.
    ///
    /// # Errors
    /// [`ArgError::TooSmall`].
    pub fn at_least_one_if_given(
        flag: &'static str,
        given: Option<usize>,
    ) -> Result<Option<usize>, Self> {
        given.map(|n| Self::at_least_one(flag, n)).transpose()
    }

    /// The number of threads that a flag asks for, else one a core.
    ///
    /// # Errors
    /// [`ArgError::TooSmall`] and [`ArgError::TooLarge`].
    pub fn threads(flag: &'static str, given: Option<usize>) -> Result<usize, Self> {
        let Some(found) = given else {
            return Ok(machine::n_cores().min(MAX_THREADS));
        };
        if found > MAX_THREADS {
            return Err(Self::TooLarge {
                flag,
                most: MAX_THREADS,
                found,
            });
        }
        Self::at_least_one(flag, found)
    }

    /// Refuses a prompt that the model does not have.
    ///
    /// # Errors
    /// [`ArgError::NoSuchPrompt`].
    pub fn known_prompt(flag: &'static str, found: &str, info: &ModelInfo) -> Result<(), Self> {
        if info.prompts.contains_key(found) {
            return Ok(());
        }
        Err(Self::NoSuchPrompt {
            flag,
            found: found.to_owned(),
            model: info.id.clone(),
            known: listed(info.prompts.keys()),
        })
    }
}
