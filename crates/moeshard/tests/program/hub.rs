//! A model from the hub: downloads, resumption, the cache, and what goes wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use moeshard::hub::{HubConfig, HubError, fetch};
use moeshard::secret::Secret;
use tempfile::TempDir;

use crate::fake_hub::{COMMIT, FakeHub};
use crate::support::{model, program, said, shown};

/// The files of a golden model, with some that nobody needs.
fn files() -> BTreeMap<String, Vec<u8>> {
    let folder = model("nomic_moe");
    let read = |name: &str| fs::read(folder.path().join(name)).expect(name);
    let names = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "modules.json",
        "1_Pooling/config.json",
    ];
    let mut files: BTreeMap<String, Vec<u8>> = names
        .iter()
        .map(|name| ((*name).to_owned(), read(name)))
        .collect();
    files.insert("README.md".to_owned(), b"# Tiny".to_vec());
    files.insert("pytorch_model.bin".to_owned(), vec![0; 1000]);
    files
}

fn config(hub: &FakeHub, cache: &TempDir) -> HubConfig {
    HubConfig {
        endpoint: hub.endpoint.clone(),
        cache_dir: cache.path().to_owned(),
        token: None,
        offline: false,
        n_retries: 0,
    }
}

fn has_all(dir: &Path) -> bool {
    let mut needed = files();
    needed.retain(|name, _| name != "README.md" && name != "pytorch_model.bin");
    needed
        .iter()
        .all(|(name, bytes)| fs::read(dir.join(name)).is_ok_and(|b| b == *bytes))
}

/// Where each download of the weights started.
fn starts(hub: &FakeHub) -> Vec<Option<usize>> {
    let downloads = hub.downloads("model.safetensors");
    downloads.iter().map(|seen| seen.from).collect()
}

#[test]
fn only_what_is_needed_is_downloaded_and_then_kept() {
    let (hub, cache) = (FakeHub::start(files()), TempDir::new().expect("a folder"));
    let mut config = config(&hub, &cache);
    config.token = Some(Secret::new("hf_abc"));
    let fetched = fetch(&config, "owner/tiny", "main").expect("a model");
    assert_eq!(fetched.commit, COMMIT);
    assert!(has_all(&fetched.dir));
    assert!(hub.downloads("README.md").is_empty() && hub.downloads("model.bin").is_empty());
    let seen = hub.state.seen.lock().expect("a lock").clone();
    assert!(
        seen.iter()
            .all(|seen| seen.token.as_deref() == Some("Bearer hf_abc"))
    );

    // Again: the hub is asked for the commit, and nothing is downloaded.
    assert_eq!(
        fetch(&config, "owner/tiny", "main").expect("a model"),
        fetched
    );
    assert_eq!(hub.downloads("model.safetensors").len(), 1);
    assert_eq!(hub.state.seen.lock().expect("a lock").len(), seen.len() + 1);
    // By its commit: not even that.
    assert_eq!(
        fetch(&config, "owner/tiny", COMMIT).expect("a model"),
        fetched
    );
    assert_eq!(hub.state.seen.lock().expect("a lock").len(), seen.len() + 1);
}

#[test]
fn a_cut_download_is_resumed_within_the_run() {
    let (hub, cache) = (FakeHub::start(files()), TempDir::new().expect("a folder"));
    hub.state.n_cuts.store(2, Ordering::SeqCst);
    let config = HubConfig {
        n_retries: 3,
        ..config(&hub, &cache)
    };
    let fetched = fetch(&config, "owner/tiny", "main").expect("a model");
    assert!(has_all(&fetched.dir));
    let size = files()["model.safetensors"].len();
    let second = size / 2;
    let third = second + (size - second) / 2;
    assert_eq!(starts(&hub), [Some(0), Some(second), Some(third)]);
}

