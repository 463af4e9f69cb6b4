//! A model's config.json, with errors that name the key.
//!
//! Values are read by hand rather than into a derived struct: configs in the wild spell one thing
//! in several ways, sometimes in one file, and an error must name the key and what it holds.

use std::ops::RangeInclusive;

use moeshard_tensor::device::Activation;
use serde_json::{Map, Value};

use crate::model_error::{ModelError, Result};

/// Largest width of anything within a layer.
///
/// With [`EXPERTS`] it keeps every product of sizes far from overflow.
const MAX_WIDTH: usize = 1 << 20;

/// What a width of a layer may be: `d_model`, `d_ff`, a number of heads.
pub(super) const WIDTH: RangeInclusive<usize> = 1..=MAX_WIDTH;
/// What a number of rows of an embedding table may be.
pub(super) const ROWS: RangeInclusive<usize> = 1..=1 << 28;
/// What a number of layers may be.
pub(super) const LAYERS: RangeInclusive<usize> = 1..=10_000;
/// What a number of experts may be.
pub(super) const EXPERTS: RangeInclusive<usize> = 1..=65_536;

/// A model's config.
#[derive(Clone, Copy)]
pub(super) struct Config<'a> {
    values: &'a Map<String, Value>,
}

impl<'a> Config<'a> {
    /// The config in a parsed config.json.
    pub(super) fn new(config: &'a Value) -> Result<Self> {
        let values = config.as_object();
        let values = values.ok_or_else(|| error("the whole", "an object", &shown(config)))?;
        Ok(Self { values })
    }

    /// The value of a key; `null` is no value.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A size that the config must state.
    pub(super) fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize> {
        match self.value(key) {
            Some(value) => in_range(key, value, range),
            None => Err(error(key, &shown_range(&range), "nothing")),
        }
    }

    /// A size that has a default.
    pub(super) fn size_or(
        &self,
        key: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize> {
        match self.value(key) {
            Some(value) => in_range(key, value, range),
            None => Ok(default),
        }
    }

    /// A finite number that has a default.
    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.value(key) else {
            return Ok(default);
        };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.ok_or_else(|| error(key, "a number", &shown(value)))
    }

    /// What is added to a variance, with its default.
    pub(super) fn eps_or(&self, key: &str, default: f64) -> Result<f32> {
        let eps = self.number_or(key, default)?;
        if !(0.0..=1.0).contains(&eps) {
            return Err(error(key, "a number from 0 to 1", &eps));
        }
        Ok(eps as f32)
    }

    /// A switch that has a default.
    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.value(key) else {
            return Ok(default);
        };
        value
            .as_bool()
            .ok_or_else(|| error(key, "true or false", &shown(value)))
    }

    /// A string, if there is one.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| error(key, "a string", &shown(value)))
    }

    /// An activation function that has a default.
    pub(super) fn activation_or(&self, key: &str, default: Activation) -> Result<Activation> {
        Ok(match self.text(key)? {
            None => default,
            Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some("silu" | "swish") => Activation::Silu,
            Some("tanh") => Activation::Tanh,
            Some(other) => {
                let known = "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, silu or tanh";
                return Err(error(key, known, &format!("{other:?}")));
            }
        })
    }

    /// Refuses a config that switches on what is not supported.
    pub(super) fn refuse(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            let Some(value) = self.value(key) else {
                continue;
            };
            if value.as_bool() != Some(false) && value.as_f64() != Some(0.0) {
                return Err(error(
                    key,
                    "false, because nothing else is supported",
                    &shown(value),
                ));
            }
        }
        Ok(())
    }

    /// Refuses a config in which `key` is anything but `supported`.
    pub(super) fn only(&self, key: &str, supported: &str) -> Result<()> {
        match self.text(key)? {
            Some(other) if other != supported => {
                let expected = format!("{supported:?}, because nothing else is supported");
                Err(error(key, &expected, &format!("{other:?}")))
            }
            _ => Ok(()),
        }
    }

    /// The names of the classes that the weights were saved from.
    pub(super) fn architectures(&self) -> impl Iterator<Item = &'a str> {
        let names = self.value("architectures").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str)
    }
}

/// Width of a head where `n_heads` share `d_model`.
pub(super) fn head_dim(key: &str, n_heads: usize, d_model: usize) -> Result<usize> {
    if !d_model.is_multiple_of(n_heads) {
        let expected = format!("a number of heads that divides the width {d_model}");
        return Err(error(key, &expected, &n_heads));
    }
    Ok(d_model / n_heads)
}

/// Most experts that a token may go to; released models use one to eight.
const MAX_TOP_K: usize = 64;

/// Checks that a token can go to `top_k` of `n_experts`.
pub(super) fn check_top_k(key: &str, top_k: usize, n_experts: usize) -> Result<()> {
    if top_k > n_experts {
        let expected = format!("at most as many as there are experts ({n_experts})");
        return Err(error(key, &expected, &top_k));
    }
    if top_k > MAX_TOP_K {
        return Err(error(key, &format!("at most {MAX_TOP_K}"), &top_k));
    }
    Ok(())
}

/// A complaint about config.json.
pub(super) fn error(key: &str, expected: &str, found: &(impl ToString + ?Sized)) -> ModelError {
    ModelError::Key {
        file: "config.json".into(),
        key: key.into(),
        expected: expected.into(),
        found: found.to_string(),
    }
}

/// A whole number in a range.
fn in_range(key: &str, value: &Value, range: RangeInclusive<usize>) -> Result<usize> {
    let number = value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok());
    let number = number.filter(|number| range.contains(number));
    number.ok_or_else(|| error(key, &shown_range(&range), &shown(value)))
}

fn shown_range(range: &RangeInclusive<usize>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

/// A value as an error quotes it: not at length.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(items) => format!("an object of {}", items.len()),
        other => {
            let text = other.to_string();
            match text.char_indices().nth(60) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}
