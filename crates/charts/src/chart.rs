//! A chart: one line a run, with a band around it where there is one, labelled at its end.

use std::fmt::{self, Write as _};

use crate::labels::moved_apart;
use crate::scale::Scale;
use crate::svg::{Coord, Path};
use crate::text::{Escaped, shortened};

/// All sizes are units of the picture; about one pixel on a wide screen.
const HEIGHT: f64 = 320.0;
const WIDTH: f64 = 560.0;
const LEFT: f64 = 58.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;
/// Right of the plot, without and with labels at the ends of lines.
const MARGIN: f64 = 12.0;
const LEADER: f64 = 16.0;
/// A label's line, the width of its characters in the widest of usual fonts, and the most characters.
const LABEL_HEIGHT: f64 = 15.0;
const LABEL_CHAR: f64 = 7.6;
const LABEL_CHARS: usize = 17;
/// More labels than this would not fit below one another.
const MAX_LABELS: usize = 16;
/// Points of a line that tell their numbers under the pointer; the others would only make pages heavy.
const MAX_HOVER: usize = 30;
/// Points of a line; more than the picture has pixels show nothing more.
const MAX_POINTS: usize = 300;

/// What a chart shows.
pub struct Chart<'a> {
    /// Read aloud instead of the picture.
    pub title: &'a str,
    /// What the horizontal axis is.
    pub x_label: &'a str,
    /// The horizontal axis.
    pub x: Scale,
    /// The vertical axis.
    pub y: Scale,
    /// In the order in which they are drawn.
    pub lines: Vec<Line<'a>>,
}

/// One line, of a run or of whatever else is compared.
pub struct Line<'a> {
    /// Gives it its colour.
    pub run_idx: usize,
    /// Its label.
    pub name: &'a str,
    /// From left to right.
    pub points: Vec<Point>,
}

/// A point of a line.
pub struct Point {
    /// Where it lies on the horizontal axis.
    pub x: f64,
    /// Where it lies on the vertical axis.
    pub y: f64,
    /// From the lowest to the highest value around `y`.
    pub band: Option<(f64, f64)>,
    /// Told under the pointer.
    pub title: String,
}

