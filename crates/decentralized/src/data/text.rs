//! Texts with a label each, which an encoder turns into vectors later.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::table::{self, Row, quoted, row_error};
use super::{DataError, Dataset};

/// What the column of labels is usually called.
const LABEL_NAMES: [&str; 4] = ["label", "category", "intent", "class"];

/// Which columns of a file hold texts and labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextColumns {
    /// Of texts.
    pub text: String,
    /// Of labels; `None` is the first of "label", "category", "intent" and "class" that there is.
    pub label: Option<String>,
}

impl Default for TextColumns {
    fn default() -> Self {
        Self {
            text: "text".into(),
            label: None,
        }
    }
}

/// Texts and their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextSet {
    /// Where they came from.
    pub file: PathBuf,
    /// `[n_examples]`, none empty.
    pub texts: Vec<String>,
    /// `[n_examples]`, indices into `label_names`.
    pub labels: Vec<u32>,
    /// The name of each class, ascending: by value where all are whole numbers, else by bytes.
    pub label_names: Vec<String>,
}

impl TextSet {
    /// Reads CSV with headers, columns between tabs (`.tsv`) or lines of JSON (`.jsonl`, `.ndjson`).
    ///
    /// # Errors
    /// If the file cannot be read, is empty, lacks a column, or a row of it has no text or no label.
    pub fn read(file: &Path, columns: &TextColumns) -> Result<Self, DataError> {
        let rows = read_rows(file, columns)?;
        let mut names: Vec<String> = rows.iter().map(|row| row.values[1].clone()).collect();
        sort_names(&mut names);
        Self::with_names(file, rows, names)
    }

    /// The same with the classes of another set: that which the model learned from.
    ///
    /// # Errors
    /// As [`TextSet::read`], and if a row has a label that is not one of `label_names`.
    pub fn read_with_labels(
        file: &Path,
        columns: &TextColumns,
        label_names: &[String],
    ) -> Result<Self, DataError> {
        let rows = read_rows(file, columns)?;
        Self::with_names(file, rows, label_names.to_vec())
    }

    fn with_names(
        file: &Path,
        rows: Vec<Row<2>>,
        label_names: Vec<String>,
    ) -> Result<Self, DataError> {
        let ids: HashMap<&str, u32> = label_names.iter().map(String::as_str).zip(0..).collect();
        let (mut texts, mut labels) = (Vec::new(), Vec::new());
        for Row { line, values } in rows {
            let [text, label] = values;
            let Some(&id) = ids.get(label.as_str()) else {
                let expected = format!("one of the {} labels known", label_names.len());
                return Err(row_error(file, line, &expected, &quoted(&label)));
            };
            texts.push(text);
            labels.push(id);
        }
        Ok(Self {
            file: file.into(),
            texts,
            labels,
            label_names,
        })
    }

    /// Number of examples.
    #[must_use]
    pub fn n_examples(&self) -> usize {
        self.texts.len()
    }

    /// Number of classes.
    #[must_use]
    pub fn n_classes(&self) -> usize {
        self.label_names.len()
    }

    /// Keeps the first `n_examples`; all of them if there are no more. Classes stay.
    #[must_use]
    pub fn first(mut self, n_examples: usize) -> Self {
        self.texts.truncate(n_examples);
        self.labels.truncate(n_examples);
        self
    }

    /// The set as vectors, which `embed` makes of the texts: one for each, in their order, all equally
    /// long.
    ///
    /// # Errors
    /// If `embed` fails, or returns another number of vectors, vectors of different lengths, or numbers
    /// that are not finite.
    pub fn embed<E: Display>(
        &self,
        embed: impl FnOnce(&[String]) -> Result<Vec<Vec<f32>>, E>,
    ) -> Result<Dataset, DataError> {
        let file = &self.file;
        let vectors = embed(&self.texts).map_err(|error| DataError::Embedding {
            file: file.clone(),
            why: error.to_string(),
        })?;
        let n_features = vectors.first().map_or(0, Vec::len);
        if let Some(at) = vectors.iter().position(|vector| vector.len() != n_features) {
            return Err(DataError::Shape {
                file: file.clone(),
                expected: format!("vectors of {n_features} features"),
                found: format!("one of {} for example {at}", vectors[at].len()),
            });
        }
        let labels = self.labels.clone();
        Dataset::new(file, n_features, self.n_classes(), vectors.concat(), labels)
    }
}

