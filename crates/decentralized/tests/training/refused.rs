//! What cannot be trained, in a sentence each.

use moeshard_decentralized::measures::Spectrum;
use moeshard_decentralized::topology::Ring;
use moeshard_decentralized::train::absence::Absences;
use moeshard_decentralized::train::transport::InProcess;
use moeshard_decentralized::train::{Method, MixOrder, Settings, TrainError, Trainer};

use crate::support::{Problem, connect, d_sgd, settings};

fn error(problem: &Problem, n_nodes: usize, settings: Settings) -> String {
    let schedule = connect(&Ring, n_nodes);
    let trainer = Trainer::new(problem.task(), &schedule, settings, Box::new(InProcess));
    trainer.expect_err("refused").to_string()
}

#[test]
fn settings_out_of_range_are_named() {
    let check = |settings: Settings, expected: &str| {
        assert_eq!(error(&Problem::new(5), 5, settings), expected);
    };
    let learning_rate = |learning_rate| Settings {
        learning_rate,
        ..settings()
    };
    check(
        learning_rate(0.0),
        "learning rate is 0, expected a positive number",
    );
    check(
        learning_rate(f32::NAN),
        "learning rate is NaN, expected a positive number",
    );
    let method = |method| Settings {
        method,
        ..settings()
    };
    check(
        method(d_sgd(MixOrder::AfterStep, 1.0, false)),
        "momentum is 1, expected from 0 to below 1",
    );
    check(
        method(d_sgd(MixOrder::AfterStep, 0.0, true)),
        "clique averaging is asked for on one with no cliques, expected a topology in which every \
         node is in one clique, such as d-cliques",
    );
    let absences = Absences {
        straggle: 1.5,
        ..Absences::default()
    };
    check(
        Settings {
            absences,
            ..settings()
        },
        "straggle is 1.5, expected a probability from 0 to 1",
    );
}

#[test]
fn parts_that_disagree_are_named() {
    let mut problem = Problem::new(5);
    assert_eq!(
        error(&problem, 6, settings()),
        "nodes: 6 in the topology, 5 in the partition"
    );
    problem.partition.nodes[3].clear();
    assert_eq!(error(&problem, 5, settings()), "node 3 has no examples");
    let mut problem = Problem::new(5);
    problem.test.n_features = 8;
    assert_eq!(
        error(&problem, 5, settings()),
        "features: 7 in the model, 8 in the data"
    );
}

#[test]
fn a_run_that_diverges_stops() {
    let problem = Problem::new(5);
    let schedule = connect(&Ring, 5);
    let settings = Settings {
        learning_rate: f32::MAX,
        ..settings()
    };
    let mut trainer = problem.trainer(&schedule, &settings);
    let result = (0..50).try_for_each(|_| trainer.round());
    assert!(
        matches!(result, Err(TrainError::Diverged { .. })),
        "{result:?}"
    );
}

#[test]
fn d2_needs_a_suitable_matrix() {
    let schedule = connect(&Ring, 5);
    let check = |method: Method, smallest| method.check_topology("ring", &schedule, smallest);
    assert!(check(Method::D2, Some(-0.33)).is_ok());
    assert_eq!(
        check(Method::D2, Some(-0.34))
            .expect_err("too small")
            .to_string(),
        "d2 needs one symmetric mixing matrix with all eigenvalues above -1/3, and ring has a smallest \
         eigenvalue of -0.340"
    );
    assert!(check(Method::D2, None).is_err());
    // Even rings have −1/3 itself, give or take a rounding.
    for n_nodes in [4, 6, 10, 50, 100] {
        let smallest = Spectrum::of(&connect(&Ring, n_nodes)).smallest_eigenvalue;
        assert!(smallest.is_some_and(|smallest| (smallest + 1.0 / 3.0).abs() < 1e-9));
        assert!(check(Method::D2, smallest).is_err(), "{n_nodes}");
    }
    let of_odd = Spectrum::of(&connect(&Ring, 11)).smallest_eigenvalue;
    assert!(check(Method::D2, of_odd).is_ok());
    assert!(check(Method::GradientTracking, None).is_ok());
}
