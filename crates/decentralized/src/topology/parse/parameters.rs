//! What is said of a topology, `parameter=value,…`.

use std::str::FromStr;

use super::{Rule, listed};
use crate::topology::{InterClique, TopologyError};

/// What was given for the parameters of a rule.
pub(super) struct Parameters<'a> {
    topology: &'static str,
    /// Each at most once.
    given: Vec<(&'static str, &'a str)>,
}

impl<'a> Parameters<'a> {
    /// Reads `name=value,…`.
    pub(super) fn read(rule: &Rule, text: &'a str) -> Result<Self, TopologyError> {
        let mut parameters = Self {
            topology: rule.name,
            given: Vec::new(),
        };
        for pair in text
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let mut known = rule.parameters.iter().map(|known| known.name);
            let is_meant = |known: &&str| *known == name.trim();
            let name = known
                .find(is_meant)
                .ok_or_else(|| TopologyError::UnknownParameter {
                    topology: rule.name,
                    parameter: name.trim().to_owned(),
                    known: listed(rule.parameters.iter().map(|known| known.name)),
                })?;
            if parameters.text(name).is_some() {
                return Err(parameters.error(name, "one value", "given twice"));
            }
            parameters.given.push((name, value.trim()));
        }
        Ok(parameters)
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        let given = self.given.iter().find(|(other, _)| *other == name);
        given.map(|&(_, value)| value)
    }

    pub(super) fn optional<T: FromStr>(
        &self,
        name: &'static str,
        expected: &str,
    ) -> Result<Option<T>, TopologyError> {
        let read = |text: &str| {
            let value = text.parse::<T>();
            value.map_err(|_| self.error(name, expected, &format!("`{text}`")))
        };
        self.text(name).map(read).transpose()
    }

    pub(super) fn required<T: FromStr>(
        &self,
        name: &'static str,
        expected: &str,
    ) -> Result<T, TopologyError> {
        let value = self.optional(name, expected)?;
        value.ok_or_else(|| self.error(name, expected, "missing"))
    }

    pub(super) fn error(
        &self,
        parameter: &'static str,
        expected: &str,
        got: &str,
    ) -> TopologyError {
        TopologyError::Parameter {
            topology: self.topology,
            parameter,
            expected: expected.to_owned(),
            got: got.to_owned(),
        }
    }
}

impl FromStr for InterClique {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL
            .into_iter()
            .find(|inter| inter.to_string() == text);
        named.ok_or(())
    }
}
