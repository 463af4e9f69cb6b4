//! The same bits for any number of threads.

use moeshard_decentralized::topology::{Complete, Exponential, Ring, Topology};
use moeshard_decentralized::train::absence::Absences;
use moeshard_decentralized::train::{Method, MixOrder, Settings};

use crate::support::{Problem, connect, d_sgd, settings};

#[test]
fn threads_change_no_bit() {
    let problem = Problem::new(12);
    for method in [
        d_sgd(MixOrder::AfterStep, 0.5, false),
        d_sgd(MixOrder::BeforeStep, 0.0, false),
        Method::GradientTracking,
        Method::D2,
    ] {
        let schedule = connect(&Ring, 12);
        let with = |n_threads| {
            let settings = Settings {
                method,
                n_threads,
                ..settings()
            };
            problem.models(&schedule, &settings, 7)
        };
        let one = with(1);
        assert!(one == with(2) && one == with(5), "{method:?}");
    }
}

#[test]
fn another_seed_is_another_run() {
    let problem = Problem::new(6);
    let schedule = connect(&Complete, 6);
    let with = |seed| {
        let settings = Settings { seed, ..settings() };
        problem.models(&schedule, &settings, 3)
    };
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
}

#[test]
fn nodes_that_miss_rounds_are_left_out() {
    let problem = Problem::new(12);
    let absences = Absences {
        straggle: 0.3,
        leave: 0.1,
        come_back: 0.5,
    };
    let settings = Settings {
        absences,
        ..settings()
    };
    let run = |topology: &dyn Topology| {
        let schedule = connect(topology, 12);
        let mut trainer = problem.trainer(&schedule, &settings);
        (0..40).for_each(|_| trainer.round().expect("a round"));
        (trainer.n_messages(), trainer.absence_bias())
    };
    // A symmetric matrix stays doubly stochastic; a directed one does not.
    let (n_messages, bias) = run(&Ring);
    assert!(bias < 1e-12, "{bias}");
    assert!(
        (40 * 24 / 5..40 * 24 * 4 / 5).contains(&n_messages),
        "{n_messages}"
    );
    let (_, bias) = run(&Exponential);
    assert!(bias > 0.01, "{bias}");
    // Who is always away learns nothing and hears nothing.
    let away = Settings {
        absences: Absences {
            leave: 1.0,
            come_back: 0.0,
            straggle: 0.0,
        },
        ..settings.clone()
    };
    let schedule = connect(&Ring, 12);
    assert_eq!(
        problem.models(&schedule, &away, 5),
        problem.models(&schedule, &away, 0)
    );
}
