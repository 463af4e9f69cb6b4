//! The model that is compiled into the program.

/// Its name.
pub(super) const NAME: &str = "moeshard-mini";

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../../../models/mini/", $name)) as &[u8])),*]
    };
}

/// Its files, named as in a folder.
pub(super) static FILES: [(&str, &[u8]); 7] = files![
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];
