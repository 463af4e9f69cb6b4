//! Measures for people.

use std::io::{self, Write};

use moeshard_decentralized::measures::LabelSkew;
use moeshard_decentralized::report::bytes;

use super::measure::{Exchanged, Measured};
use crate::display::{Table, count};

/// Writes the measures of one topology, a line each.
pub(super) fn write_one(measured: &Measured, out: &mut dyn Write) -> io::Result<()> {
    let m = measured;
    let mut line = |key: &str, value: &str| writeln!(out, "{key:<26} {value}");
    line("topology", &m.topology)?;
    line("nodes", &count(m.n_nodes as u64))?;
    line("classes", &m.partition)?;
    if m.period > 1 {
        line("rounds until it repeats", &count(m.period as u64))?;
    }
    line("edges", &count(m.n_edges as u64))?;
    let degree = format!("{:.2} in the mean, {} at most", m.mean_degree, m.max_degree);
    line("neighbours in a round", &degree)?;
    line("components", &components(m.n_components))?;
    line("spectral gap", &short(m.spectral_gap))?;
    line("contraction a round", &short(m.contraction_per_round))?;
    let smallest = m.smallest_eigenvalue.map(short);
    let smallest = smallest.unwrap_or_else(|| "– (not one symmetric matrix)".to_owned());
    line("smallest eigenvalue", &smallest)?;
    if let (Some(h), Some(skew)) = (m.heterogeneity, m.label_skew) {
        line(
            "heterogeneity H",
            &format!(
                "bias {} + variance {} = {}",
                short(h.bias),
                short(h.variance),
                short(h.total())
            ),
        )?;
        line("label skew of nodes", &spread(skew.nodes))?;
        line("  of neighbourhoods", &spread(skew.neighbourhoods))?;
        if let Some(cliques) = skew.cliques {
            let name = format!("  of {} cliques", count(m.n_cliques as u64));
            line(&name, &spread(cliques))?;
        }
    }
    line("messages a round", &exchanged(&m.traffic, m.n_params))?;
    if let Some(traffic) = &m.traffic_with_clique_averaging {
        line("  with clique averaging", &exchanged(traffic, m.n_params))?;
    }
    Ok(())
}

/// Writes the measures of several topologies, a row each.
pub(super) fn write_all(measured: &[Measured], out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new([
        "topology",
        "edges",
        "mean degree",
        "max",
        "components",
        "gap",
        "contraction",
        "H bias",
        "variance",
        "skew",
        "of cliques",
        "messages",
        "bytes a round",
    ]);
    for m in measured {
        let skew = |of: fn(&Measured) -> Option<f64>| optional(of(m));
        table.row([
            m.name.clone(),
            count(m.n_edges as u64),
            format!("{:.2}", m.mean_degree),
            m.max_degree.to_string(),
            m.n_components.to_string(),
            short(m.spectral_gap),
            short(m.contraction_per_round),
            optional(m.heterogeneity.map(|h| h.bias)),
            optional(m.heterogeneity.map(|h| h.variance)),
            skew(|m| Some(m.label_skew?.neighbourhoods.mean)),
            skew(|m| Some(m.label_skew?.cliques?.mean)),
            whole(m.traffic.messages_per_round),
            bytes(m.traffic.bytes_per_round),
        ]);
    }
    table.write(out)
}

fn components(n_components: usize) -> String {
    match n_components {
        1 => "1: connected".to_owned(),
        n => format!(
            "{}: disconnected, so that models of different ones never agree",
            count(n as u64)
        ),
    }
}

fn spread(skew: LabelSkew) -> String {
    format!(
        "{} in the mean, {} at most",
        short(skew.mean),
        short(skew.max)
    )
}

fn exchanged(traffic: &Exchanged, n_params: usize) -> String {
    format!(
        "{}, {} for models of {} parameters; {} from the busiest node",
        whole(traffic.messages_per_round),
        bytes(traffic.bytes_per_round),
        count(n_params as u64),
        bytes(traffic.max_bytes_sent_per_round),
    )
}

/// A mean over rounds, which is a whole number for most topologies.
fn whole(mean: f64) -> String {
    match mean.fract() == 0.0 {
        true => count(mean as u64),
        false => format!("{mean:.1}"),
    }
}

fn optional(number: Option<f64>) -> String {
    number.map_or_else(|| "–".to_owned(), short)
}

/// Four digits, and 0 for what rounding leaves of zero.
pub(super) fn short(number: f64) -> String {
    match number.abs() {
        size if size < 1e-12 => "0".to_owned(),
        size if size < 1e-3 => format!("{number:.2e}"),
        _ => format!("{number:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let check = |number, expect: &str| assert_eq!(short(number), expect);
        check(0.333_33, "0.3333");
        check(-1.0 / 3.0, "-0.3333");
        check(3e-17, "0");
        check(0.000_123_4, "1.23e-4");
        check(1.0, "1.0000");
        assert_eq!((whole(1980.0), whole(4.5)), ("1,980".into(), "4.5".into()));
    }
}
