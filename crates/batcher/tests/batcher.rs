//! The batcher from its handle to a fake engine and back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moeshard_batcher::{
    BatcherConfig, Engine, EngineError, EngineStats, Handle, Input, ModelInfo, ModelSlot, Options,
    PackedBatch, Readiness, SubmitError, Task, TokenizerPool, Worker, pair,
};

const TOKENIZER: &[u8] = include_bytes!("data/tokenizer.json");
const EMBED: Task = Task::Embed {
    normalize: true,
    dimensions: None,
};
/// Token `?`: the engine refuses sequences that hold it.
const REFUSED: u32 = 86;

/// Returns `[n_tokens, first id after the special one]` for each sequence.
#[derive(Default)]
struct FakeEngine {
    batches: Mutex<Vec<usize>>,
    n_runs: AtomicUsize,
    behaviour: Behaviour,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Behaviour {
    #[default]
    Answer,
    Panic,
    Fail,
    LoseARow,
    NotANumber,
    Slow,
}

impl Engine for FakeEngine {
    fn run(&self, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EngineError> {
        self.n_runs.fetch_add(1, Ordering::SeqCst);
        self.batches.lock().expect("a lock").push(batch.ids.len());
        match self.behaviour {
            Behaviour::Panic => panic!("the fake engine panics"),
            Behaviour::Fail => return Err(EngineError::Failed("a rank is gone".into())),
            Behaviour::LoseARow => return Ok(Vec::new()),
            Behaviour::Slow => std::thread::sleep(Duration::from_millis(30)),
            Behaviour::NotANumber | Behaviour::Answer => {}
        }
        if batch.ids.contains(&REFUSED) {
            return Err(EngineError::Input("this token is refused".into()));
        }
        let row = |window: &[usize]| {
            let nan = self.behaviour == Behaviour::NotANumber && batch.ids[window[0] + 1] == 5;
            let first = if nan {
                f32::NAN
            } else {
                (window[1] - window[0]) as f32
            };
            vec![first, batch.ids[window[0] + 1] as f32]
        };
        Ok(batch.cu_seqlens.windows(2).map(row).collect())
    }

    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }
}

fn info() -> ModelInfo {
    ModelInfo {
        d_model: 2,
        vocab_size: 89,
        max_length: 16,
        ..ModelInfo::default()
    }
}

fn start(behaviour: Behaviour, config: BatcherConfig) -> (Handle, Worker, Arc<FakeEngine>) {
    start_with(info(), behaviour, config)
}

fn start_with(
    info: ModelInfo,
    behaviour: Behaviour,
    config: BatcherConfig,
) -> (Handle, Worker, Arc<FakeEngine>) {
    let engine = Arc::new(FakeEngine {
        behaviour,
        ..FakeEngine::default()
    });
    let tokenizers = TokenizerPool::from_json(TOKENIZER, 2).expect("the test's tokenizer");
    let (handle, worker) = pair(
        Arc::clone(&engine) as Arc<dyn Engine>,
        tokenizers,
        info,
        config,
    );
    (handle, worker, engine)
}

fn text(text: &str) -> Input {
    Input::Text(text.to_owned())
}

/// Waits until `n_seqs` sequences are tokenized.
async fn wait_for(handle: &Handle, n_seqs: usize) {
    while handle.n_queued() != n_seqs {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn answers_come_back_in_order() {
    let (handle, worker, _) = start(Behaviour::Answer, BatcherConfig::default());
    let thread = worker.spawn().expect("a thread");
    let inputs = vec![text("hello"), text("world cat"), Input::Ids(vec![7, 9])];
    let answers = handle
        .submit_all(inputs, &Options::new(EMBED))
        .await
        .expect("answers");
    let values: Vec<&[f32]> = answers
        .iter()
        .map(|answer| answer.values.as_slice())
        .collect();
    assert_eq!(values, [[3.0, 4.0], [4.0, 5.0], [2.0, 9.0]]);
    assert_eq!(
        answers.iter().map(|answer| answer.n_tokens).sum::<usize>(),
        9
    );
    assert_eq!(handle.load().n_seqs, 0);
    drop(handle);
    thread
        .join()
        .expect("the worker ends when the last handle is gone");
}

#[tokio::test]
async fn a_bulk_request_is_split_over_batches() {
    let config = BatcherConfig {
        max_batch_tokens: 512,
        max_queue_tokens: 8,
        ..Default::default()
    };
    let (handle, worker, engine) = start(Behaviour::Answer, config);
    worker.spawn().expect("a thread");
    let inputs: Vec<Input> = (0..5_000)
        .map(|i| text(&"hello ".repeat(1 + i % 12)))
        .collect();
    let answers = handle
        .submit_all(inputs, &Options::new(EMBED))
        .await
        .expect("answers");
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.values[0] as usize, 1 + i % 12 + 2);
    }
    let batches = engine.batches.lock().expect("a lock");
    assert!(batches.iter().all(|&n_tokens| n_tokens <= 512));
    assert!(batches.len() >= 5_000 * 8 / 512);
}

#[tokio::test]
async fn a_client_that_is_gone_costs_nothing() {
    let (handle, worker, engine) = start(Behaviour::Answer, BatcherConfig::default());
    let client = handle.clone();
    let gone = tokio::spawn(async move {
        client
            .submit_all(vec![text("hello"); 40], &Options::new(EMBED))
            .await
    });
    wait_for(&handle, 40).await;
    gone.abort();
    let _ = gone.await;
    assert_eq!(worker.step(), 0);
    assert_eq!(engine.n_runs.load(Ordering::SeqCst), 0);
    assert_eq!((handle.load().n_seqs, handle.load().n_tokens), (0, 0));
}

#[tokio::test]
async fn overload_is_refused_with_a_time() {
    let config = BatcherConfig {
        max_queue_tokens: 10,
        ..Default::default()
    };
    let (handle, worker, _) = start(Behaviour::Answer, config);
    let client = handle.clone();
    let first = tokio::spawn(async move {
        client
            .submit_all(vec![text("hello"); 4], &Options::new(EMBED))
            .await
    });
    wait_for(&handle, 4).await;
    let error = handle
        .submit(text("world"), &Options::new(EMBED))
        .await
        .expect_err("no room");
    let retry_after = Duration::from_secs(1);
    assert_eq!(
        error,
        SubmitError::Overloaded {
            n_tokens: 12,
            max_tokens: 10,
            retry_after
        }
    );
    assert_eq!(worker.step(), 4);
    first.await.expect("no panic").expect("answers");
    worker.spawn().expect("a thread");
    handle
        .submit(text("world"), &Options::new(EMBED))
        .await
        .expect("there is room again");
}

#[tokio::test]
async fn only_the_culprit_of_a_batch_fails() {
    let (handle, worker, _) = start(Behaviour::Answer, BatcherConfig::default());
    let submit = |input: Input| {
        let handle = handle.clone();
        tokio::spawn(async move { handle.submit(input, &Options::new(EMBED)).await })
    };
    let (good, bad, other) = (
        submit(text("hello")),
        submit(text("cat ?")),
        submit(text("world")),
    );
    wait_for(&handle, 3).await;
    assert_eq!(worker.step(), 3);
    assert_eq!(
        good.await.expect("no panic").expect("an answer").values,
        [3.0, 4.0]
    );
    assert_eq!(
        other.await.expect("no panic").expect("an answer").values,
        [3.0, 5.0]
    );
    let refused = bad.await.expect("no panic");
    assert_eq!(
        refused,
        Err(SubmitError::Input("this token is refused".into()))
    );
    assert_eq!(handle.readiness(), Readiness::Ready);
}

#[tokio::test]
async fn a_token_that_the_model_does_not_know_never_reaches_the_engine() {
    // The tokenizer knows two tokens more than the model, 漢 and 字.
    let small = ModelInfo {
        vocab_size: 87,
        ..info()
    };
    let (handle, worker, engine) = start_with(small, Behaviour::Answer, BatcherConfig::default());
    let submit = |input: Input| {
        let handle = handle.clone();
        tokio::spawn(async move { handle.submit(input, &Options::new(EMBED)).await })
    };
    let (good, bad) = (submit(text("hello")), submit(text("hello 漢")));
    let refused = SubmitError::TokenId {
        id: 87,
        vocab_size: 87,
    };
    assert_eq!(bad.await.expect("no panic"), Err(refused));
    wait_for(&handle, 1).await;
    assert_eq!(worker.step(), 1);
    assert!(good.await.expect("no panic").is_ok());
    assert_eq!(engine.n_runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_observer_that_panics_costs_no_answer() {
    let (handle, worker, _) = start(Behaviour::Answer, BatcherConfig::default());
    handle.observe(Arc::new(|_| panic!("the observer panics")));
    worker.spawn().expect("a thread");
    for _ in 0..2 {
        let answer = handle.submit(text("hello"), &Options::new(EMBED)).await;
        assert_eq!(answer.expect("an answer").values, [3.0, 4.0]);
    }
    assert_eq!(handle.readiness(), Readiness::Ready);
}

#[tokio::test]
async fn a_broken_engine_is_taken_out_of_service() {
    let cases = [
        (
            Behaviour::Panic,
            "the engine failed: it panicked: the fake engine panics",
        ),
        (Behaviour::Fail, "the engine failed: a rank is gone"),
        (
            Behaviour::LoseARow,
            "the engine failed: it returned 0 rows for 1 sequences",
        ),
    ];
    for (behaviour, reason) in cases {
        let (handle, worker, engine) = start(behaviour, BatcherConfig::default());
        worker.spawn().expect("a thread");
        let options = Options::new(EMBED);
        let error = handle
            .submit(text("hello"), &options)
            .await
            .expect_err("it is broken");
        assert_eq!(error, SubmitError::Unhealthy(reason.to_owned()));
        assert_eq!(handle.readiness(), Readiness::Failed(reason.to_owned()));
        let error = handle
            .submit(text("hello"), &options)
            .await
            .expect_err("it stays broken");
        assert_eq!(error, SubmitError::Unhealthy(reason.to_owned()));
        assert_eq!(engine.n_runs.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_value_that_is_not_finite_is_an_error_of_its_own_sequence() {
    let (handle, worker, _) = start(Behaviour::NotANumber, BatcherConfig::default());
    worker.spawn().expect("a thread");
    let inputs = vec![text("hello"), text("world")];
    let error = handle
        .submit_all(inputs, &Options::new(EMBED))
        .await
        .expect_err("not a number");
    let message = "input 1: the model returned a value that is not finite";
    assert_eq!(error.to_string(), message);
    assert!(
        handle
            .submit(text("hello"), &Options::new(EMBED))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_runs() {
    let (handle, _worker, _) = start(Behaviour::Answer, BatcherConfig::default());
    let with = |task, prompt: Option<&str>| Options {
        prompt_name: prompt.map(str::to_owned),
        ..Options::new(task)
    };
    let cut = |dimensions| Task::Embed {
        normalize: true,
        dimensions: Some(dimensions),
    };
    let cases = [
        (vec![], with(EMBED, None), "`inputs` cannot be empty"),
        (
            vec![text("")],
            with(EMBED, None),
            "`inputs` cannot be empty",
        ),
        (
            vec![text("a"), Input::Ids(vec![])],
            with(EMBED, None),
            "input 1: `inputs` cannot be empty",
        ),
        (
            vec![Input::Ids(vec![89])],
            with(EMBED, None),
            "token id 89 is outside the model's vocabulary of 89 tokens",
        ),
        (
            vec![Input::Ids(vec![8])],
            with(EMBED, Some("q")),
            "`prompt_name` needs text: a prompt cannot be put before token ids",
        ),
        (
            vec![text("a")],
            with(EMBED, Some("q")),
            "unknown prompt name `q`; the model has no prompts",
        ),
        (
            vec![text("a")],
            with(cut(0), None),
            "`dimensions` must be between 1 and 2, got 0",
        ),
        (
            vec![text("a")],
            with(cut(3), None),
            "`dimensions` must be between 1 and 2, got 3",
        ),
        (
            vec![text("a")],
            with(Task::Classify { raw_scores: false }, None),
            "the model has no classification head: it can embed but not classify",
        ),
    ];
    for (inputs, options, expect) in cases {
        let error = handle.submit_all(inputs, &options).await.expect_err(expect);
        assert_eq!(error.to_string(), expect);
    }
    assert_eq!(handle.load().n_seqs, 0);
}

#[tokio::test]
async fn what_was_accepted_is_answered_after_close() {
    let (handle, worker, _) = start(Behaviour::Slow, BatcherConfig::default());
    let client = handle.clone();
    let accepted = tokio::spawn(async move {
        client
            .submit_all(vec![text("hello"); 100], &Options::new(EMBED))
            .await
    });
    while handle.load().n_seqs != 100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    handle.close();
    assert_eq!(handle.readiness(), Readiness::Draining);
    let late = handle.submit(text("hello"), &Options::new(EMBED)).await;
    assert_eq!(late, Err(SubmitError::Closed));
    let thread = worker.spawn().expect("a thread");
    assert_eq!(
        accepted.await.expect("no panic").expect("answers").len(),
        100
    );
    tokio::task::spawn_blocking(|| thread.join())
        .await
        .expect("joined")
        .expect("no panic");
}

#[tokio::test]
async fn without_a_worker_nobody_waits_forever() {
    let (handle, worker, _) = start(Behaviour::Answer, BatcherConfig::default());
    let client = handle.clone();
    let waiting =
        tokio::spawn(async move { client.submit(text("hello"), &Options::new(EMBED)).await });
    wait_for(&handle, 1).await;
    drop(worker);
    assert_eq!(waiting.await.expect("no panic"), Err(SubmitError::Closed));
}

#[tokio::test]
async fn a_slot_goes_from_starting_to_ready_to_draining() {
    let slot = ModelSlot::new();
    assert_eq!(slot.readiness(), Readiness::Starting);
    assert_eq!(slot.handle().expect_err("empty"), SubmitError::Starting);
    let failed = ModelSlot::new();
    failed.fail("no such file");
    assert_eq!(failed.readiness(), Readiness::Failed("no such file".into()));
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    slot.observe(Arc::new(move |report| {
        counter.fetch_add(report.n_tokens, Ordering::SeqCst);
    }));
    let (handle, worker, _) = start(Behaviour::Answer, BatcherConfig::default());
    worker.spawn().expect("a thread");
    slot.fill(handle);
    assert_eq!(slot.readiness(), Readiness::Ready);
    let handle = slot.handle().expect("filled");
    handle
        .submit(text("hello"), &Options::new(EMBED))
        .await
        .expect("an answer");
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    slot.drain();
    assert_eq!(slot.readiness(), Readiness::Draining);
    assert!(slot.handle().is_ok());
    slot.close();
    assert_eq!(slot.handle().expect_err("closed"), SubmitError::Closed);
}
