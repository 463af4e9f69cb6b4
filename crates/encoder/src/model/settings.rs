//! How a model is meant to be used: pooling, prompts, length limit.
//!
//! These are the files of sentence-transformers. The truncation and padding in tokenizer.json say
//! how the tokenizer was last called, not what the model can take; they are never followed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::Pooling;
use moeshard_tensor::dtype::DType;
use serde_json::{Map, Value};

use super::files::Files;
use super::key_error;
use crate::families;
use crate::model_error::Result;
use crate::spec::EncoderSpec;

/// Longest sequence if nobody names one.
const DEFAULT_MAX_LENGTH: usize = 512;

/// Longest sequence of a model whose positions have no end (relative distances): attention takes
/// time by the square of it, so a folder may not ask for more.
const LONGEST: usize = 32_768;

/// A tokenizer's `model_max_length` beyond this means that it knows none.
const SANE_MAX_LENGTH: f64 = 1e6;

/// Where sentence-transformers keeps the length limit.
const TRANSFORMER_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// How to use a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How a sequence becomes one vector.
    pub pooling: Pooling,
    /// Longest sequence in tokens, special tokens included.
    pub max_length: usize,
    /// Texts to put in front of an input, by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt used if a request names none.
    pub default_prompt_name: Option<String>,
    /// Whether its own task is classification rather than embedding.
    pub classifier: bool,
    /// The format in which most of its weights are stored.
    pub weights_dtype: DType,
}

impl Settings {
    /// Reads what the files say and fills in what they do not.
    pub(super) fn discover(
        files: &Files<'_>,
        config: &Value,
        spec: &EncoderSpec,
        checkpoint: &Checkpoint,
    ) -> Result<Self> {
        let (prompts, default_prompt_name) = prompts(files)?;
        Ok(Self {
            pooling: pooling(files)?.unwrap_or(spec.default_pooling),
            max_length: max_length(files, config, spec)?,
            prompts,
            default_prompt_name,
            classifier: families::is_classifier(config),
            weights_dtype: most_common_dtype(checkpoint),
        })
    }
}

/// The pooling that the folder asks for, if it does.
fn pooling(files: &Files<'_>) -> Result<Option<Pooling>> {
    let folder = match files.json("modules.json")? {
        Some(modules) => pooling_folder(&modules)?,
        None => Some("1_Pooling".to_owned()),
    };
    let Some(folder) = folder else {
        return Ok(None);
    };
    let file = format!("{folder}/config.json");
    match files.json(&file)? {
        Some(config) => pooling_mode(&file, &config).map(Some),
        None => Ok(None),
    }
}

/// The pooling module's folder, once every module is known to be supported.
fn pooling_folder(modules: &Value) -> Result<Option<String>> {
    let file = "modules.json";
    let list = modules.as_array();
    let list = list.ok_or_else(|| key_error(file, "the whole", "a list", modules))?;
    let mut folder = None;
    for (idx, module) in list.iter().enumerate() {
        let class = module.get("type").unwrap_or(&Value::Null);
        match class.as_str().and_then(|class| class.rsplit('.').next()) {
            Some("Transformer" | "Normalize") => {}
            Some("Pooling") => folder = Some(module_path(idx, module)?),
            _ => {
                let key = format!("{idx}.type");
                let expected = "Transformer, Pooling or Normalize (nothing else is supported)";
                return Err(key_error(file, &key, expected, class));
            }
        }
    }
    Ok(folder)
}

/// The `path` of a module, which must stay within the model's folder.
fn module_path(idx: usize, module: &Value) -> Result<String> {
    let path = module.get("path").unwrap_or(&Value::Null);
    let is_inside = |path: &&str| {
        Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
    };
    let name = path
        .as_str()
        .filter(|path| !path.is_empty())
        .filter(is_inside);
    let expected = "a folder within the model's";
    let name =
        name.ok_or_else(|| key_error("modules.json", &format!("{idx}.path"), expected, path));
    name.map(str::to_owned)
}

/// The pooling that a pooling module's config asks for.
///
/// Older ones have a switch for every mode, newer ones a `pooling_mode`.
fn pooling_mode(file: &str, config: &Value) -> Result<Pooling> {
    if let Some(include @ Value::Bool(false)) = config.get("include_prompt") {
        let expected = "true, because leaving prompts out is not supported";
        return Err(key_error(file, "include_prompt", expected, include));
    }
    let supported = "cls, mean or lasttoken (no other mode is supported)";
    if let Some(mode) = config.get("pooling_mode") {
        return match mode.as_str() {
            Some("cls") => Ok(Pooling::Cls),
            Some("mean") => Ok(Pooling::Mean),
            Some("lasttoken") => Ok(Pooling::LastToken),
            _ => Err(key_error(file, "pooling_mode", supported, mode)),
        };
    }
    let modes = chosen_modes(config);
    match modes.as_slice() {
        ["cls_token"] => Ok(Pooling::Cls),
        ["mean_tokens"] => Ok(Pooling::Mean),
        ["lasttoken"] => Ok(Pooling::LastToken),
        _ => {
            let found = Value::String(modes.join(" and "));
            Err(key_error(file, "pooling_mode", supported, &found))
        }
    }
}

