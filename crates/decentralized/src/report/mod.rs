//! One page of HTML about one or several runs: a table, charts and the topologies.
//!
//! The page needs nothing else: no network, no script. Charts, their axes and the style sheet of all pages
//! are those of `moeshard-charts`.
//!
//! In reading order:
//! - `page`: the whole, with what `style.css` adds.
//! - `table`, `columns`: the runs side by side.
//! - `plots`: what is plotted.
//! - `edges`, `layout`, `graph`: the graph of a topology.
//! - `histogram`: classes of nodes before and after mixing.

use std::io;

use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;
use crate::record::{Evaluation, RunHeader};
use crate::topology::Clique;

mod columns;
mod edges;
mod graph;
mod histogram;
mod layout;
mod page;
mod plots;
mod table;

pub use moeshard_charts::text::bytes;

/// What a page tells of one run.
#[derive(Clone, Copy, Debug)]
pub struct RunReport<'a> {
    /// What was set and measured before the run. Settings of training that are empty or zero are left
    /// out: a page about topologies alone has none.
    pub header: &'a RunHeader,
    /// In the order of rounds; none for a page about topologies alone.
    pub evaluations: &'a [Evaluation],
    /// Whose graph is drawn, the first one of a schedule; None for no picture.
    pub mixing: Option<&'a MixingMatrix>,
    /// The cliques that nodes are divided into, if any.
    pub cliques: &'a [Clique],
    /// The examples of each node, if they are known.
    pub classes: Option<&'a ClassCounts>,
}

/// Writes the page about `runs`, in their order. Without evaluations it is about topologies alone.
///
/// The same runs give the same bytes. Text is escaped, and numbers that are not finite leave gaps.
///
/// # Errors
/// Whatever `out` gives.
pub fn write_html(title: &str, runs: &[RunReport<'_>], mut out: impl io::Write) -> io::Result<()> {
    let mut page = String::new();
    page::write_page(title, runs, &mut page).map_err(io::Error::other)?;
    out.write_all(page.as_bytes())
}
