//! What a client of the batcher holds.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::admission::{ByteReservation, Reservation, retry_after};
use crate::check::{check_input, check_task, estimate, n_bytes};
use crate::draft::{Draft, Drafts};
use crate::queue::{Reply, Shared};
use crate::tokenizer::{Encoder, Rule, check_ids};
use crate::worker::{BatchObserver, Worker};
use crate::{
    BatcherConfig, Direction, Engine, EngineStats, Input, ModelInfo, Readiness, SubmitError, Task,
    TokenPiece, TokenizerPool,
};

/// How the inputs of one request are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What each sequence is to become.
    pub task: Task,
    /// Cut what is too long instead of refusing it.
    pub truncate: bool,
    /// Where to cut.
    pub direction: Direction,
    /// The prompt put before each text; `None` takes the model's default prompt, if it has one and
    /// the task is to embed: prompts tell embeddings apart, a head was trained without.
    pub prompt_name: Option<String>,
}

impl Options {
    /// The given task with truncation on the right and the default prompt.
    #[must_use]
    pub fn new(task: Task) -> Self {
        Self {
            task,
            truncate: true,
            direction: Direction::Right,
            prompt_name: None,
        }
    }
}

/// What became of one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The embedding, or one score per label.
    pub values: Vec<f32>,
    /// Tokens run, special tokens counted.
    pub n_tokens: usize,
    /// Where the time went.
    pub timings: Timings,
}

/// Where the time of one input went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// In the tokenizer.
    pub tokenization: Duration,
    /// Waiting for a tokenizer thread and for the batch.
    pub queue: Duration,
    /// In the engine, with the rest of the batch.
    pub inference: Duration,
}

/// Work that is accepted and not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences waiting, being tokenized or running.
    pub n_seqs: usize,
    /// Their tokens (estimated while a text is not tokenized yet).
    pub n_tokens: usize,
    /// Bytes of those that are not tokenized yet.
    pub n_bytes: usize,
}

/// Takes inputs and gives answers. Clones share one queue; the last one dropped closes it.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    tokenizers: TokenizerPool,
}

/// Connects an engine and a tokenizer: the handle takes work, the worker has to be run.
#[must_use]
pub fn pair(
    engine: Arc<dyn Engine>,
    tokenizers: TokenizerPool,
    info: ModelInfo,
    config: BatcherConfig,
) -> (Handle, Worker) {
    let shared = Arc::new(Shared::new(engine, info, config));
    let worker = Worker::new(Arc::clone(&shared));
    (
        Handle {
            inner: Arc::new(Inner { shared, tokenizers }),
        },
        worker,
    )
}

impl Handle {
    /// Runs one input.
    ///
    /// # Errors
    /// Every variant of [`SubmitError`] but `Starting` and `At`.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the input unless it already runs.
    pub async fn submit(&self, input: Input, options: &Options) -> Result<Answer, SubmitError> {
        let mut answers = self.submit_all(vec![input], options).await?;
        Ok(answers.pop().expect("one answer for one input"))
    }

