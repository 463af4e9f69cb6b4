use std::path::Path;
use std::sync::Arc;

use hyper::body::Bytes;
use serde::Serialize;

use crate::args::WordRange;
use crate::error::Error;
use crate::rng::Rng;

/// Words of generated texts: common English ones, so that a word is about one token.
const WORDS: [&str; 64] = [
    "about", "account", "after", "again", "air", "answer", "back", "bank", "before", "black",
    "book", "call", "card", "change", "city", "come", "could", "country", "day", "early", "every",
    "family", "find", "first", "food", "give", "good", "great", "hand", "have", "home", "house",
    "in", "keep", "know", "large", "letter", "life", "light", "long", "make", "money", "morning",
    "music", "never", "new", "night", "number", "open", "paper", "people", "place", "question",
    "river", "school", "small", "story", "the", "time", "train", "water", "with", "work", "year",
];

/// Where the texts come from.
#[derive(Debug, Clone)]
pub(crate) enum Texts {
    /// Taken in order, from the start again at the end.
    Lines(Arc<[String]>),
    /// Drawn from a built-in list of words.
    Generated(WordRange),
}

impl Texts {
    /// The lines of a UTF-8 file that are not blank.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let content = std::fs::read_to_string(path).map_err(|source| Error::ReadTexts {
            path: path.to_owned(),
            source,
        })?;
        let lines: Arc<[String]> = content
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(str::to_owned)
            .collect();
        if lines.is_empty() {
            return Err(Error::NoTexts {
                path: path.to_owned(),
            });
        }
        Ok(Self::Lines(lines))
    }
}

/// What every request carries.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) texts: Texts,
    /// Texts per request.
    pub(crate) batch: usize,
}

impl Workload {
    /// The request bodies, without end, and the same for the same seed.
    pub(crate) fn bodies(&self, seed: u64) -> Bodies {
        Bodies {
            workload: self.clone(),
            rng: Rng::new(seed, 2),
            line_idx: 0,
        }
    }
}

/// Endless iterator of JSON request bodies.
#[derive(Debug)]
pub(crate) struct Bodies {
    workload: Workload,
    rng: Rng,
    line_idx: usize,
}

/// The body of `POST /embed`. `truncate` because a text of the caller's file may be longer than
/// the model takes, and a load test is not about that.
#[derive(Serialize)]
struct EmbedRequest<T> {
    inputs: T,
    truncate: bool,
}

impl Iterator for Bodies {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let json = if self.workload.batch == 1 {
            serde_json::to_vec(&EmbedRequest {
                inputs: self.text(),
                truncate: true,
            })
        } else {
            let inputs: Vec<String> = (0..self.workload.batch).map(|_| self.text()).collect();
            serde_json::to_vec(&EmbedRequest {
                inputs,
                truncate: true,
            })
        };
        Some(json.expect("strings always serialize").into())
    }
}

impl Bodies {
    fn text(&mut self) -> String {
        match &self.workload.texts {
            Texts::Lines(lines) => {
                let line = lines[self.line_idx].clone();
                self.line_idx = (self.line_idx + 1) % lines.len();
                line
            }
            Texts::Generated(range) => {
                let bounds = range.bounds();
                let n_words = bounds.start() + self.rng.below(bounds.end() - bounds.start() + 1);
                let words: Vec<&str> = (0..n_words)
                    .map(|_| WORDS[self.rng.below(WORDS.len())])
                    .collect();
                words.join(" ")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::{Value, json};

    use super::*;

    fn bodies(texts: Texts, batch: usize, seed: u64) -> impl Iterator<Item = Value> {
        Workload { texts, batch }
            .bodies(seed)
            .map(|body| serde_json::from_slice(&body).unwrap())
    }

    fn n_words(text: &Value) -> usize {
        text.as_str().unwrap().split(' ').count()
    }

    #[test]
    fn generated_texts_have_the_words_asked_for_and_follow_the_seed() {
        let texts = || Texts::Generated("3:6".parse().unwrap());
        let first: Vec<Value> = bodies(texts(), 1, 4).take(200).collect();
        assert_eq!(first, bodies(texts(), 1, 4).take(200).collect::<Vec<_>>());
        assert_ne!(first, bodies(texts(), 1, 5).take(200).collect::<Vec<_>>());
        let mut counts: Vec<usize> = first.iter().map(|body| n_words(&body["inputs"])).collect();
        counts.sort_unstable();
        counts.dedup();
        assert_eq!(counts, [3, 4, 5, 6]);
    }

    #[test]
    fn lines_go_round_in_batches() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all("a \"quoted\"\n\n  \nb\r\nc".as_bytes())
            .unwrap();
        let texts = Texts::read(file.path()).unwrap();
        let found: Vec<Value> = bodies(texts, 2, 0).take(2).collect();
        assert_eq!(
            found[0],
            json!({"inputs": ["a \"quoted\"", "b"], "truncate": true})
        );
        assert_eq!(found[1]["inputs"], json!(["c", "a \"quoted\""]));
    }

    #[test]
    fn files_without_text_are_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"\n \n").unwrap();
        assert!(matches!(
            Texts::read(file.path()),
            Err(Error::NoTexts { .. })
        ));
        file.write_all(b"\xff\xfe").unwrap();
        assert!(matches!(
            Texts::read(file.path()),
            Err(Error::ReadTexts { .. })
        ));
    }
}
