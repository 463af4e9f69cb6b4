use std::sync::mpsc::Sender;
use std::thread;

use super::*;
use crate::draft::TEXTS_PER_TURN;
use crate::queue::Sequence;
use crate::testing::{IdleEngine, TOKENIZER, gate};

const EMBED: Task = Task::Embed {
    normalize: true,
    dimensions: None,
};
const WORLD: u32 = 5;

/// A model whose only tokenizer thread waits until something is sent.
fn gated(config: BatcherConfig) -> (Handle, Worker, Sender<()>) {
    let tokenizers = TokenizerPool::from_json(TOKENIZER, 1).expect("the test's tokenizer");
    let open = gate(&tokenizers);
    let info = ModelInfo {
        d_model: 2,
        vocab_size: 89,
        max_length: 16,
        labels: Some(vec!["yes".to_owned()]),
        prompts: [("query".to_owned(), "search query : ".to_owned())].into(),
        default_prompt_name: Some("query".to_owned()),
        ..ModelInfo::default()
    };
    let (handle, worker) = pair(Arc::new(IdleEngine), tokenizers, info, config);
    (handle, worker, open)
}

fn texts(text: &str, n: usize) -> Vec<Input> {
    vec![Input::Text(text.to_owned()); n]
}

type Receivers = Vec<oneshot::Receiver<Result<Answer, SubmitError>>>;

fn enqueue(handle: &Handle, inputs: Vec<Input>) -> Result<Receivers, SubmitError> {
    handle.enqueue(inputs, &Options::new(EMBED), None)
}

/// Everything that leaves the tokenizers, in its order.
fn tokenized(handle: &Handle, n_seqs: usize) -> Vec<Sequence> {
    while handle.n_queued() < n_seqs {
        thread::sleep(Duration::from_millis(1));
    }
    handle.inner.shared.arrivals()
}

#[test]
fn one_text_does_not_wait_behind_a_bulk_request() {
    let (handle, _worker, open) = gated(BatcherConfig::default());
    let _bulk = enqueue(&handle, texts("hello", 5_000)).expect("room");
    let _one = enqueue(&handle, texts("world", 1)).expect("room");
    open.send(()).expect("the gate waits");
    let order = tokenized(&handle, 5_001);
    let position = order.iter().position(|sequence| sequence.ids[1] == WORLD);
    assert_eq!(position, Some(TEXTS_PER_TURN));
}

#[test]
fn long_texts_end_a_turn_early() {
    let (handle, _worker, open) = gated(BatcherConfig::default());
    let _bulk = enqueue(&handle, texts(&"hello ".repeat(10_000), 20)).expect("room");
    let _one = enqueue(&handle, texts("world", 1)).expect("room");
    open.send(()).expect("the gate waits");
    let order = tokenized(&handle, 21);
    let position = order.iter().position(|sequence| sequence.ids[1] == WORLD);
    assert_eq!(position, Some(1));
}

#[test]
fn texts_whose_client_is_gone_are_not_tokenized() {
    let (handle, _worker, open) = gated(BatcherConfig::default());
    let gone = enqueue(&handle, texts("hello", 5_000)).expect("room");
    let _one = enqueue(&handle, texts("world", 1)).expect("room");
    drop(gone);
    open.send(()).expect("the gate waits");
    let left = tokenized(&handle, 1);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].ids[1], WORLD);
    assert_eq!((handle.load().n_seqs, handle.load().n_bytes), (1, 0));
}

#[test]
fn what_slips_in_during_a_shutdown_is_told_so() {
    let (handle, worker, open) = gated(BatcherConfig::default());
    let (options, inputs) = (Options::new(EMBED), texts("hello", 3));
    handle.check(&inputs, &options).expect("open");
    handle.close();
    worker.run();
    drop(worker);
    let receivers = enqueue(&handle, inputs).expect("room");
    open.send(()).expect("the gate waits");
    for receiver in receivers {
        let answer = receiver.blocking_recv().expect("not lost");
        assert_eq!(answer, Err(SubmitError::Closed));
    }
    assert_eq!(handle.load(), Load::default());
}

