//! Class counts that somebody wrote down.

use std::path::Path;

use super::DataError;
use super::table::{csv_error, open, quoted, row_error};
use crate::classes::ClassCounts;

/// Reads how many examples of each class each node holds: CSV with a line of the classes' names, then a
/// line for each node.
///
/// # Errors
/// If the file cannot be read, or is not a table of whole numbers.
pub fn read_class_counts(file: &Path) -> Result<ClassCounts, DataError> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(open(file)?);
    let headers = reader.headers().map_err(|error| csv_error(file, error))?;
    let n_classes = headers.len();
    let mut counts = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| csv_error(file, error))?;
        let line = record.position().map_or(0, csv::Position::line);
        for value in &record {
            let count = value.parse::<u32>().map_err(|_| {
                let expected = format!("a number of examples, 0 to {}", u32::MAX);
                row_error(file, line, &expected, &quoted(value))
            })?;
            counts.push(count);
        }
    }
    match counts.is_empty() {
        true => Err(DataError::Empty { file: file.into() }),
        false => Ok(ClassCounts::new(n_classes, counts)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ClassCounts, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c.csv");
        std::fs::write(&path, text).expect("written");
        let within = format!("{}/", folder.path().display());
        read_class_counts(&path).map_err(|error| error.to_string().replace(&within, ""))
    }

    #[test]
    fn a_line_is_a_node() {
        let expect = ClassCounts::new(3, vec![1, 0, 2, 0, 7, 0]);
        assert_eq!(read("cat,dog,eel\n1,0,2\n 0, 7 ,0\n"), Ok(expect));
    }

    #[test]
    fn what_is_no_table_of_counts_is_refused() {
        let check = |text: &str, expect: &str| {
            assert_eq!(read(text).expect_err("refused"), expect);
        };
        check("", "c.csv: expected at least one example, found none");
        check("a,b\n", "c.csv: expected at least one example, found none");
        check("a,b\n1,2\n3\n", "c.csv: line 3: expected 2 fields, found 1");
        check(
            "a,b\n1,-2\n",
            "c.csv: line 2: expected a number of examples, 0 to 4294967295, found \"-2\"",
        );
        check(
            "a,b\n1,\n",
            "c.csv: line 2: expected a number of examples, 0 to 4294967295, found \"\"",
        );
    }
}