/// What follows `pooling_mode_` in the keys that are true.
fn chosen_modes(config: &Value) -> Vec<&str> {
    let switches = config.as_object().into_iter().flatten();
    let chosen = switches.filter(|(_, value)| value.as_bool() == Some(true));
    chosen
        .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
        .collect()
}

/// Prompts by name, and which is the default.
fn prompts(files: &Files<'_>) -> Result<(BTreeMap<String, String>, Option<String>)> {
    let file = "config_sentence_transformers.json";
    let Some(config) = files.json(file)? else {
        return Ok((BTreeMap::new(), None));
    };
    let prompts = match config.get("prompts") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(Value::Object(prompts)) => prompt_texts(file, prompts)?,
        Some(other) => return Err(key_error(file, "prompts", "an object of strings", other)),
    };
    let default = match config.get("default_prompt_name") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) if prompts.contains_key(name) => Some(name.clone()),
        Some(other) => {
            return Err(key_error(
                file,
                "default_prompt_name",
                "one of the prompts' names",
                other,
            ));
        }
    };
    Ok((prompts, default))
}

fn prompt_texts(file: &str, prompts: &Map<String, Value>) -> Result<BTreeMap<String, String>> {
    let text = |(name, value): (&String, &Value)| match value.as_str() {
        Some(text) => Ok((name.clone(), text.to_owned())),
        None => Err(key_error(
            file,
            &format!("prompts.{name}"),
            "a string",
            value,
        )),
    };
    prompts.iter().map(text).collect()
}

/// Longest sequence: sentence-transformers' limit, or the tokenizer's, or the model's own, never
/// beyond what positions allow.
fn max_length(files: &Files<'_>, config: &Value, spec: &EncoderSpec) -> Result<usize> {
    let stated = match transformer_limit(files)? {
        Some(limit) => Some(limit),
        None => tokenizer_limit(files)?,
    };
    let own = || {
        let keys = ["n_positions", "max_position_embeddings"];
        let limit = keys
            .iter()
            .find_map(|key| config.get(key))
            .and_then(Value::as_u64);
        limit
            .and_then(|limit| usize::try_from(limit).ok())
            .filter(|limit| *limit > 0)
    };
    let limit = stated
        .or(spec.max_positions)
        .or_else(own)
        .unwrap_or(DEFAULT_MAX_LENGTH);
    Ok(limit.min(spec.max_positions.unwrap_or(LONGEST)))
}

/// `max_seq_length` of sentence-transformers.
fn transformer_limit(files: &Files<'_>) -> Result<Option<usize>> {
    for file in TRANSFORMER_CONFIGS {
        let Some(config) = files.json(file)? else {
            continue;
        };
        let limit = match config.get("max_seq_length") {
            None | Some(Value::Null) => return Ok(None),
            Some(limit) => limit,
        };
        let number = limit.as_u64().and_then(|limit| usize::try_from(limit).ok());
        let number = number.filter(|limit| *limit > 0);
        let wrong = || key_error(file, "max_seq_length", "a positive whole number", limit);
        return number.ok_or_else(wrong).map(Some);
    }
    Ok(None)
}

/// `model_max_length` of the tokenizer, if it is one: a tokenizer that knows none says 1e30.
fn tokenizer_limit(files: &Files<'_>) -> Result<Option<usize>> {
    let config = files.json("tokenizer_config.json")?;
    let limit = config
        .as_ref()
        .and_then(|config| config.get("model_max_length"));
    let limit = limit.and_then(Value::as_f64);
    let sane = limit.filter(|limit| (1.0..=SANE_MAX_LENGTH).contains(limit));
    Ok(sane.map(|limit| limit as usize))
}

/// The format that most numbers of the checkpoint are stored in.
fn most_common_dtype(checkpoint: &Checkpoint) -> DType {
    let mut n_numbers: HashMap<DType, usize> = HashMap::new();
    let infos = checkpoint.names().filter_map(|name| checkpoint.info(name));
    for info in infos {
        if let Some(dtype) = info.dtype.float() {
            let n = n_numbers.entry(dtype).or_default();
            *n = n.saturating_add(info.n_elements());
        }
    }
    let all = [DType::F32, DType::BF16, DType::F16];
    let count = |dtype: &DType| n_numbers.get(dtype).copied().unwrap_or(0);
    // On a tie the more exact format, which `max_by_key` finds last.
    all.into_iter()
        .rev()
        .max_by_key(count)
        .unwrap_or(DType::F32)
}