#[test]
fn a_worker_that_panics_is_out_of_service() {
    let (handle, worker, open) = gated(BatcherConfig::default());
    let waiting = enqueue(&handle, texts("hello", 1)).expect("room");
    open.send(()).expect("the gate waits");
    let thread = thread::spawn(move || {
        let _worker = worker;
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    let reason = "the batcher's thread panicked".to_owned();
    assert_eq!(handle.readiness(), Readiness::Failed(reason.clone()));
    for receiver in waiting {
        let answer = receiver.blocking_recv().expect("not lost");
        assert_eq!(answer, Err(SubmitError::Unhealthy(reason.clone())));
    }
}

#[test]
fn the_memory_of_waiting_texts_is_bounded() {
    let (handle, _worker, open) = gated(BatcherConfig {
        max_queue_bytes: 1_000,
        ..BatcherConfig::default()
    });
    let refused = |n_bytes| SubmitError::TooManyBytes {
        n_bytes,
        max_bytes: 1_000,
        retry_after: Duration::from_secs(1),
    };
    let check = |inputs: Vec<Input>, expect: SubmitError| {
        let before = handle.load();
        assert_eq!(enqueue(&handle, inputs).expect_err("no room"), expect);
        assert_eq!(handle.load(), before, "a refusal takes nothing");
    };
    let pair = Input::Pair("x".repeat(100), "y".repeat(100));
    let _first = enqueue(&handle, vec![pair, Input::Ids(vec![7; 100])]).expect("room");
    assert_eq!(handle.load().n_bytes, 600);
    let _overshoot = enqueue(&handle, texts(&"x".repeat(9_000), 1)).expect("one may overshoot");
    check(texts("hello", 1), refused(9_600));
    open.send(()).expect("the gate waits");
    tokenized(&handle, 3);
    assert_eq!(handle.load().n_bytes, 0);
    assert!(enqueue(&handle, texts("hello", 1)).is_ok());
}

#[tokio::test]
async fn the_tools_hold_bytes_too() {
    let (handle, _worker, open) = gated(BatcherConfig {
        max_queue_bytes: 100,
        ..BatcherConfig::default()
    });
    let (client, list) = (handle.clone(), vec!["hello".to_owned(); 40]);
    let tokens = tokio::spawn(async move { client.tokenize_all(list, false).await });
    while handle.load().n_bytes != 200 {
        tokio::task::yield_now().await;
    }
    let too_many = |error| matches!(error, SubmitError::TooManyBytes { n_bytes: 200, .. });
    let refused = handle.tokenize("hello".to_owned(), false).await;
    assert!(too_many(refused.expect_err("no room")));
    let refused = handle.decode(vec![WORLD], false).await;
    assert!(too_many(refused.expect_err("no room")));
    assert_eq!(handle.load().n_seqs, 0);
    open.send(()).expect("the gate waits");
    assert_eq!(tokens.await.expect("no panic").expect("tokens").len(), 40);
    let text = handle.decode(vec![WORLD], false).await.expect("a text");
    assert_eq!((text.as_str(), handle.load().n_bytes), ("world", 0));
}

#[test]
fn only_embeddings_have_a_default_prompt() {
    let (handle, _worker, _open) = gated(BatcherConfig::default());
    let check = |task, name: Option<&str>, expect: Option<&str>| {
        let options = Options {
            prompt_name: name.map(str::to_owned),
            ..Options::new(task)
        };
        let prompt = handle.prompt(&options).expect("a known prompt");
        assert_eq!(prompt.as_deref(), expect);
    };
    let (prompt, classify) = ("search query : ", Task::Classify { raw_scores: false });
    check(EMBED, None, Some(prompt));
    check(EMBED, Some("query"), Some(prompt));
    check(classify, None, None);
    check(classify, Some("query"), Some(prompt));
}