    /// Runs any number of inputs, over as many batches as they need; answers in order.
    ///
    /// # Errors
    /// The first error in order of the inputs; the other inputs are then withdrawn.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws what does not run yet.
    pub async fn submit_all(
        &self,
        inputs: Vec<Input>,
        options: &Options,
    ) -> Result<Vec<Answer>, SubmitError> {
        let n_inputs = inputs.len();
        self.check(&inputs, options)?;
        let prompt = self.prompt(options)?;
        let receivers = self.enqueue(inputs, options, prompt)?;
        let mut answers = Vec::with_capacity(n_inputs);
        for (input_idx, receiver) in receivers.into_iter().enumerate() {
            let lost = || {
                Err(SubmitError::Backend(
                    "the input was lost in a panic".to_owned(),
                ))
            };
            let answer = receiver.await.unwrap_or_else(|_| lost());
            answers.push(answer.map_err(|error| error.at(input_idx, n_inputs))?);
        }
        Ok(answers)
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// [`SubmitError::Tokenizer`], [`SubmitError::TooManyBytes`].
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the text unless it already is in the tokenizer.
    pub async fn tokenize(
        &self,
        text: String,
        add_special_tokens: bool,
    ) -> Result<Vec<TokenPiece>, SubmitError> {
        let mut lists = self.tokenize_all(vec![text], add_special_tokens).await?;
        Ok(lists.pop().expect("one list for one text"))
    }

    /// The tokens of each text, one text after the other.
    ///
    /// # Errors
    /// As [`Handle::tokenize`].
    ///
    /// # Cancel safety
    /// As [`Handle::tokenize`].
    pub async fn tokenize_all(
        &self,
        texts: Vec<String>,
        add_special_tokens: bool,
    ) -> Result<Vec<Vec<TokenPiece>>, SubmitError> {
        let n_texts = texts.len();
        let sizes: Vec<usize> = texts.iter().map(String::len).collect();
        let mut lists = Vec::with_capacity(n_texts);
        for (text, bytes) in texts.into_iter().zip(self.admit_bytes(&sizes)?) {
            let job = move |encoder: &Encoder| {
                let _held = bytes;
                encoder.tokenize(&text, add_special_tokens)
            };
            let list = self.inner.tokenizers.call(job).await;
            lists.push(list.map_err(|error| error.at(lists.len(), n_texts))?);
        }
        Ok(lists)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// [`SubmitError::Tokenizer`], [`SubmitError::TokenId`], [`SubmitError::TooManyBytes`].
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the ids unless they already are in the tokenizer.
    pub async fn decode(
        &self,
        ids: Vec<u32>,
        skip_special_tokens: bool,
    ) -> Result<String, SubmitError> {
        let mut texts = self.decode_all(vec![ids], skip_special_tokens).await?;
        Ok(texts.pop().expect("one text for one list"))
    }

    /// The text of each list of token ids, one list after the other.
    ///
    /// # Errors
    /// As [`Handle::decode`].
    ///
    /// # Cancel safety
    /// As [`Handle::decode`].
    pub async fn decode_all(
        &self,
        lists: Vec<Vec<u32>>,
        skip_special_tokens: bool,
    ) -> Result<Vec<String>, SubmitError> {
        let n_lists = lists.len();
        for (list_idx, ids) in lists.iter().enumerate() {
            check_ids(ids, self.info().vocab_size).map_err(|error| error.at(list_idx, n_lists))?;
        }
        let sizes: Vec<usize> = lists.iter().map(|ids| size_of_val(&ids[..])).collect();
        let mut texts = Vec::with_capacity(n_lists);
        for (ids, bytes) in lists.into_iter().zip(self.admit_bytes(&sizes)?) {
            let job = move |encoder: &Encoder| {
                let _held = bytes;
                encoder.decode(&ids, skip_special_tokens)
            };
            let text = self.inner.tokenizers.call(job).await;
            texts.push(text.map_err(|error| error.at(texts.len(), n_lists))?);
        }
        Ok(texts)
    }

    /// What the model is.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.inner.shared.info
    }

    /// The limits in force.
    #[must_use]
    pub fn config(&self) -> &BatcherConfig {
        &self.inner.shared.config
    }

    /// What the engine has counted.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.inner.shared.engine.stats()
    }

    /// Work that is accepted and not answered.
    #[must_use]
    pub fn load(&self) -> Load {
        let gauge = &self.inner.shared.gauge;
        Load {
            n_seqs: gauge.n_seqs(),
            n_tokens: gauge.n_tokens(),
            n_bytes: gauge.n_bytes(),
        }
    }

    /// Sequences that are tokenized and wait for their batch. Waits for a batch that is just being
    /// chosen.
    #[must_use]
    pub fn n_queued(&self) -> usize {
        self.inner.shared.n_queued()
    }

    /// Ids that the tokenizer puts before and after every single text.
    #[must_use]
    pub fn special_ids(&self) -> (&[u32], &[u32]) {
        self.inner.tokenizers.special_ids()
    }