fn read_rows(file: &Path, columns: &TextColumns) -> Result<Vec<Row<2>>, DataError> {
    let text = [columns.text.as_str()];
    let label = columns.label.as_ref().map(|label| [label.as_str()]);
    let label: &[&str] = label.as_ref().map_or(&LABEL_NAMES, |label| label);
    let mut rows = table::read(file, [&text, label])?;
    for row in &mut rows {
        let [text, label] = &mut row.values;
        if text.trim().is_empty() {
            return Err(row_error(file, row.line, "a text", "an empty one"));
        }
        *label = label.trim().to_owned();
        if label.is_empty() {
            return Err(row_error(file, row.line, "a label", "an empty one"));
        }
    }
    Ok(rows)
}

fn sort_names(names: &mut Vec<String>) {
    let number = |name: &String| name.parse::<i64>().ok();
    match names.iter().all(|name| number(name).is_some()) {
        true => names.sort_by(|a, b| (number(a), a).cmp(&(number(b), b))),
        false => names.sort(),
    }
    names.dedup();
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::real;
    use super::*;

    fn read_file(name: &str, bytes: &[u8], columns: &TextColumns) -> Result<TextSet, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(name);
        fs::write(&file, bytes).expect("written");
        let within = format!("{}/", folder.path().display());
        let set = TextSet::read(&file, columns);
        set.map_err(|error| error.to_string().replace(&within, ""))
    }

    fn read(name: &str, text: &str) -> Result<TextSet, String> {
        read_file(name, text.as_bytes(), &TextColumns::default())
    }

    #[test]
    fn the_same_set_in_every_form() {
        let csv = read(
            "a.csv",
            "id,text,label\n1,\"b, \"\"c\"\"\n\",y\n2,a,x\n3,d,y\n",
        )
        .expect("sound");
        assert_eq!(csv.texts, ["b, \"c\"\n", "a", "d"]);
        assert_eq!(csv.labels, [1, 0, 1]);
        assert_eq!(csv.label_names, ["x", "y"]);
        assert_eq!((csv.n_examples(), csv.n_classes()), (3, 2));
        let same = |other: TextSet| {
            assert_eq!((&other.texts, &other.labels), (&csv.texts, &csv.labels));
            assert_eq!(other.label_names, csv.label_names);
        };
        let json = "\u{feff}{\"text\":\"b, \\\"c\\\"\\n\",\"label\":\"y\"}\n\n{\"label\":\"x\",\"text\":\"a\"}\r\n\
                    {\"text\":\"d\",\"label\":\"y\"}";
        same(read("a.jsonl", json).expect("sound"));
        same(read("a.tsv", "category\ttext\ny\t\"b, \"\"c\"\"\n\"\nx\ta\ny\td").expect("sound"));
        same(
            read(
                "a.csv",
                "\u{feff}text , label\n\"b, \"\"c\"\"\n\", y\na,x\nd,y ",
            )
            .expect("sound"),
        );
        let columns = TextColumns {
            text: "t".into(),
            label: Some("text".into()),
        };
        let csv = "t,label,text\n\"b, \"\"c\"\"\n\",1,y\na,1,x\nd,2,y";
        same(read_file("a.csv", csv.as_bytes(), &columns).expect("sound"));
    }

    #[test]
    fn banking77_is_read_whole() {
        let Some(folder) = real::folder("text/banking77/train.csv") else {
            return;
        };
        let folder = folder.join("text/banking77");
        let columns = TextColumns::default();
        let train = TextSet::read(&folder.join("train.csv"), &columns).expect("texts");
        assert_eq!((train.n_examples(), train.n_classes()), (10_003, 77));
        let file = folder.join("test.csv");
        let test = TextSet::read_with_labels(&file, &columns, &train.label_names).expect("texts");
        assert_eq!(test.n_examples(), 3080);
        assert_eq!(test.texts[0], "How do I locate my card?");
        assert_eq!(test.label_names[test.labels[0] as usize], "card_arrival");
    }

    #[test]
    fn names_are_sorted_numbers_by_value() {
        let set = read("a.csv", "text,label\na,10\nb,9\nc,10").expect("sound");
        assert_eq!(set.label_names, ["9", "10"]);
        assert_eq!(set.labels, [1, 0, 1]);
        let set = read(
            "a.jsonl",
            "{\"text\":\"a\",\"label\":10}\n{\"text\":\"b\",\"label\":9}",
        );
        assert_eq!(set.expect("sound").label_names, ["9", "10"]);
        let set = read("a.csv", "text,label\na,10\nb,9\nc,z").expect("sound");
        assert_eq!(set.label_names, ["10", "9", "z"]);
    }

    #[test]
    fn hostile_csv_is_refused_by_name() {
        let check = |text: &str, expect: &str| {
            assert_eq!(read("a.csv", text).expect_err("hostile"), expect);
        };
        check("", "a.csv: expected at least one example, found none");
        check(
            "text,label\n",
            "a.csv: expected at least one example, found none",
        );
        check(
            "body,label\na,b",
            "a.csv: expected a column text, found the columns \"body,label\"",
        );
        check(
            "text,score\na,b",
            "a.csv: expected a column label or category or intent or class, found the columns \
             \"text,score\"",
        );
        check(
            "text,label\na,x\n\" \",x",
            "a.csv: line 3: expected a text, found an empty one",
        );
        check(
            "text,label\na,x\nb,",
            "a.csv: line 3: expected a label, found an empty one",
        );
        check(
            "text,label\na,x\nb",
            "a.csv: line 3: expected 2 fields, found 1",
        );
        let bytes = b"text,label\na,\xff";
        let error = read_file("a.csv", bytes, &TextColumns::default()).expect_err("hostile");
        assert_eq!(error, "a.csv: line 2: expected UTF-8, found other bytes");
        let nowhere = TextSet::read(Path::new("no/such.csv"), &TextColumns::default());
        let error = nowhere.expect_err("missing").to_string();
        assert!(
            error.starts_with("no/such.csv: cannot be read: "),
            "{error}"
        );
    }

    #[test]
    fn hostile_json_is_refused_by_name() {
        let check = |text: &str, expect: &str| {
            let error = read("a.jsonl", text).expect_err("hostile");
            assert!(error.starts_with(expect), "{error}");
        };
        check(
            "\n \n",
            "a.jsonl: expected at least one example, found none",
        );
        check(
            "{\"text\":",
            "a.jsonl: line 1: expected an object of JSON, found EOF",
        );
        check(
            "{\"text\":\"a\",\"label\":\"b\"}\n[1]",
            "a.jsonl: line 2: expected a field text that is a text or a whole number, found none in \
             \"[1]\"",
        );
        check(
            "{\"text\":\"a\",\"label\":0.5}",
            "a.jsonl: line 1: expected a field label or category or intent or class that is a text or \
             a whole number, found \"0.5\"",
        );
        check(
            "{\"text\":\"\",\"label\":0}",
            "a.jsonl: line 1: expected a text, found an empty one",
        );
        check(
            &" ".repeat((16 << 20) + 1),
            "a.jsonl: line 1: expected at most 16777216 bytes, found more",
        );
        // Nested deeper than any stack.
        check(
            &"[".repeat(1_000_000),
            "a.jsonl: line 1: expected an object of JSON, found",
        );
    }

    #[test]
    fn a_test_set_keeps_the_classes_of_its_training_set() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("test.csv");
        let names = ["x", "y", "z"].map(String::from);
        let read = |text: &str| {
            fs::write(&file, text).expect("written");
            TextSet::read_with_labels(&file, &TextColumns::default(), &names)
        };
        let set = read("text,label\na,z\nb,x").expect("sound");
        assert_eq!((set.n_classes(), set.labels), (3, vec![2, 0]));
        let error = read("text,label\na,z\nb,w")
            .expect_err("unknown")
            .to_string();
        assert!(
            error.ends_with("test.csv: line 3: expected one of the 3 labels known, found \"w\""),
            "{error}"
        );
    }

    #[test]
    fn vectors_come_from_the_caller() {
        let set = read("a.csv", "text,label\nab,y\nc,x").expect("sound");
        let lengths = |texts: &[String]| -> Result<Vec<Vec<f32>>, String> {
            Ok(texts
                .iter()
                .map(|text| vec![text.len() as f32, 0.5])
                .collect())
        };
        let vectors = set.embed(lengths).expect("vectors");
        assert_eq!(vectors.features, [2.0, 0.5, 1.0, 0.5]);
        assert_eq!((vectors.n_features, vectors.n_classes), (2, 2));
        assert_eq!(vectors.labels, [1, 0]);
        let check = |made: Result<Vec<Vec<f32>>, String>, expect: &str| {
            let error = set.embed(|_| made).expect_err("unsound").to_string();
            assert!(error.ends_with(expect), "{error}");
        };
        check(
            Err("no model".into()),
            "a.csv: cannot be embedded: no model",
        );
        check(
            Ok(vec![vec![0.0]]),
            "a.csv: expected 2 vectors of 1 features, found 1 numbers",
        );
        check(
            Ok(vec![vec![0.0], vec![0.0, 1.0]]),
            "a.csv: expected vectors of 1 features, found one of 2 for example 1",
        );
        check(
            Ok(vec![vec![0.0], vec![f32::NAN]]),
            "a.csv: feature 0 of example 1 is NaN, expected a finite number",
        );
        assert_eq!(set.first(1).texts, ["ab"]);
    }
}
