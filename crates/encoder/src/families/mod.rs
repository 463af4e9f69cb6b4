//! Families of encoders, each a translation without arithmetic.
//!
//! A family turns a checkpoint's config.json and tensor names into one [`EncoderSpec`]. Foreign
//! key names and tensor names stop here.

mod bert;
mod config;
mod head;
mod names;
mod nllb;
mod nomic;
mod switch;

use moeshard_tensor::checkpoint::Checkpoint;
use serde_json::Value;

use crate::model_error::{ModelError, Result};
use crate::spec::{EncoderSpec, LayerSpec};
use config::Config;
pub(crate) use config::shown;

/// One family.
struct Family {
    /// What `model_type` may be.
    model_types: &'static [&'static str],
    /// How the names of its classes start, where there is no `model_type`.
    class_prefix: &'static str,
    /// The translation. It checks the config before it asks for a tensor.
    translate: fn(&Config<'_>, &Checkpoint) -> Result<EncoderSpec>,
}

/// All families.
const FAMILIES: &[Family] = &[
    Family {
        model_types: &["switch_transformers"],
        class_prefix: "SwitchTransformers",
        translate: switch::translate,
    },
    Family {
        model_types: &["nomic_bert"],
        class_prefix: "NomicBert",
        translate: nomic::translate,
    },
    Family {
        model_types: &["nllb-moe", "nllb_moe"],
        class_prefix: "NllbMoe",
        translate: nllb::translate,
    },
    Family {
        model_types: &["bert"],
        class_prefix: "Bert",
        translate: bert::translate,
    },
    Family {
        model_types: &["xlm-roberta", "roberta", "camembert"],
        class_prefix: "XLMRoberta",
        translate: bert::translate_roberta,
    },
];

/// Says what encoder a checkpoint with this config.json holds.
///
/// The family is that of `model_type`, or of `architectures` where there is none. Every tensor of
/// the answer exists in the checkpoint and has the right shape.
///
/// # Errors
/// If no family is named that is known, a value of the config cannot be used, or a tensor is
/// missing or has another shape than the config says.
pub fn translate(config: &Value, checkpoint: &Checkpoint) -> Result<EncoderSpec, ModelError> {
    let config = Config::new(config)?;
    let family = family(&config)?;
    let spec = (family.translate)(&config, checkpoint)?;
    spec.validate(checkpoint)?;
    Ok(spec)
}

/// Whether a config.json is that of a classifier: its own task then is classification.
pub fn is_classifier(config: &Value) -> bool {
    Config::new(config).is_ok_and(|config| head::is_classifier(&config))
}

fn family(config: &Config<'_>) -> Result<&'static Family> {
    let model_type = config.text("model_type")?;
    let has_class = |family: &&Family| {
        config
            .architectures()
            .any(|name| name.starts_with(family.class_prefix))
    };
    let found = match model_type {
        Some(name) => FAMILIES
            .iter()
            .find(|family| family.model_types.contains(&name)),
        None => FAMILIES.iter().find(has_class),
    };
    found.ok_or_else(|| {
        let known: Vec<&str> = FAMILIES
            .iter()
            .flat_map(|family| family.model_types)
            .copied()
            .collect();
        ModelError::UnknownFamily {
            file: "config.json".into(),
            found: model_type.map_or("nothing".into(), |name| format!("{name:?}")),
            known: known.join(", "),
        }
    })
}

/// Layers `0..n_layers`, each checked before the next is made.
///
/// A config that claims more layers or experts than there are weights is caught at the first one
/// too many, before it can fill the memory.
fn layers(
    n_layers: usize,
    d_model: usize,
    checkpoint: &Checkpoint,
    layer: impl Fn(usize) -> LayerSpec,
) -> Result<Vec<LayerSpec>> {
    let checked = |layer_idx| {
        let layer = layer(layer_idx);
        layer.validate(d_model, checkpoint).map(|()| layer)
    };
    (0..n_layers).map(checked).collect()
}