    /// Whether the model can answer. Waits for nothing.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        match self.inner.shared.failure.get() {
            Some(reason) => Readiness::Failed(reason.clone()),
            None if self.inner.shared.is_closed() => Readiness::Draining,
            None => Readiness::Ready,
        }
    }

    /// Stops accepting; what was accepted is still answered, then the worker ends.
    pub fn close(&self) {
        self.inner.shared.close();
    }

    /// Has `observer` told of every batch; only the first observer counts.
    pub fn observe(&self, observer: BatchObserver) {
        let _ = self.inner.shared.observer.set(observer);
    }

    /// Refuses what cannot be run, before anything of the request is.
    fn check(&self, inputs: &[Input], options: &Options) -> Result<(), SubmitError> {
        if self.readiness() != Readiness::Ready {
            return Err(self.inner.shared.refusal());
        }
        if inputs.is_empty() {
            return Err(SubmitError::Empty { what: "`inputs`" });
        }
        check_task(options.task, self.info())?;
        for (input_idx, input) in inputs.iter().enumerate() {
            check_input(input, options, self.info().vocab_size)
                .map_err(|error| error.at(input_idx, inputs.len()))?;
        }
        Ok(())
    }

    /// The prompt that was asked for; an embedding has a default.
    fn prompt(&self, options: &Options) -> Result<Option<Arc<str>>, SubmitError> {
        let info = self.info();
        let default = match options.task {
            Task::Embed { .. } => info.default_prompt_name.as_ref(),
            Task::Classify { .. } => None,
        };
        let Some(name) = options.prompt_name.as_ref().or(default) else {
            return Ok(None);
        };
        let unknown = || SubmitError::UnknownPrompt {
            name: name.clone(),
            known: info.prompts.keys().cloned().collect(),
        };
        info.prompts
            .get(name)
            .map(|prompt| Some(prompt.as_str().into()))
            .ok_or_else(unknown)
    }

    /// Takes room for the tokens of the whole request.
    fn admit(&self, inputs: &[Input]) -> Result<Vec<Reservation>, SubmitError> {
        let shared = &self.inner.shared;
        let estimate = |input: &Input| estimate(input, shared.info.max_length);
        let sizes: Vec<usize> = inputs.iter().map(estimate).collect();
        let max_tokens = shared.config.max_queue_tokens;
        let overloaded = |n_tokens| SubmitError::Overloaded {
            n_tokens,
            max_tokens,
            retry_after: self.retry_after(),
        };
        shared.gauge.admit(&sizes, max_tokens).map_err(overloaded)
    }

    /// Takes room for texts that wait for the tokenizers.
    fn admit_bytes(&self, sizes: &[usize]) -> Result<Vec<ByteReservation>, SubmitError> {
        let shared = &self.inner.shared;
        let max_bytes = shared.config.max_queue_bytes;
        let refused = |n_bytes| SubmitError::TooManyBytes {
            n_bytes,
            max_bytes,
            retry_after: self.retry_after(),
        };
        shared.gauge.admit_bytes(sizes, max_bytes).map_err(refused)
    }

    /// When what is accepted now will about be answered.
    fn retry_after(&self) -> Duration {
        let shared = &self.inner.shared;
        retry_after(shared.gauge.n_tokens(), shared.tokens_per_second())
    }

    /// Gives the inputs to the tokenizers, which put them into the queue.
    fn enqueue(
        &self,
        inputs: Vec<Input>,
        options: &Options,
        prompt: Option<Arc<str>>,
    ) -> Result<Vec<oneshot::Receiver<Result<Answer, SubmitError>>>, SubmitError> {
        let rooms = self.admit(&inputs)?;
        let sizes: Vec<usize> = inputs.iter().map(n_bytes).collect();
        let bytes = self.admit_bytes(&sizes)?;
        let (replies, receivers): (Vec<Reply>, Vec<_>) =
            inputs.iter().map(|_| oneshot::channel()).unzip();
        let submitted = Instant::now();
        let parts = inputs.into_iter().zip(rooms).zip(bytes).zip(replies);
        let drafts: Vec<Draft> = parts
            .map(|(((input, room), bytes), reply)| Draft {
                input,
                room,
                bytes,
                reply,
                submitted,
            })
            .collect();
        let request = Drafts {
            left: Mutex::new(drafts.into_iter()),
            prompt,
            rule: self.rule(options),
            task: options.task,
            shared: Arc::clone(&self.inner.shared),
        };
        request.spawn(&self.inner.tokenizers);
        Ok(receivers)
    }

    fn rule(&self, options: &Options) -> Rule {
        let Options {
            truncate,
            direction,
            ..
        } = *options;
        let ModelInfo {
            max_length,
            vocab_size,
            ..
        } = *self.info();
        Rule {
            max_length,
            vocab_size,
            truncate,
            direction,
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("load", &self.load())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
