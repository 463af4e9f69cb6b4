//! Label histograms: a column a node, a row a class, before and after mixing.

use std::fmt::{self, Write as _};

use super::edges::Graph;
use super::graph::write_cells;
use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;
use moeshard_charts::text::{count, percent};

/// Columns; of more nodes some are shown (averages over nodes would hide what nodes lack).
const MAX_COLUMNS: usize = 200;
/// Shades between nothing and all of a node's examples.
const N_SHADES: usize = 10;
/// Classes that a column names under the pointer.
const MAX_NAMED: usize = 3;

/// The class proportions of a run's nodes.
pub(super) struct Histograms<'a> {
    graph: &'a Graph,
    classes: &'a ClassCounts,
    /// Π: `[n_nodes, n_classes]`.
    before: Vec<Vec<f64>>,
    /// WΠ.
    after: Vec<Vec<f64>>,
}

impl<'a> Histograms<'a> {
    /// None if the classes are those of other nodes, or there is nothing of any class.
    pub(super) fn new(
        graph: &'a Graph,
        mixing: &MixingMatrix,
        classes: Option<&'a ClassCounts>,
    ) -> Option<Self> {
        let classes = classes.filter(|classes| classes.n_nodes() == graph.n_nodes)?;
        let before: Vec<Vec<f64>> = (0..graph.n_nodes)
            .map(|node| classes.proportions(node))
            .collect();
        if before.iter().flatten().all(|&share| share == 0.0) {
            return None;
        }
        let mut after = vec![vec![0.0; classes.n_classes()]; graph.n_nodes];
        for (row, col, weight) in mixing.entries() {
            let shares = after[row].iter_mut().zip(&before[col]);
            shares.for_each(|(sum, share)| *sum += weight * share);
        }
        Some(Self {
            graph,
            classes,
            before,
            after,
        })
    }

    /// Writes the histograms of nodes, of cliques if there are any, and of nodes after mixing.
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let (shown, which) = self.shown();
        self.write_strip("Each node, <i>Π</i>", &self.before, &shown, out)?;
        if !self.graph.cliques.is_empty() {
            let of_clique: Vec<Vec<f64>> = self
                .graph
                .cliques
                .iter()
                .map(|nodes| self.classes.proportions_of(nodes.iter().copied()))
                .collect();
            let of_node = |node: usize| match self.graph.clique_of[node] {
                Some(clique) => of_clique[clique].clone(),
                None => self.before[node].clone(),
            };
            let rows: Vec<Vec<f64>> = (0..self.graph.n_nodes).map(of_node).collect();
            self.write_strip("Its clique", &rows, &shown, out)?;
        }
        self.write_strip("After mixing, <i>WΠ</i>", &self.after, &shown, out)?;
        match which.is_empty() {
            true => Ok(()),
            false => write!(out, "<p class=\"note\">{which}</p>"),
        }
    }

    // The columns, and which they are if they are not all nodes: whole cliques, or nodes of all classes.
    fn shown(&self) -> (Vec<usize>, String) {
        let order = self.graph.order();
        let stride = order.len().div_ceil(MAX_COLUMNS);
        let n_nodes = count(order.len() as u64);
        match self.graph.cliques.is_empty() {
            _ if stride <= 1 => (order, String::new()),
            false => {
                let shown = order[..MAX_COLUMNS].to_vec();
                (
                    shown,
                    format!("The first {MAX_COLUMNS} of {n_nodes} nodes."),
                )
            }
            true => {
                let shown = order.into_iter().step_by(stride).collect();
                (shown, format!("One of {stride} of the {n_nodes} nodes."))
            }
        }
    }

    // The root of a share is its shade: a tenth must differ from nothing and from a third.
    fn write_strip(
        &self,
        title: &str,
        rows: &[Vec<f64>],
        shown: &[usize],
        out: &mut String,
    ) -> fmt::Result {
        let n_classes = self.classes.n_classes();
        let skew = self.skew(rows);
        write!(
            out,
            "<div class=\"strip\"><span>{title}</span><span class=\"skew\">skew {skew:.2}</span>\
             <svg class=\"cells\" viewBox=\"0 0 {} {n_classes}\" preserveAspectRatio=\"none\" \
             style=\"height:{}px\" role=\"img\" aria-label=\"Label histograms\"><g>",
            shown.len(),
            (n_classes * 7).clamp(28, 84)
        )?;
        let share = |class: usize| shown.iter().map(move |&node| rows[node][class]);
        let shade = |share: f64| (share.clamp(0.0, 1.0).sqrt() * N_SHADES as f64).round() as usize;
        let shades: Vec<usize> = (0..n_classes).flat_map(share).map(shade).collect();
        write_cells(&shades, shown.len(), N_SHADES, out)?;
        out.write_str("</g>")?;
        for (col, &node) in shown.iter().enumerate() {
            write!(
                out,
                "<rect x=\"{col}\" width=\"1\" height=\"{n_classes}\"><title>node {node}: "
            )?;
            write_shares(&rows[node], out)?;
            out.write_str("</title></rect>")?;
        }
        out.write_str("</svg></div>")
    }

    // Mean over nodes of the L1 distance from the proportions of all examples.
    fn skew(&self, rows: &[Vec<f64>]) -> f64 {
        let all = self.classes.proportions_of(0..self.graph.n_nodes);
        let distance =
            |row: &Vec<f64>| -> f64 { row.iter().zip(&all).map(|(a, b)| (a - b).abs()).sum() };
        rows.iter().map(distance).sum::<f64>() / rows.len().max(1) as f64
    }
}