impl Chart<'_> {
    /// Writes the chart as SVG. On narrow screens the style sheet cuts the labels off (`--wide` is how
    /// much wider than the rest the picture is) so that the rest stays large.
    pub fn write(&self, out: &mut String) -> fmt::Result {
        let right = self.right_margin();
        let wide = WIDTH / (WIDTH - right + MARGIN);
        write!(
            out,
            "<div class=\"plot\" style=\"--wide:{wide:.3}\"><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             role=\"img\" aria-label=\"{}\">",
            Escaped(self.title)
        )?;
        let frame = Frame {
            width: WIDTH - LEFT - right,
            height: HEIGHT - TOP - BOTTOM,
        };
        self.write_axes(&frame, out)?;
        self.write_lines(&frame, out)?;
        if right > MARGIN {
            self.write_labels(&frame, out)?;
        }
        out.write_str("</svg></div>")
    }

    // Wide enough for the longest label, if there are any.
    fn right_margin(&self) -> f64 {
        if self.lines.len() < 2 || self.lines.len() > MAX_LABELS {
            return MARGIN;
        }
        let n_chars = |line: &Line<'_>| line.name.chars().count().min(LABEL_CHARS);
        let longest = self.lines.iter().map(n_chars).max().unwrap_or(0);
        LEADER + 4.0 + longest as f64 * LABEL_CHAR
    }

    fn write_axes(&self, frame: &Frame, out: &mut String) -> fmt::Result {
        let (left, bottom) = (LEFT, TOP + frame.height);
        let right = left + frame.width;
        let mut grid = Path::default();
        let mut labels = String::new();
        for tick in self.y.ticks() {
            let Some(y) = self.y.place(tick.value) else {
                continue;
            };
            let y = bottom - y * frame.height;
            grid.start((left, y));
            grid.line((right, y));
            let (x, y) = (Coord(left - 8.0), Coord(y + 4.0));
            write!(
                labels,
                "<text class=\"e\" x=\"{x}\" y=\"{y}\">{}</text>",
                tick.label
            )?;
        }
        for tick in self.x.ticks() {
            let Some(x) = self.x.place(tick.value) else {
                continue;
            };
            let x = left + x * frame.width;
            grid.start((x, bottom));
            grid.line((x, bottom + 4.0));
            let (x, y) = (Coord(x), Coord(bottom + 18.0));
            write!(
                labels,
                "<text class=\"m\" x=\"{x}\" y=\"{y}\">{}</text>",
                tick.label
            )?;
        }
        let (x, y) = (Coord(right), Coord(HEIGHT - 5.0));
        write!(
            out,
            "<path class=\"grid\" d=\"{grid}\"/>{labels}<text class=\"e what\" x=\"{x}\" \
             y=\"{y}\">{}</text>",
            Escaped(self.x_label)
        )
    }

    // A picture within the picture cuts off what is outside the axes. Bands lie below all lines.
    fn write_lines(&self, frame: &Frame, out: &mut String) -> fmt::Result {
        // Discs on the last points are whole.
        let (width, height) = (Coord(frame.width + 5.0), Coord(frame.height));
        write!(
            out,
            "<svg x=\"{LEFT}\" y=\"{TOP}\" width=\"{width}\" height=\"{height}\">"
        )?;
        for line in &self.lines {
            let band = self.band(frame, line);
            if !band.is_empty() {
                write!(
                    out,
                    "<path class=\"run band r{}\" d=\"{band}\"/>",
                    line.run_idx
                )?;
            }
        }
        for line in &self.lines {
            let path = self.path(frame, line);
            write!(out, "<g class=\"run r{}\">", line.run_idx)?;
            write!(out, "<path class=\"line\" d=\"{path}\"/>")?;
            self.write_hover(frame, line, out)?;
            out.write_str("</g>")?;
        }
        out.write_str("</svg>")
    }

    fn point(&self, frame: &Frame, x: f64, y: f64) -> Option<(f64, f64)> {
        let (x, y) = (self.x.place(x)?, self.y.place(y)?);
        Some((x * frame.width, (1.0 - y) * frame.height))
    }

    // A point without a place breaks the line.
    fn path(&self, frame: &Frame, line: &Line<'_>) -> Path {
        let mut path = Path::default();
        let mut is_broken = true;
        for point in thinned(&line.points, MAX_POINTS) {
            let Some(place) = self.point(frame, point.x, point.y) else {
                is_broken = true;
                continue;
            };
            match is_broken {
                true => path.start(place),
                false => path.line(place),
            }
            is_broken = false;
        }
        path
    }

    // Along the upper ends and back along the lower ones.
    fn band(&self, frame: &Frame, line: &Line<'_>) -> Path {
        let ends = thinned(&line.points, MAX_POINTS).filter_map(|point| {
            let (low, high) = point.band?;
            let upper = self.point(frame, point.x, high)?;
            Some((upper, self.point(frame, point.x, low)?))
        });
        let (upper, lower): (Vec<_>, Vec<_>) = ends.unzip();
        let mut path = Path::default();
        if upper.len() < 2 {
            return path;
        }
        path.start(upper[0]);
        let back = lower.into_iter().rev();
        upper
            .into_iter()
            .skip(1)
            .chain(back)
            .for_each(|place| path.line(place));
        path.close();
        path
    }

    // Discs that show under the pointer, and the last point always.
    fn write_hover(&self, frame: &Frame, line: &Line<'_>, out: &mut String) -> fmt::Result {
        let last = line.points.last();
        for point in thinned(&line.points, MAX_HOVER) {
            let Some((x, y)) = self.point(frame, point.x, point.y) else {
                continue;
            };
            let is_last = last.is_some_and(|last| std::ptr::eq(last, point));
            let (class, radius) = if is_last {
                ("pt last", 3.5)
            } else {
                ("pt", 6.0)
            };
            write!(
                out,
                "<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"{radius}\"><title>{}: {}</title></circle>",
                Coord(x),
                Coord(y),
                Escaped(&shortened(line.name, 60)),
                Escaped(&point.title)
            )?;
        }
        Ok(())
    }

    // Names beside the plot, each led to from the end of its line.
    fn write_labels(&self, frame: &Frame, out: &mut String) -> fmt::Result {
        let ends = self.lines.iter().filter_map(|line| {
            let drawn = line.points.iter().rev();
            let mut places = drawn.filter_map(|point| self.point(frame, point.x, point.y));
            Some((line, places.next()?))
        });
        let ends: Vec<_> = ends.collect();
        let wanted: Vec<f64> = ends.iter().map(|(_, (_, y))| *y).collect();
        let low = -LABEL_HEIGHT / 2.0;
        let places = moved_apart(
            &wanted,
            LABEL_HEIGHT,
            low,
            frame.height + LABEL_HEIGHT / 2.0,
        );
        let right = LEFT + frame.width;
        out.write_str("<g class=\"ends\">")?;
        for ((line, (x, y)), label_y) in ends.into_iter().zip(places) {
            let y = y.clamp(0.0, frame.height);
            let mut leader = Path::default();
            leader.start((LEFT + x + 5.0, TOP + y));
            leader.line((right + 6.0, TOP + y));
            leader.line((right + LEADER - 3.0, TOP + label_y));
            write!(
                out,
                "<g class=\"run r{}\"><path class=\"leader\" d=\"{leader}\"/><text x=\"{}\" \
                 y=\"{}\">{}</text></g>",
                line.run_idx,
                Coord(right + LEADER),
                Coord(TOP + label_y + 4.0),
                Escaped(&shortened(line.name, LABEL_CHARS))
            )?;
        }
        out.write_str("</g>")
    }
}

