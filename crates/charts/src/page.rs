//! What pages have in common: their head, the colours of lines, and the legend.

use std::fmt::{self, Write as _};

use crate::text::Escaped;

const STYLE: &str = include_str!("style.css");

/// Colours of lines in the style sheet.
const N_COLOURS: usize = 8;
/// Dashes that tell lines of one colour apart.
const DASHES: [&str; 3] = ["none", "7 3", "2 3"];

/// Writes a page up to its heading, `header` left open. `style` is what it needs beside the style sheet of all pages;
/// `n_lines` is how many lines have a colour of their own.
///
/// # Errors
/// Whatever `out` gives.
pub fn write_head(title: &str, style: &str, n_lines: usize, out: &mut String) -> fmt::Result {
    write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{0}</title><style>{STYLE}{style}",
        Escaped(title)
    )?;
    write_line_styles(n_lines, out)?;
    write!(
        out,
        "</style></head><body><header><h1>{}</h1>",
        Escaped(title)
    )
}

// Each line has a colour; a box hides it and the pointer brings it forward, by style sheet alone.
fn write_line_styles(n_lines: usize, out: &mut String) -> fmt::Result {
    for idx in 0..n_lines {
        let dash = DASHES[idx / N_COLOURS % DASHES.len()];
        let colour = idx % N_COLOURS;
        write!(
            out,
            ".r{idx}{{--c:var(--c{colour});--dash:{dash}}}\
             body:has(#s{idx}:not(:checked)) :is(.run,.topology).r{idx}{{display:none}}\
             body:has(.legend .r{idx}:hover) .run:not(.r{idx}){{opacity:.12}}"
        )?;
    }
    Ok(())
}

/// Writes a box for each line, which shows or hides it everywhere on the page. `label` is read aloud.
///
/// # Errors
/// Whatever `out` gives.
pub fn write_legend<'a>(
    label: &str,
    names: impl Iterator<Item = &'a str>,
    out: &mut String,
) -> fmt::Result {
    write!(
        out,
        "<div class=\"legend\" role=\"group\" aria-label=\"{}\">",
        Escaped(label)
    )?;
    for (idx, name) in names.enumerate() {
        write!(
            out,
            "<label class=\"r{idx}\"><input type=\"checkbox\" id=\"s{idx}\" checked>\
             {}</label>",
            Escaped(name)
        )?;
    }
    out.write_str("</div>")
}
