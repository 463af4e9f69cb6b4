//! The little of SVG that the pictures need, written short: pages hold thousands of coordinates.

use std::fmt::{self, Display, Write as _};

/// A coordinate with one decimal, without what says nothing (`12` for `12.04`, `0` for `-0.01`).
#[derive(Clone, Copy)]
pub struct Coord(pub f64);

impl Display for Coord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Adding zero makes -0 a plain 0.
        let rounded = (self.0 * 10.0).round() / 10.0 + 0.0;
        match rounded.is_finite() {
            true => write!(f, "{rounded}"),
            false => f.write_str("0"),
        }
    }
}

/// The `d` of a path.
#[derive(Clone, Debug, Default)]
pub struct Path(String);

impl Path {
    /// Begins a new line at a point.
    pub fn start(&mut self, (x, y): (f64, f64)) {
        self.push('M', x, y);
    }

    /// A line to a point.
    pub fn line(&mut self, (x, y): (f64, f64)) {
        self.push('L', x, y);
    }

    /// A horizontal line of some length from a point: one run of cells of a picture.
    pub fn run(&mut self, (x, y): (f64, f64), len: usize) {
        self.push('M', x, y);
        let _ = write!(self.0, "h{len}");
    }

    /// Back to the start of the line.
    pub fn close(&mut self) {
        self.0.push('Z');
    }

    /// Whether nothing is drawn.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    // Writing to a string cannot fail.
    fn push(&mut self, command: char, x: f64, y: f64) {
        let separator = if Coord(y).to_string().starts_with('-') {
            ""
        } else {
            " "
        };
        let _ = write!(self.0, "{command}{}{separator}{}", Coord(x), Coord(y));
    }
}

impl Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short_and_finite() {
        let texts = [12.04, -0.01, 0.25, -3.96, f64::NAN].map(|value| Coord(value).to_string());
        assert_eq!(texts, ["12", "0", "0.3", "-4", "0"]);
    }

    #[test]
    fn paths_are_short() {
        let mut path = Path::default();
        path.start((1.0, 2.5));
        path.line((3.0, -4.0));
        path.close();
        path.run((0.0, 0.5), 7);
        assert_eq!(path.to_string(), "M1 2.5L3-4ZM0 0.5h7");
    }
}
