//! Which files of a repository a model needs.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::HubError;

/// Forms that weights come in, best first. A repository often has several; one is fetched.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Files that say how a model is used; none of them must exist.
const OPTIONAL: [&str; 4] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "config_sentence_transformers.json",
];

/// The files to fetch.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Everything but weights.
    pub(super) small: Vec<String>,
    /// The weights, or the index of the shards that they are in.
    pub(super) weights: &'static str,
    /// All names of the repository.
    all: BTreeSet<String>,
}

impl Wanted {
    /// Chooses among the files of a repository.
    ///
    /// # Errors
    /// If there is no config, or no weights in a form that can be read.
    pub(super) fn choose<'a>(
        id: &str,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Self, HubError> {
        let all: BTreeSet<String> = names.map(str::to_owned).collect();
        let missing = |expected: &str| HubError::MissingFile {
            id: id.to_owned(),
            expected: expected.to_owned(),
        };
        if !all.contains("config.json") {
            return Err(missing("config.json"));
        }
        let weights = WEIGHTS.into_iter().find(|name| all.contains(*name));
        let weights = weights.ok_or_else(|| missing("model.safetensors or pytorch_model.bin"))?;
        let small = all.iter().filter(|name| is_small(name)).cloned().collect();
        Ok(Self {
            small,
            weights,
            all,
        })
    }

    /// The shards that the index in `dir` names; none if the weights are one file.
    ///
    /// # Errors
    /// If the index is malformed, or names a file that the repository does not have.
    pub(super) fn shards(&self, id: &str, dir: &Path) -> Result<BTreeSet<String>, HubError> {
        if !is_index(self.weights) {
            return Ok(BTreeSet::new());
        }
        let path = dir.join(self.weights);
        let bad = |found: String| HubError::BadIndex {
            id: id.to_owned(),
            path: path.clone(),
            found,
        };
        let shards = shard_names(&path).map_err(bad)?;
        match shards.iter().find(|shard| !self.all.contains(*shard)) {
            Some(shard) => Err(bad(format!("the name {shard:?} of no file"))),
            None => Ok(shards),
        }
    }
}

/// Whether weights are in several files, which this one lists.
fn is_index(weights: &str) -> bool {
    weights.ends_with(".index.json")
}

/// The names of the files that an index maps tensors to.
fn shard_names(path: &Path) -> Result<BTreeSet<String>, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let index: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or("no weight_map")?;
    let name = |value: &Value| value.as_str().map(str::to_owned).ok_or(value.to_string());
    map.values().map(name).collect()
}

/// Whether a snapshot has its config and all of its weights.
pub(super) fn is_complete(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).exists();
    let Some(weights) = WEIGHTS.into_iter().find(|name| has(name)) else {
        return false;
    };
    let has_shards = || {
        shard_names(&dir.join(weights)).is_ok_and(|shards| shards.iter().all(|shard| has(shard)))
    };
    has("config.json") && (!is_index(weights) || has_shards())
}

/// Files of sentence-transformers have fixed names, or one of two patterns; nothing else is
/// fetched, and no name may leave the folder.
fn is_small(name: &str) -> bool {
    let pooling = name.strip_suffix("_Pooling/config.json");
    let is_pooling = pooling.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()));
    let is_limit = name.starts_with("sentence_") && name.ends_with("_config.json");
    let is_listed = name == "config.json" || OPTIONAL.contains(&name);
    is_listed || is_pooling || (is_limit && !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(names: &[&str]) -> Result<Wanted, HubError> {
        Wanted::choose("a/b", names.iter().copied())
    }

    #[test]
    fn one_form_of_the_weights_is_chosen() {
        let check = |names: &[&str], weights: &str| {
            let mut all = vec!["config.json", "onnx/model.onnx", "README.md"];
            all.extend(names);
            let wanted = choose(&all).expect("a choice");
            assert_eq!(wanted.weights, weights);
            assert_eq!(wanted.small, ["config.json"]);
        };
        check(
            &["pytorch_model.bin", "model.safetensors"],
            "model.safetensors",
        );
        check(&["pytorch_model.bin"], "pytorch_model.bin");
        let index = "model.safetensors.index.json";
        check(&[index, "pytorch_model.bin"], index);
        let index = "pytorch_model.bin.index.json";
        check(&[index], index);
    }

    #[test]
    fn small_files_are_those_that_say_how_a_model_is_used() {
        for name in [
            "tokenizer.json",
            "1_Pooling/config.json",
            "sentence_bert_config.json",
            "modules.json",
        ] {
            assert!(is_small(name), "{name}");
        }
        for name in [
            "README.md",
            "../_Pooling/config.json",
            "sentence_/../x_config.json",
            "2_Dense/config.json",
        ] {
            assert!(!is_small(name), "{name}");
        }
    }

    #[test]
    fn a_repository_without_model_is_named() {
        let check = |names: &[&str], expect: &str| {
            assert_eq!(choose(names).expect_err(expect).to_string(), expect);
        };
        check(
            &[],
            "`a/b` has no config.json on the hub, so it cannot be served",
        );
        check(
            &["config.json", "model.onnx"],
            "`a/b` has no model.safetensors or pytorch_model.bin on the hub, so it cannot be served",
        );
    }
}
