//! Charts on pages of HTML that need nothing else: no network, no script.
//!
//! Pictures are SVG, drawn here rather than by a plotting crate: `plotters` writes integer coordinates and fixed
//! colours and sizes, so a page of its pictures has no dark scheme, nothing under the pointer and no lines to hide.
//!
//! In reading order: [`page`] is the head of a page with its style sheet `style.css`; [`chart`] draws, on axes of
//! [`scale`], with `labels` beside it; [`svg`] and [`text`] write coordinates and numbers, short.

pub mod chart;
mod labels;
pub mod page;
pub mod scale;
pub mod svg;
pub mod text;
