//! Vectors of texts, by the encoder that will serve the head.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, Result};
use moeshard_batcher::{BatcherConfig, Handle, Input, Options, Task};
use moeshard_decentralized::data::TextSet;
use moeshard_encoder::fingerprint::Fingerprint;
use moeshard_encoder::trained_head::EncoderCard;

use super::cache::Cache;
use crate::display::count;
use crate::model::{self, Loaded, ModelConfig, Opened};
use crate::progress::{Progress, Unit};
use crate::train::args::TrainConfig;

/// Texts given to the batcher at a time.
const CHUNK: usize = 512;

/// Chunks under way: one runs, one waits, the others are tokenized.
const DEPTH: usize = 4;

/// Embeds texts, or remembers how they were embedded.
pub(super) struct Embedder {
    config: ModelConfig,
    encoder: EncoderCard,
    /// What besides the texts decides on the vectors.
    model: Fingerprint,
    cache: Cache,
    state: State,
}

/// Nothing is loaded before it is known that something has to be embedded.
enum State {
    Opened(Box<Opened>),
    Running(Loaded),
    /// Loading has failed.
    Failed,
}

impl Embedder {
    /// Opens the model; nothing of it is loaded yet.
    ///
    /// # Errors
    /// If an argument is impossible or there is no such model.
    pub(super) fn open(config: &TrainConfig) -> Result<Self> {
        let cache = Cache(config.output.out.join("embeddings"));
        let config = ModelConfig::try_from(config.model.clone())?;
        let opened = model::open(&config)?;
        let encoder = EncoderCard::of(&opened.model, &opened.name)?;
        let mut model = Fingerprint::default();
        let dtype = model::dtype(&opened.model, &config.compute).to_string();
        let max_length = opened.model.settings.max_length.to_string();
        // Experts that drop tokens make other vectors.
        let compute = &config.compute;
        let experts = format!("{:?} {:?}", compute.strategy, compute.sequence_capacity);
        for part in [
            &encoder.fingerprint,
            &encoder.pooling,
            &dtype,
            &max_length,
            &experts,
        ] {
            model.add(part.as_bytes());
        }
        Ok(Self {
            config,
            encoder,
            model,
            cache,
            state: State::Opened(Box::new(opened)),
        })
    }

    /// The encoder.
    pub(super) fn encoder(&self) -> &EncoderCard {
        &self.encoder
    }

    /// Tells these texts in this encoder from others.
    pub(super) fn key(&self, set: &TextSet) -> String {
        let mut key = self.model;
        set.texts.iter().for_each(|text| key.add(text.as_bytes()));
        key.to_string()
    }

    /// The pooled vector of each text, not scaled, without a prompt: `[n_texts, d_model]`.
    ///
    /// # Errors
    /// If the model cannot be loaded or a text cannot be run.
    pub(super) fn embed(&mut self, set: &TextSet) -> Result<Vec<Vec<f32>>> {
        let key = self.key(set);
        let (n_texts, d_model) = (set.n_examples(), self.encoder.d_model);
        let n = count(n_texts as u64);
        if let Some(vectors) = self.cache.read(&key, n_texts, d_model) {
            let file = self.cache.file(&key);
            tracing::info!("{n} embeddings taken from {}", file.display());
            return Ok(vectors);
        }
        let started = Instant::now();
        let handle = self.handle()?;
        let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
        let vectors = runtime.block_on(run(&handle, &set.texts))?;
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(
            "{n} texts embedded by {} in {seconds:.1} s",
            self.encoder.name
        );
        self.cache.write(&key, &vectors)?;
        Ok(vectors)
    }

    /// The model, loaded now if it is not yet.
    fn handle(&mut self) -> Result<Handle> {
        let loaded = match std::mem::replace(&mut self.state, State::Failed) {
            State::Opened(opened) => load(*opened, &self.config)?,
            State::Running(loaded) => loaded,
            State::Failed => anyhow::bail!("the model could not be loaded"),
        };
        let handle = loaded.handle.clone();
        self.state = State::Running(loaded);
        Ok(handle)
    }
}

/// The engine's threads may be bound to the cores on which nodes are about to learn.
impl Drop for Embedder {
    fn drop(&mut self) {
        if let State::Running(loaded) = std::mem::replace(&mut self.state, State::Failed) {
            loaded.handle.close();
            let _ = loaded.worker.join();
        }
    }
}

fn load(opened: Opened, config: &ModelConfig) -> Result<Loaded> {
    let batcher = BatcherConfig {
        max_queue_tokens: usize::MAX,
        max_queue_bytes: usize::MAX,
        ..BatcherConfig::default()
    };
    model::load(opened, &config.compute, batcher, |info| {
        // Heads are served without a prompt.
        info.default_prompt_name = None;
        Ok(())
    })
}

async fn run(handle: &Handle, texts: &[String]) -> Result<Vec<Vec<f32>>> {
    let options = Options::new(Task::Embed {
        normalize: false,
        dimensions: None,
    });
    let progress = Progress::of(Unit::Texts, "embedding", Some(texts.len() as u64));
    let mut chunks = texts.chunks(CHUNK);
    let (mut flights, mut vectors) = (VecDeque::new(), Vec::with_capacity(texts.len()));
    loop {
        while flights.len() < DEPTH
            && let Some(chunk) = chunks.next()
        {
            let inputs = chunk.iter().cloned().map(Input::Text).collect();
            let (handle, options) = (handle.clone(), options.clone());
            flights.push_back(tokio::spawn(async move {
                handle.submit_all(inputs, &options).await
            }));
        }
        let Some(flight) = flights.pop_front() else {
            break;
        };
        let answers = flight.await??;
        progress.add(answers.len() as u64);
        vectors.extend(answers.into_iter().map(|answer| answer.values));
    }
    progress.finish();
    Ok(vectors)
}
