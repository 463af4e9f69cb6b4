//! Comparing what comes back as JSON.

use moeshard_tests::http::Answer;
use serde_json::Value;

/// Asserts that two lists of rows agree in every element.
#[track_caller]
pub(crate) fn assert_close(got: &[Vec<f32>], expect: &[Vec<f32>], tolerance: f32) {
    assert_eq!(got.len(), expect.len(), "rows");
    for (row_idx, (got, expect)) in got.iter().zip(expect).enumerate() {
        assert_eq!(got.len(), expect.len(), "values of row {row_idx}");
        for (value_idx, (a, b)) in got.iter().zip(expect).enumerate() {
            let difference = (a - b).abs();
            assert!(
                difference <= tolerance,
                "row {row_idx}, value {value_idx}: {a} and {b} differ by more than {tolerance}"
            );
        }
    }
}

/// Asserts that a vector has unit length.
#[track_caller]
pub(crate) fn assert_unit(row: &[f32]) {
    let length = norm(row);
    assert!((length - 1.0).abs() < 1e-5, "length {length}");
}

/// The Euclidean length.
pub(crate) fn norm(row: &[f32]) -> f32 {
    row.iter().map(|value| value * value).sum::<f32>().sqrt()
}

/// A JSON list as numbers.
#[track_caller]
pub(crate) fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).expect("a list of numbers")
}

/// The values of one metric by their label `rank`.
#[track_caller]
pub(crate) fn by_rank(metrics: &Answer, name: &str) -> Vec<f64> {
    let text = metrics.text();
    let value = |rank: usize| metric(&text, &format!("{name}{{rank=\"{rank}\"}}"));
    let values: Vec<f64> = (0..).map_while(value).collect();
    assert!(!values.is_empty(), "{name} is missing in\n{text}");
    values
}

/// The value of one series in Prometheus' text format.
pub(crate) fn metric(text: &str, series: &str) -> Option<f64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}
