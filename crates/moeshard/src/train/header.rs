//! What is known of a run before it starts.

use moeshard_decentralized::measures::{Heterogeneity, LabelSkew, Traffic};
use moeshard_decentralized::record::RunHeader;
use moeshard_decentralized::train::absence::Absences;
use moeshard_decentralized::train::{Method, MixOrder, Settings};

use super::args::TrainConfig;
use super::run::Network;
use super::task::LoadedTask;

/// The first record of a run.
#[must_use]
pub(super) fn header(config: &TrainConfig, task: &LoadedTask, network: &Network) -> RunHeader {
    let settings = &config.settings;
    let (momentum, averages) = match settings.method {
        Method::DSgd {
            momentum,
            clique_averaging,
            ..
        } => (momentum, clique_averaging),
        _ => (0.0, false),
    };
    let n_params = task.model.n_params();
    let traffic = Traffic::of(&network.schedule, n_params, averages);
    // What is tracked goes the way of the models.
    let rows_a_link = if settings.method == Method::GradientTracking {
        2.0
    } else {
        1.0
    };
    RunHeader {
        name: network.topology.clone(),
        topology: network.topology.clone(),
        algorithm: algorithm(settings),
        model: task.classifier.clone(),
        task: config.task.task.clone(),
        partition: config.partition.0.clone(),
        seed: settings.seed,
        n_nodes: config.n_nodes,
        n_classes: task.train.n_classes,
        n_params,
        epochs: config.epochs as f64,
        learning_rate: f64::from(settings.learning_rate),
        batch_size: settings.batch_size.get(),
        momentum: f64::from(momentum),
        period: network.schedule.rounds.len(),
        n_edges: network.links.n_edges as u64,
        max_degree: network
            .links
            .max_out_degree
            .max(network.links.max_in_degree),
        n_components: network.links.n_components,
        spectral_gap: Some(network.spectrum.gap()),
        heterogeneity: Some(Heterogeneity::of_schedule(
            &network.schedule,
            &network.classes,
            1.0,
        )),
        mean_skew: (!network.schedule.cliques.is_empty())
            .then(|| LabelSkew::of_cliques(&network.schedule.cliques, &network.classes).mean),
        messages_per_round: rows_a_link * traffic.messages,
        bytes_per_round: rows_a_link * traffic.bytes,
    }
}

/// The method, and whatever is not as usual.
fn algorithm(settings: &Settings) -> String {
    let mut text = settings.method.name().to_owned();
    if let Method::DSgd {
        order,
        clique_averaging,
        ..
    } = settings.method
    {
        if clique_averaging {
            text += " + clique averaging";
        }
        if order == MixOrder::BeforeStep {
            text += ", mixed before the step";
        }
    }
    match settings.start_alike {
        Some(true) => text += ", start alike",
        Some(false) => text += ", start apart",
        None => {}
    }
    let Absences {
        straggle,
        leave,
        come_back,
    } = settings.absences;
    if straggle > 0.0 {
        text += &format!(", straggle {straggle}");
    }
    if leave > 0.0 {
        text += &format!(", leave {leave}, come back {come_back}");
    }
    text
}
