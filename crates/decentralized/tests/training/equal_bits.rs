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
}

const METHODS: fn() -> [Method; 5] = || {
    [
        d_sgd(MixOrder::AfterStep, 0.0, false),
        d_sgd(MixOrder::AfterStep, 0.9, false),
        d_sgd(MixOrder::BeforeStep, 0.9, false),
        Method::GradientTracking,
        Method::D2,
    ]
};

#[test]
fn nodes_that_have_left_stand_still() {
    let problem = Problem::new(11);
    let schedule = connect(&Ring, 11);
    for method in METHODS() {
        let with = |leave, n_rounds| {
            let absences = Absences {
                leave,
                come_back: 0.0,
                straggle: 0.0,
            };
            let settings = Settings {
                absences,
                method,
                ..settings()
            };
            problem.models(&schedule, &settings, n_rounds)
        };
        assert_eq!(with(1.0, 5), with(1.0, 0), "{method:?}");
        // Nobody is left in the end, so that after it nothing moves.
        assert_eq!(with(0.2, 200), with(0.2, 230), "{method:?}");
        assert_ne!(with(0.2, 0), with(0.2, 200), "{method:?}");
    }
}

#[test]
fn leaving_and_coming_back_does_not_set_models_adrift() {
    let problem = Problem::new(12);
    let schedule = connect(&Complete, 12);
    let largest = |method, leave, come_back| {
        let absences = Absences {
            leave,
            come_back,
            straggle: 0.0,
        };
        let settings = Settings {
            absences,
            method,
            ..settings()
        };
        let models = problem.models(&schedule, &settings, 600);
        models.iter().fold(0.0_f32, |max, x| max.max(x.abs()))
    };
    for method in METHODS() {
        let whole = largest(method, 0.0, 0.0);
        for (leave, come_back) in [(0.003, 0.0), (0.02, 0.2)] {
            let parted = largest(method, leave, come_back);
            // The last few nodes learn their few examples by heart, whatever the method.
            assert!(parted < 6.0 * whole, "{method:?}: {parted} beside {whole}");
        }
    }
}
