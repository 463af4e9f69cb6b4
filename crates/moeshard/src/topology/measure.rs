//! What is good or bad about a topology.

use moeshard_decentralized::measures::{Heterogeneity, LabelSkew, Links, Spectrum, Traffic};
use serde::Serialize;

use super::connect::Network;

/// The variance of the noise in H. STL-FW weighs its part by λ instead.
const NOISE: f64 = 1.0;

/// Every measure of one topology; `--json` writes it as it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// As it was given: the rule with its parameters, or the file.
    pub name: String,
    /// The rule with its parameters, also that of a file.
    pub topology: String,
    /// What nodes hold, in words.
    pub partition: String,
    /// Number of nodes.
    pub n_nodes: usize,
    /// Rounds after which it repeats.
    pub period: usize,
    /// Pairs of nodes that exchange in some round.
    pub n_edges: usize,
    /// The same by direction.
    pub n_links: usize,
    /// Nodes that a node sends to in a round, in the mean.
    pub mean_degree: f64,
    /// Nodes that one sends to, or receives from, in a round, at most.
    pub max_degree: usize,
    /// Parts that nothing passes between.
    pub n_components: usize,
    /// Cliques that nodes are divided into; 0 for most topologies.
    pub n_cliques: usize,
    /// 1 less the share of the distance between models that a period leaves at worst.
    pub spectral_gap: f64,
    /// That share, for a round.
    pub contraction_per_round: f64,
    /// Of a symmetric matrix that is the same in every round.
    pub smallest_eigenvalue: Option<f64>,
    /// Of labels, the noise being 1; None if nobody knows what nodes hold.
    pub heterogeneity: Option<Heterogeneity>,
    /// None if nobody knows what nodes hold.
    pub label_skew: Option<Skews>,
    /// Parameters of a model.
    pub n_params: usize,
    /// Models alone.
    pub traffic: Exchanged,
    /// Gradients within cliques as well; None without cliques.
    pub traffic_with_clique_averaging: Option<Exchanged>,
}

/// How far classes are from those of all nodes, 0 to 2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Skews {
    /// Of each node.
    pub nodes: LabelSkew,
    /// Of what a node sees by mixing.
    pub neighbourhoods: LabelSkew,
    /// Of each clique; None without cliques.
    pub cliques: Option<LabelSkew>,
}

/// What goes over the network in a round, in the mean over rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Exchanged {
    /// Messages of all nodes.
    pub messages_per_round: f64,
    /// Their bytes.
    pub bytes_per_round: f64,
    /// Bytes that the busiest node sends.
    pub max_bytes_sent_per_round: f64,
}

impl Measured {
    /// Measures a network for models of `n_params` parameters.
    #[must_use]
    pub fn of(network: &Network, n_params: usize) -> Self {
        let schedule = &network.schedule;
        let links = Links::of(schedule);
        let spectrum = Spectrum::of(schedule);
        let classes = network.classes.as_ref();
        let has_cliques = !schedule.cliques.is_empty();
        Self {
            name: network.name.clone(),
            topology: network.topology.clone(),
            partition: network.partition.clone(),
            n_nodes: schedule.mixing(0).n_nodes(),
            period: schedule.rounds.len(),
            n_edges: links.n_edges,
            n_links: links.n_links,
            mean_degree: links.mean_degree,
            max_degree: links.max_out_degree.max(links.max_in_degree),
            n_components: links.n_components,
            n_cliques: schedule.cliques.len(),
            spectral_gap: spectrum.gap(),
            contraction_per_round: spectrum.contraction_per_round,
            smallest_eigenvalue: spectrum.smallest_eigenvalue,
            heterogeneity: classes
                .map(|classes| Heterogeneity::of_schedule(schedule, classes, NOISE)),
            label_skew: classes.map(|classes| Skews {
                nodes: LabelSkew::of_nodes(classes),
                neighbourhoods: LabelSkew::of_schedule(schedule, classes),
                cliques: has_cliques.then(|| LabelSkew::of_cliques(&schedule.cliques, classes)),
            }),
            n_params,
            traffic: Exchanged::from(Traffic::of(schedule, n_params, false)),
            traffic_with_clique_averaging: has_cliques
                .then(|| Exchanged::from(Traffic::of(schedule, n_params, true))),
        }
    }
}

impl From<Traffic> for Exchanged {
    fn from(traffic: Traffic) -> Self {
        Self {
            messages_per_round: traffic.messages,
            bytes_per_round: traffic.bytes,
            max_bytes_sent_per_round: traffic.max_bytes_sent,
        }
    }
}
