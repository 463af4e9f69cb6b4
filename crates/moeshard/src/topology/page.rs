//! Measures as a page of HTML, with the graphs drawn.

use std::path::Path;

use anyhow::Result;
use moeshard_decentralized::classes::ClassCounts;
use moeshard_decentralized::record::RunHeader;
use moeshard_decentralized::report::{RunReport, write_html};

use super::connect::Network;
use super::measure::Measured;

/// Writes a page about topologies that nobody has trained on yet.
pub(super) fn write(
    path: &Path,
    title: &str,
    networks: &[Network],
    measured: &[Measured],
    seed: u64,
) -> Result<()> {
    let headers: Vec<RunHeader> = (networks.iter().zip(measured))
        .map(|(network, measured)| header(network, measured, seed))
        .collect();
    let runs: Vec<RunReport<'_>> = (headers.iter().zip(networks))
        .map(|(header, network)| RunReport {
            header,
            evaluations: &[],
            mixing: Some(network.schedule.mixing(0)),
            cliques: &network.schedule.cliques,
            classes: network.classes.as_ref(),
        })
        .collect();
    let mut page = Vec::new();
    write_html(title, &runs, &mut page)?;
    super::write_file(path, &page)?;
    tracing::info!("report: {}", path.display());
    Ok(())
}

fn header(network: &Network, measured: &Measured, seed: u64) -> RunHeader {
    let skew = measured.label_skew.and_then(|skew| skew.cliques);
    RunHeader {
        name: measured.name.clone(),
        topology: measured.topology.clone(),
        partition: measured.partition.clone(),
        seed,
        n_nodes: measured.n_nodes,
        n_classes: network.classes.as_ref().map_or(0, ClassCounts::n_classes),
        n_params: measured.n_params,
        period: measured.period,
        n_edges: measured.n_edges as u64,
        max_degree: measured.max_degree,
        n_components: measured.n_components,
        spectral_gap: Some(measured.spectral_gap),
        heterogeneity: measured.heterogeneity,
        mean_skew: skew.map(|skew| skew.mean),
        messages_per_round: measured.traffic.messages_per_round,
        bytes_per_round: measured.traffic.bytes_per_round,
        ..RunHeader::default()
    }
}
