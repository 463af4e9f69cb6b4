//! Model folders made from the goldens, sound or broken on purpose.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Words of the tests; everything else is spelled in letters.
const WORDS: &str = "hello world a the cat sat on mat bank card my is lost";

/// A copy of a golden's checkpoint, with a tokenizer, in a folder that ends with the value.
#[derive(Debug)]
pub struct ModelDir {
    dir: TempDir,
}

impl ModelDir {
    /// Copies `tests/goldens/CASE` and adds a `tokenizer.json`.
    ///
    /// # Panics
    /// If there is no such golden.
    #[must_use]
    pub fn of_golden(case: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        copy(&golden(case), dir.path());
        let model = Self { dir };
        let n_ids = model.json("config.json")["vocab_size"].as_u64();
        let tokenizer = tokenizer(usize::try_from(n_ids.unwrap_or(0)).unwrap_or(0));
        model.write("tokenizer.json", tokenizer.to_string().as_bytes());
        model
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A file of the folder, as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self, name: &str) -> Value {
        let bytes = self.read(name);
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The bytes of a file.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Replaces a file.
    ///
    /// # Panics
    /// If the disk is full.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path().join(name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Sets one key of `config.json`.
    pub fn configure(&self, key: &str, value: Value) {
        let mut config = self.json("config.json");
        config[key] = value;
        self.write("config.json", config.to_string().as_bytes());
    }

    /// Changes the header of `model.safetensors` and leaves the data as they are.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn edit_header(&self, edit: impl FnOnce(&mut Map<String, Value>)) {
        let (mut header, data) = self.safetensors();
        edit(&mut header);
        let header = Value::Object(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        let bytes = [&length, header.as_bytes(), &data].concat();
        self.write("model.safetensors", &bytes);
    }

    /// Writes a value over one element of an f32 tensor.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn poke(&self, tensor: &str, element_idx: usize, value: f32) {
        let (header, mut data) = self.safetensors();
        assert_eq!(header[tensor]["dtype"], "F32", "{tensor}");
        let start = header[tensor]["data_offsets"][0]
            .as_u64()
            .expect("an offset");
        let at = usize::try_from(start).expect("a small file") + 4 * element_idx;
        data[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let header = Value::Object(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        self.write(
            "model.safetensors",
            &[&length, header.as_bytes(), &data].concat(),
        );
    }

    /// Names of the tensors, in order.
    #[must_use]
    pub fn tensors(&self) -> Vec<String> {
        let (header, _) = self.safetensors();
        let mut names: Vec<String> = header.keys().cloned().collect();
        names.retain(|name| name != "__metadata__");
        names.sort();
        names
    }

    fn safetensors(&self) -> (Map<String, Value>, Vec<u8>) {
        let bytes = self.read("model.safetensors");
        let (length, rest) = bytes.split_at(8);
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
        let (header, data) = rest.split_at(usize::try_from(length).expect("a small header"));
        let header = serde_json::from_slice(header).expect("a JSON header");
        (header, data.to_vec())
    }
}

/// `tests/goldens/CASE`.
fn golden(case: &str) -> PathBuf {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens");
    goldens.join(case)
}

fn copy(from: &Path, to: &Path) {
    let list = fs::read_dir(from);
    for entry in list.unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            fs::create_dir(&target).expect("a new folder");
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// A WordPiece tokenizer in BERT's manner with at most `n_ids` ids.
fn tokenizer(n_ids: usize) -> Value {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let letters = (b'a'..=b'z').map(|letter| char::from(letter).to_string());
    let pieces = letters.clone().map(|letter| format!("##{letter}"));
    let words = WORDS.split(' ').map(str::to_owned);
    let mut vocab = Map::new();
    let tokens = special.map(str::to_owned).into_iter();
    for token in tokens
        .chain(words)
        .chain(letters)
        .chain(pieces)
        .chain(["!".to_owned()])
    {
        let next = vocab.len();
        vocab.entry(token).or_insert(json!(next));
    }
    assert!(vocab.len() <= n_ids, "{} tokens, {n_ids} ids", vocab.len());
    let added: Vec<Value> = special
        .map(|token| {
            json!({
                "id": vocab[token], "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .to_vec();
    let frame = |token: &str| json!({ "id": token, "ids": [vocab[token]], "tokens": [token] });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special_token("[CLS]", 0), sequence("A", 0), special_token("[SEP]", 0)],
            "pair": [
                special_token("[CLS]", 0), sequence("A", 0), special_token("[SEP]", 0),
                sequence("B", 1), special_token("[SEP]", 1),
            ],
            "special_tokens": { "[CLS]": frame("[CLS]"), "[SEP]": frame("[SEP]") },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    })
}

fn special_token(id: &str, type_id: u8) -> Value {
    json!({ "SpecialToken": { "id": id, "type_id": type_id } })
}

fn sequence(id: &str, type_id: u8) -> Value {
    json!({ "Sequence": { "id": id, "type_id": type_id } })
}
