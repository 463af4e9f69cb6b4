//! What a client of the batcher holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::admission::{Reservation, retry_after};
use crate::queue::{Reply, Sequence, Shared};
use crate::tokenizer::{Encoder, Rule};
use crate::worker::{BatchObserver, Worker};
use crate::{
    BatcherConfig, Direction, Engine, EngineStats, Input, ModelInfo, Readiness, SubmitError, Task,
    TokenPiece, TokenizerPool,
};

/// Texts that one tokenizer thread takes at a time: a bulk request spreads over all threads, and a
/// small one does not wait behind all of it.
const TEXTS_PER_JOB: usize = 16;

/// How the inputs of one request are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What each sequence is to become.
    pub task: Task,
    /// Cut what is too long instead of refusing it.
    pub truncate: bool,
    /// Where to cut.
    pub direction: Direction,
    /// The prompt put before each text; `None` takes the model's default prompt, if it has one.
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
        let receivers = self.enqueue(inputs, options, prompt.as_ref())?;
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
    /// [`SubmitError::Tokenizer`].
    pub async fn tokenize(
        &self,
        text: String,
        add_special_tokens: bool,
    ) -> Result<Vec<TokenPiece>, SubmitError> {
        let job = move |encoder: &Encoder| encoder.tokenize(&text, add_special_tokens);
        self.inner.tokenizers.call(job).await
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// [`SubmitError::Tokenizer`], [`SubmitError::TokenId`].
    pub async fn decode(
        &self,
        ids: Vec<u32>,
        skip_special_tokens: bool,
    ) -> Result<String, SubmitError> {
        let vocab_size = self.info().vocab_size;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(SubmitError::TokenId { id, vocab_size });
        }
        let job = move |encoder: &Encoder| encoder.decode(&ids, skip_special_tokens);
        self.inner.tokenizers.call(job).await
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
        }
    }

    /// Ids that the tokenizer puts before and after every single text.
    #[must_use]
    pub fn special_ids(&self) -> (&[u32], &[u32]) {
        self.inner.tokenizers.special_ids()
    }

    /// Whether the model can answer.
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
        match self.readiness() {
            Readiness::Failed(reason) => return Err(SubmitError::Unhealthy(reason)),
            Readiness::Draining => return Err(SubmitError::Closed),
            Readiness::Ready | Readiness::Starting => {}
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

    fn prompt(&self, options: &Options) -> Result<Option<Arc<str>>, SubmitError> {
        let info = self.info();
        let Some(name) = options
            .prompt_name
            .as_ref()
            .or(info.default_prompt_name.as_ref())
        else {
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

    /// Takes room for the whole request.
    fn admit(&self, inputs: &[Input]) -> Result<Vec<Reservation>, SubmitError> {
        let shared = &self.inner.shared;
        let estimate = |input: &Input| estimate(input, shared.info.max_length);
        let sizes: Vec<usize> = inputs.iter().map(estimate).collect();
        let max_tokens = shared.config.max_queue_tokens;
        shared.gauge.admit(&sizes, max_tokens).map_err(|n_tokens| {
            let retry_after = retry_after(n_tokens, shared.tokens_per_second());
            SubmitError::Overloaded {
                n_tokens,
                max_tokens,
                retry_after,
            }
        })
    }

    /// Gives the inputs to the tokenizers, which put them into the queue.
    fn enqueue(
        &self,
        inputs: Vec<Input>,
        options: &Options,
        prompt: Option<&Arc<str>>,
    ) -> Result<Vec<oneshot::Receiver<Result<Answer, SubmitError>>>, SubmitError> {
        let rooms = self.admit(&inputs)?;
        let (replies, receivers): (Vec<Reply>, Vec<_>) =
            inputs.iter().map(|_| oneshot::channel()).unzip();
        let submitted = Instant::now();
        let parts = inputs.into_iter().zip(rooms).zip(replies);
        let mut drafts = parts.map(|((input, room), reply)| Draft {
            input,
            room,
            reply,
            submitted,
        });
        let rule = self.rule(options);
        loop {
            let job: Vec<Draft> = drafts.by_ref().take(TEXTS_PER_JOB).collect();
            if job.is_empty() {
                return Ok(receivers);
            }
            let shared = Arc::clone(&self.inner.shared);
            let (prompt, task) = (prompt.cloned(), options.task);
            self.inner.tokenizers.spawn(move |encoder| {
                for draft in job {
                    draft.tokenize(encoder, prompt.as_deref(), rule, task, &shared);
                }
            });
        }
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

/// One accepted input before it is tokenized.
struct Draft {
    input: Input,
    room: Reservation,
    reply: Reply,
    submitted: Instant,
}

impl Draft {
    /// Turns the draft into a sequence in the queue, or answers it with what is wrong.
    fn tokenize(
        mut self,
        encoder: &Encoder,
        prompt: Option<&str>,
        rule: Rule,
        task: Task,
        shared: &Shared,
    ) {
        if self.reply.is_closed() {
            return;
        }
        let started = Instant::now();
        match encoder.encode(&self.input, prompt, rule) {
            Ok(encoded) => {
                self.room.resize(encoded.ids.len());
                shared.push(Sequence {
                    ids: encoded.ids,
                    type_ids: encoded.type_ids,
                    task,
                    reply: self.reply,
                    room: self.room,
                    submitted: self.submitted,
                    tokenization: started.elapsed(),
                });
            }
            Err(error) => {
                drop(self.room);
                let _ = self.reply.send(Err(error));
            }
        }
    }
}

/// Tokens that an input will about have: four bytes each, as in English, and two special ones.
fn estimate(input: &Input, max_length: usize) -> usize {
    let n_tokens = match input {
        Input::Text(text) => text.len() / 4 + 2,
        Input::Pair(a, b) => (a.len() + b.len()) / 4 + 3,
        Input::Ids(ids) => ids.len(),
    };
    n_tokens.clamp(1, max_length.max(1))
}

fn check_task(task: Task, info: &ModelInfo) -> Result<(), SubmitError> {
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

fn check_input(input: &Input, options: &Options, vocab_size: usize) -> Result<(), SubmitError> {
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
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(SubmitError::TokenId { id, vocab_size });
    }
    if options.prompt_name.is_some() {
        return Err(SubmitError::PromptBeforeIds);
    }
    Ok(())
}