// The plot within its axes.
struct Frame {
    width: f64,
    height: f64,
}

// At most about `n_points` of the points, evenly, with the last.
fn thinned(points: &[Point], n_points: usize) -> impl Iterator<Item = &Point> {
    let stride = points.len().div_ceil(n_points).max(1);
    let last = points.len().saturating_sub(1);
    let is_kept = move |i: usize| (last - i).is_multiple_of(stride);
    points
        .iter()
        .enumerate()
        .filter_map(move |(i, point)| is_kept(i).then_some(point))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::Unit;

    fn chart(points: Vec<(f64, f64)>) -> String {
        let x = Scale::tight(Unit::Number, points.iter().map(|point| point.0));
        let y = Scale::linear(Unit::Number, points.iter().map(|point| point.1));
        let points = points.into_iter().map(|(x, y)| Point {
            x,
            y,
            band: Some((y - 1.0, y + 1.0)),
            title: String::new(),
        });
        let chart = Chart {
            title: "title",
            x_label: "x",
            x: x.expect("points"),
            y: y.expect("points"),
            lines: vec![Line {
                run_idx: 0,
                name: "a",
                points: points.collect(),
            }],
        };
        let mut out = String::new();
        chart.write(&mut out).expect("a string");
        out
    }

    #[test]
    fn points_that_are_no_numbers_break_the_line() {
        let svg = chart(vec![
            (0.0, 0.0),
            (1.0, 1.0),
            (2.0, f64::NAN),
            (3.0, 0.0),
            (4.0, 1.0),
        ]);
        let (_, line) = svg.split_once("<path class=\"line\" d=\"").expect("a line");
        let line = line.split_once('"').expect("its end").0;
        // 490 by 270: the plot without labels.
        assert_eq!(line, "M0 260L122.5 10M367.5 260L490 10");
    }

    #[test]
    fn long_runs_are_thinned_and_keep_their_last_point() {
        let points = |n: usize| -> Vec<(f64, f64)> { (0..n).map(|i| (i as f64, 0.5)).collect() };
        for n in [1, 2, 30, 31, 301, 5000] {
            let svg = chart(points(n));
            assert_eq!(svg.matches("pt last").count(), 1, "{n} points");
            assert!(svg.matches("<circle").count() <= MAX_HOVER + 1);
            assert!(svg.len() < 20_000, "{} bytes of {n} points", svg.len());
        }
    }
}
