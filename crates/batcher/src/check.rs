//! Whether an input can be run at all, and how large it is; looked at before anything is accepted.

use crate::tokenizer::check_ids;
use crate::{Input, ModelInfo, Options, SubmitError, Task};

/// Refuses what the model cannot do.
pub(crate) fn check_task(task: Task, info: &ModelInfo) -> Result<(), SubmitError> {
    let d_model = info.d_model;
    match task {
        Task::Embed {
            dimensions: Some(dimensions),
            ..
        } if !(1..=d_model).contains(&dimensions) => Err(SubmitError::Dimensions {
            dimensions,
            d_model,
        }),
        Task::Classify { .. } if info.labels.is_none() => Err(SubmitError::NoHead),
        Task::Embed { .. } | Task::Classify { .. } => Ok(()),
    }
}

/// Refuses an input that cannot be run.
pub(crate) fn check_input(
    input: &Input,
    options: &Options,
    vocab_size: usize,
) -> Result<(), SubmitError> {
    let empty = match input {
        Input::Text(text) => text.is_empty(),
        Input::Pair(a, b) => a.is_empty() && b.is_empty(),
        Input::Ids(ids) => ids.is_empty(),
    };
    if empty {
        return Err(SubmitError::Empty { what: "`inputs`" });
    }
    let Input::Ids(ids) = input else {
        return Ok(());
    };
    check_ids(ids, vocab_size)?;
    if options.prompt_name.is_some() {
        return Err(SubmitError::PromptBeforeIds);
    }
    Ok(())
}

/// Tokens that an input will about have: four bytes each, as in English, and two special ones.
pub(crate) fn estimate(input: &Input, max_length: usize) -> usize {
    let n_tokens = match input {
        Input::Text(text) => text.len() / 4 + 2,
        Input::Pair(a, b) => (a.len() + b.len()) / 4 + 3,
        Input::Ids(ids) => ids.len(),
    };
    n_tokens.clamp(1, max_length.max(1))
}

/// Bytes that an input holds until it is tokenized.
pub(crate) fn n_bytes(input: &Input) -> usize {
    match input {
        Input::Text(text) => text.len(),
        Input::Pair(a, b) => a.len() + b.len(),
        Input::Ids(ids) => size_of_val(ids.as_slice()),
    }
}
