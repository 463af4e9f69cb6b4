//! Rules as text.

use std::str::FromStr;

use super::{ByFile, Dirichlet, Iid, OneClass, PartitionError, Partitioner, Shards, Sizes};

/// How rules are written.
const RULES: &str = "iid, shards:k=2, one-class, dirichlet:alpha=0.1, file:PATH";

/// The rule that a text like `shards:k=2` stands for.
///
/// # Errors
/// If there is no such rule, or a parameter is missing, unknown, no number or out of range.
pub fn parse(text: &str) -> Result<Box<dyn Partitioner>, PartitionError> {
    let (rule, parameters) = text.split_once(':').unwrap_or((text, ""));
    match rule {
        "iid" if parameters.is_empty() => Ok(Box::new(Iid)),
        "one-class" if parameters.is_empty() => Ok(Box::new(OneClass)),
        "file" if !parameters.is_empty() => Ok(Box::new(ByFile {
            path: parameters.into(),
        })),
        "dirichlet" => {
            let [alpha, sizes] = values(text, parameters, ["alpha", "sizes"])?;
            let alpha = number(text, "alpha", alpha, "a number above zero")?;
            let sizes = match sizes {
                None | Some("equal") => Sizes::Equal,
                Some("natural") => Sizes::Natural,
                Some(other) => return Err(out_of_range(text, "sizes", other, "equal or natural")),
            };
            Ok(Box::new(Dirichlet::new(alpha, sizes)?))
        }
        "shards" => {
            let [k] = values(text, parameters, ["k"])?;
            let k = positive(text, "k", k)?;
            Ok(Box::new(Shards { k }))
        }
        _ => Err(PartitionError::Rule {
            text: text.into(),
            expected: format!("one of {RULES}"),
        }),
    }
}

/// The values of `names` in `name=value,name=value`.
fn values<'a, const N: usize>(
    text: &str,
    parameters: &'a str,
    names: [&'static str; N],
) -> Result<[Option<&'a str>; N], PartitionError> {
    let mut values = [None; N];
    for parameter in parameters.split(',').filter(|part| !part.is_empty()) {
        let named = parameter.split_once('=').and_then(|(name, value)| {
            let at = names.iter().position(|&known| known == name)?;
            Some((at, value))
        });
        match named {
            Some((at, value)) if values[at].is_none() => values[at] = Some(value),
            _ => {
                return Err(PartitionError::Rule {
                    text: text.into(),
                    expected: format!("no parameter but {} once", names.join(" and ")),
                });
            }
        }
    }
    Ok(values)
}

fn positive(
    text: &str,
    parameter: &'static str,
    value: Option<&str>,
) -> Result<usize, PartitionError> {
    let parsed = number::<usize>(text, parameter, value, "a whole number above zero")?;
    match parsed {
        0 => Err(out_of_range(
            text,
            parameter,
            "0",
            "a whole number above zero",
        )),
        _ => Ok(parsed),
    }
}

fn number<T: FromStr>(
    text: &str,
    parameter: &'static str,
    value: Option<&str>,
    expected: &str,
) -> Result<T, PartitionError> {
    let value = value.unwrap_or("missing");
    let parsed = value.parse();
    parsed.map_err(|_| out_of_range(text, parameter, value, expected))
}

fn out_of_range(text: &str, parameter: &'static str, got: &str, expected: &str) -> PartitionError {
    PartitionError::Parameter {
        rule: text.into(),
        parameter,
        expected: expected.into(),
        got: got.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_named_as_it_was_written() {
        for text in [
            "iid",
            "shards:k=2",
            "one-class",
            "dirichlet:alpha=0.1",
            "dirichlet:alpha=1,sizes=natural",
            "file:a/b:c=d.csv",
        ] {
            assert_eq!(parse(text).expect("a rule").name(), text);
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let check = |text: &str, expect: &str| {
            let error = parse(text).expect_err("no rule");
            assert_eq!(error.to_string(), expect);
        };
        let rules = format!("expected one of {RULES}");
        check("idd", &format!("partition \"idd\": {rules}"));
        check("", &format!("partition \"\": {rules}"));
        check("iid:k=2", &format!("partition \"iid:k=2\": {rules}"));
        check("file:", &format!("partition \"file:\": {rules}"));
        check(
            "dirichlet",
            "dirichlet: alpha is missing, expected a number above zero",
        );
        check(
            "dirichlet:alpha=0",
            "dirichlet:alpha=0: alpha is 0, expected a finite number of at least 1e-6",
        );
        check(
            "dirichlet:alpha=1,sizes=odd",
            "dirichlet:alpha=1,sizes=odd: sizes is odd, expected equal or natural",
        );
        check(
            "dirichlet:0.1",
            "partition \"dirichlet:0.1\": expected no parameter but alpha and sizes once",
        );
        let expected = "expected a whole number above zero";
        check("shards:k=0", &format!("shards:k=0: k is 0, {expected}"));
        check("shards", &format!("shards: k is missing, {expected}"));
        check("shards:k=-1", &format!("shards:k=-1: k is -1, {expected}"));
        check(
            "shards:n=2",
            "partition \"shards:n=2\": expected no parameter but k once",
        );
        check(
            "shards:k=2,k=2",
            "partition \"shards:k=2,k=2\": expected no parameter but k once",
        );
    }
}