/// Writes the classes with the largest shares, largest first: `class 3 50 %, class 7 50 %`.
pub(super) fn write_shares(shares: &[f64], out: &mut String) -> fmt::Result {
    let mut classes: Vec<usize> = (0..shares.len())
        .filter(|&class| shares[class] > 0.0)
        .collect();
    classes.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
    if classes.is_empty() {
        return out.write_str("no examples");
    }
    for (i, &class) in classes.iter().take(MAX_NAMED).enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        write!(
            out,
            "{separator}class {class} {}",
            percent(shares[class], 0)
        )?;
    }
    match classes.len() > MAX_NAMED {
        true => out.write_str(", …"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Two nodes of one class each, and a third of both.
    fn strips(rows: Vec<Vec<(u32, f64)>>) -> String {
        let mixing = MixingMatrix::new(rows).expect("doubly stochastic");
        let classes = ClassCounts::new(2, vec![4, 0, 0, 4, 2, 2]);
        let graph = Graph::new(&mixing, &[], Some(&classes));
        let histograms = Histograms::new(&graph, &mixing, Some(&classes)).expect("classes");
        let mut out = String::new();
        histograms.write(&mut out).expect("a string");
        out
    }

    #[test]
    fn mixing_takes_the_skew_away() {
        let third = 1.0 / 3.0;
        let complete = vec![vec![(0, third), (1, third), (2, 1.0 - 2.0 * third)]; 3];
        let out = strips(complete);
        assert!(
            out.contains("skew 0.67") && out.contains("skew 0.00"),
            "{out}"
        );
        let identity = (0..3).map(|node| vec![(node, 1.0)]).collect();
        assert_eq!(strips(identity).matches("skew 0.67").count(), 2);
    }

    #[test]
    fn columns_name_their_largest_classes() {
        let check = |shares: &[f64], expect: &str| {
            let mut out = String::new();
            write_shares(shares, &mut out).expect("a string");
            assert_eq!(out, expect);
        };
        check(&[0.2, 0.0, 0.8], "class 2 80 %, class 0 20 %");
        check(&[0.25; 4], "class 0 25 %, class 1 25 %, class 2 25 %, …");
        check(&[0.0], "no examples");
    }

    #[test]
    fn classes_of_other_nodes_are_left_out() {
        let mixing = MixingMatrix::new(vec![vec![(0, 1.0)]]).expect("doubly stochastic");
        let graph = Graph::new(&mixing, &[], None);
        let two = ClassCounts::new(2, vec![1; 4]);
        assert!(Histograms::new(&graph, &mixing, Some(&two)).is_none());
        let none = ClassCounts::new(2, vec![0; 2]);
        assert!(Histograms::new(&graph, &mixing, Some(&none)).is_none());
        assert!(Histograms::new(&graph, &mixing, None).is_none());
    }
}
