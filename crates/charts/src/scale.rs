//! Axes: from values to places, and which values are labelled.

use crate::text;

/// Decades that a logarithmic axis shows, and an empty stretch, in decades, below which it shows nothing:
/// what is smaller lies on its edge. Models of a complete graph differ by rounding alone, thirty
/// decades below the others.
const MAX_DECADES: f64 = 9.0;
const MAX_GAP: f64 = 3.0;

/// What the numbers of an axis are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// Plain numbers.
    Number,
    /// Shares in 0 to 1.
    Percent,
    /// Bytes.
    Bytes,
}

/// A labelled value of an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where it is.
    pub value: f64,
    /// What it is called.
    pub label: String,
}

/// One axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    unit: Unit,
    is_log: bool,
    /// Ends of the axis, in logarithms if it is logarithmic.
    from: f64,
    to: f64,
    /// Some values were below the first end.
    is_cut: bool,
}

impl Scale {
    /// An axis over `values`, those that are not finite left out, with a little room past them. None
    /// without values.
    pub fn linear(unit: Unit, values: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) = bounds(values.filter(|value| value.is_finite()))?;
        let margin = match high - low > 1e-9 * high.abs().max(1e-9) {
            true => (high - low) * 0.04,
            false if high == 0.0 => 1.0,
            false => high.abs() * 0.05,
        };
        let scale = Self {
            unit,
            is_log: false,
            from: low - margin,
            to: high + margin,
            is_cut: false,
        };
        Some(scale)
    }

    /// As [`Scale::linear`], without room past the values.
    pub fn tight(unit: Unit, values: impl Iterator<Item = f64>) -> Option<Self> {
        let (from, to) = bounds(values.filter(|value| value.is_finite()))?;
        let scale = Self {
            unit,
            is_log: false,
            from,
            to: if to > from { to } else { from + 1.0 },
            is_cut: false,
        };
        Some(scale)
    }

    /// A logarithmic axis over `values`, those that are not positive left out. None without values.
    pub fn log(unit: Unit, values: impl Iterator<Item = f64>) -> Option<Self> {
        let positive = values.filter(|&value| value > 0.0 && value.is_finite());
        let mut logs: Vec<f64> = positive.map(f64::log10).collect();
        logs.sort_by(|a, b| b.total_cmp(a));
        let (&to, &smallest) = (logs.first()?, logs.last()?);
        let is_far = |pair: &[f64]| pair[0] - pair[1] > MAX_GAP || pair[1] < to - MAX_DECADES;
        let gap = logs.windows(2).find(|pair| is_far(pair));
        // A whole decade, so that the edge's label is short.
        let from = gap.map_or(smallest, |pair| (pair[0] - 0.3).floor());
        // A constant gets a third of a decade either side.
        let margin = if to - from < 0.1 {
            0.33
        } else {
            (to - from) * 0.03
        };
        let is_cut = from > smallest;
        let scale = Self {
            unit,
            is_log: true,
            from: if is_cut { from } else { from - margin },
            to: to + margin,
            is_cut,
        };
        Some(scale)
    }

    /// Where a value lies: 0 at the first end, 1 at the second. None where an axis has no place for it.
    pub fn place(&self, value: f64) -> Option<f64> {
        let value = match self.is_log {
            true if value > 0.0 => value.log10().max(self.from),
            // Zero lies with what is too small.
            true if value == 0.0 && self.is_cut => self.from,
            true => return None,
            false => value,
        };
        let place = (value - self.from) / (self.to - self.from);
        // Far outside is as good as very far outside, and shorter.
        place.is_finite().then(|| place.clamp(-9.0, 9.0))
    }

    /// The values to label, ascending.
    pub fn ticks(&self) -> Vec<Tick> {
        let mut values = if self.is_log {
            self.log_values()
        } else {
            multiples(step(self.to - self.from), self.from, self.to)
        };
        if self.unit == Unit::Percent {
            // The room past all and nothing is of no share.
            values.retain(|value| (-1e-9..1.0 + 1e-9).contains(value));
        }
        if self.is_cut {
            // The edge has a label of its own.
            let room = (self.to - self.from) * 0.06;
            values.retain(|value| value.log10() > self.from + room);
        }
        let label = |value| Tick {
            value,
            label: self.label(value),
        };
        let mut ticks: Vec<Tick> = values.into_iter().map(label).collect();
        if self.is_cut {
            let value = 10f64.powf(self.from);
            let label = format!("≤ {}", text::log_tick(10f64.powf(self.from.round())));
            ticks.insert(0, Tick { value, label });
        }
        ticks
    }

    fn label(&self, value: f64) -> String {
        match self.unit {
            Unit::Number if self.is_log => text::log_tick(value),
            Unit::Number => text::number_text(value),
            Unit::Bytes => text::bytes(value),
            Unit::Percent => {
                let step = step(self.to - self.from) * 100.0;
                text::percent(value, usize::from(step < 0.99) + usize::from(step < 0.099))
            }
        }
    }

    // Powers of ten; with fewer than three of them also their 2- and 5-fold; then plain steps.
    fn log_values(&self) -> Vec<f64> {
        let decades = multiples(((self.to - self.from) / 6.0).ceil(), self.from, self.to);
        let powers: Vec<f64> = decades
            .into_iter()
            .map(|exp| 10f64.powi(exp as i32))
            .collect();
        if powers.len() >= 3 {
            return powers;
        }
        let (low, high) = (10f64.powf(self.from), 10f64.powf(self.to));
        let mut values = Vec::new();
        for exponent in self.from.floor() as i32..=self.to.ceil() as i32 {
            let folds = [1.0, 2.0, 5.0].map(|fold| fold * 10f64.powi(exponent));
            values.extend(
                folds
                    .into_iter()
                    .filter(|value| (low..=high).contains(value)),
            );
        }
        match values.len() >= 3 {
            true => values,
            false => multiples(step(high - low), low, high),
        }
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| match bounds {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

// 1, 2 or 5 times a power of ten, so that four to eight steps fill the span.
fn step(span: f64) -> f64 {
    let power = 10f64.powf((span / 5.0).log10().floor());
    let folds = [1.0, 2.0, 5.0, 10.0].map(|fold| fold * power);
    let fits = folds.into_iter().find(|step| span / step <= 7.0);
    fits.unwrap_or(10.0 * power)
}

fn multiples(step: f64, from: f64, to: f64) -> Vec<f64> {
    let (first, last) = ((from / step - 1e-9).ceil(), (to / step + 1e-9).floor());
    // A step of zero or of nothing has no multiples; no axis needs more than a few.
    match (last - first).is_finite() {
        true => (0..=(last - first).clamp(-1.0, 50.0) as i64)
            .map(|i| (first + i as f64) * step)
            .collect(),
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Option<Scale>) -> Vec<String> {
        let ticks = scale.expect("values").ticks();
        ticks.into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn ticks_are_round() {
        let check = |scale, expect: &[&str]| assert_eq!(labels(scale), expect);
        fn of(values: &[f64]) -> impl Iterator<Item = f64> {
            values.iter().copied()
        }
        let percent = Scale::linear(Unit::Percent, of(&[0.83, 0.925]));
        check(percent, &["84 %", "86 %", "88 %", "90 %", "92 %"]);
        check(
            Scale::linear(Unit::Percent, of(&[0.0, 1.0])),
            &["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"],
        );
        check(
            Scale::tight(Unit::Number, of(&[0.0, 100.0])),
            &["0", "20", "40", "60", "80", "100"],
        );
        check(
            Scale::log(Unit::Bytes, of(&[3e6, 2e9])),
            &["10 MB", "100 MB", "1 GB"],
        );
        check(
            Scale::log(Unit::Bytes, of(&[0.0, 3e6, 2e7])),
            &["5 MB", "10 MB", "20 MB"],
        );
        check(
            Scale::log(Unit::Number, of(&[1e-30, 4e-3, 1.0])),
            &["≤ 10⁻³", "0.01", "0.1", "1"],
        );
    }

    #[test]
    fn constants_lie_in_the_middle() {
        for value in [0.0, 0.5, -3.0] {
            let scale = Scale::linear(Unit::Number, [value, value].into_iter()).expect("values");
            let place = scale.place(value).expect("finite");
            assert!((0.2..=0.8).contains(&place), "{value} at {place}");
        }
        let scale = Scale::log(Unit::Number, [7e-3; 2].into_iter()).expect("values");
        assert!((scale.place(7e-3).expect("positive") - 0.5).abs() < 1e-9);
        assert!(scale.ticks().len() >= 2);
    }

    #[test]
    fn values_without_a_place_have_none() {
        let log = Scale::log(Unit::Number, [1.0, 10.0].into_iter()).expect("values");
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(log.place(value), None, "{value}");
        }
        let linear = Scale::tight(Unit::Number, [1.0, f64::NAN, 2.0].into_iter());
        let linear = linear.expect("values");
        assert_eq!(
            (linear.place(1.0), linear.place(2.0)),
            (Some(0.0), Some(1.0))
        );
        assert_eq!(linear.place(f64::NAN), None);
        assert_eq!(linear.place(1e300), Some(9.0));
        assert_eq!(Scale::log(Unit::Number, [0.0].into_iter()), None);
    }
}