#[test]
fn a_cut_download_is_resumed_by_the_next_run_and_then_works_offline() {
    let (hub, cache) = (FakeHub::start(files()), TempDir::new().expect("a folder"));
    hub.state.n_cuts.store(1, Ordering::SeqCst);
    let mut config = config(&hub, &cache);
    let error = fetch(&config, "owner/tiny", "main").expect_err("a cut");
    let text = error.to_string();
    assert!(
        text.contains("download of model.safetensors of `owner/tiny` broke"),
        "{text}"
    );

    // An incomplete copy is no copy.
    let gone = HubConfig {
        endpoint: "http://127.0.0.1:9".to_owned(),
        ..config.clone()
    };
    let error = fetch(&gone, "owner/tiny", "main").expect_err("no copy");
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");

    let fetched = fetch(&config, "owner/tiny", "main").expect("a model");
    assert!(has_all(&fetched.dir));
    let size = files()["model.safetensors"].len();
    assert_eq!(starts(&hub), [Some(0), Some(size / 2)]);

    // Without the hub, from the cache.
    assert_eq!(fetch(&gone, "owner/tiny", "main").expect("a copy"), fetched);
    config.offline = true;
    assert_eq!(
        fetch(&config, "owner/tiny", "main").expect("a copy"),
        fetched
    );
    let error = fetch(&config, "owner/other", "main")
        .expect_err("no copy")
        .to_string();
    assert!(
        error.contains("`owner/other` with revision `main` is not in the cache"),
        "{error}"
    );
}

#[test]
fn a_part_that_cannot_be_taken_up_is_replaced() {
    for extra in [0, 10] {
        let (hub, cache) = (FakeHub::start(files()), TempDir::new().expect("a folder"));
        let blobs = cache.path().join("models--owner--tiny/blobs");
        fs::create_dir_all(&blobs).expect("a folder");
        let part = vec![0; files()["model.safetensors"].len() + extra];
        // The client replaces what follows the last dot of the tag.
        fs::write(blobs.join("etag-model.part"), part).expect("a part");
        let fetched = fetch(&config(&hub, &cache), "owner/tiny", "main").expect("a model");
        assert!(has_all(&fetched.dir));
    }
}

#[test]
fn what_the_hub_refuses_is_said_clearly() {
    let (hub, cache) = (FakeHub::start(files()), TempDir::new().expect("a folder"));
    let config = config(&hub, &cache);
    let check = |id: &str, revision: &str, expect: &str| {
        let error = fetch(&config, id, revision).expect_err(expect).to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(
        "owner/none",
        "main",
        "has no model `owner/none` with revision `main`",
    );
    check(
        "owner/tiny",
        "v9",
        "has no model `owner/tiny` with revision `v9`",
    );
    check(
        "private/tiny",
        "main",
        "it does not exist, or it is private and needs a token",
    );
    hub.state.gated.store(true, Ordering::SeqCst);
    check(
        "owner/tiny",
        "main",
        "access to `owner/tiny` is refused: accept its conditions at",
    );
}

#[test]
fn sharded_weights_are_all_fetched() {
    let index =
        r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;
    let mut files = BTreeMap::from([
        ("config.json".to_owned(), b"{}".to_vec()),
        (
            "model.safetensors.index.json".to_owned(),
            index.as_bytes().to_vec(),
        ),
        ("model-1-of-2.safetensors".to_owned(), vec![1; 10]),
        ("model-2-of-2.safetensors".to_owned(), vec![2; 10]),
    ]);
    let cache = TempDir::new().expect("a folder");
    let hub = FakeHub::start(files.clone());
    let fetched = fetch(&config(&hub, &cache), "owner/tiny", "main").expect("a model");
    for name in files.keys() {
        assert!(fetched.dir.join(name).exists(), "{name}");
    }

    files.remove("model-2-of-2.safetensors");
    let (hub, cache) = (FakeHub::start(files), TempDir::new().expect("a folder"));
    let error = fetch(&config(&hub, &cache), "owner/tiny", "main").expect_err("a shard is missing");
    assert!(
        error
            .to_string()
            .contains("\"model-2-of-2.safetensors\" of no file"),
        "{error}"
    );
}

#[test]
fn the_program_takes_the_hub_from_the_environment() {
    let (hub, cache) = (FakeHub::start(files()), TempDir::new().expect("a folder"));
    let run = |endpoint: &str| {
        let mut command = program(&["inspect"]);
        command
            .env("HF_ENDPOINT", endpoint)
            .env("HF_HOME", cache.path());
        command
            .env("MODEL_ID", "owner/tiny")
            .env("HF_TOKEN", "hf_s3cret");
        command.env("RUST_LOG", "trace");
        command.output().expect("the program runs")
    };
    for endpoint in [hub.endpoint.as_str(), "http://127.0.0.1:9"] {
        let output = run(endpoint);
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
        let shown = shown(&output);
        assert!(
            shown.contains("owner/tiny") && shown.contains(COMMIT),
            "{shown}"
        );
    }
    assert!(cache.path().join("hub/models--owner--tiny").exists());
}
