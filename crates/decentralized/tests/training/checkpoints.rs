//! Runs that stop and go on.

use std::fs;

use moeshard_decentralized::topology::{OnePeerExponential, Ring};
use moeshard_decentralized::train::absence::Absences;
use moeshard_decentralized::train::checkpoint::Checkpoint;
use moeshard_decentralized::train::{Method, MixOrder, Settings, Trainer};

use crate::support::{Problem, connect, d_sgd, settings};

#[test]
fn a_run_that_goes_on_equals_one_that_never_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("checkpoint.safetensors");
    let problem = Problem::new(9);
    let absences = Absences {
        straggle: 0.1,
        leave: 0.1,
        come_back: 0.4,
    };
    for method in [
        d_sgd(MixOrder::AfterStep, 0.9, false),
        d_sgd(MixOrder::BeforeStep, 0.0, false),
        Method::GradientTracking,
        Method::D2,
    ] {
        let settings = Settings {
            method,
            absences,
            ..settings()
        };
        let schedule = connect(&OnePeerExponential, 9);
        let mut whole = problem.trainer(&schedule, &settings);
        (0..13).for_each(|_| whole.round().expect("a round"));

        let mut first = problem.trainer(&schedule, &settings);
        (0..6).for_each(|_| first.round().expect("a round"));
        let saved = first
            .checkpoint("a run")
            .expect("gathered")
            .expect("rank 0");
        saved.write(&path, 9).expect("written");
        drop(first);

        let mut second = problem.trainer(&schedule, &settings);
        let read = Checkpoint::read(&path).expect("read");
        second.restore(&read, "a run", &path).expect("restored");
        (6..13).for_each(|_| second.round().expect("a round"));
        assert_eq!(second.models(), whole.models(), "{method:?}");
        let file = |trainer: &mut Trainer<'_>| {
            let saved = trainer
                .checkpoint("a run")
                .expect("gathered")
                .expect("rank 0");
            saved.write(&path, 9).expect("written");
            fs::read(&path).expect("the file")
        };
        assert!(file(&mut second) == file(&mut whole), "{method:?}");
        assert_eq!(second.n_messages(), whole.n_messages());
        assert_eq!(second.absence_bias(), whole.absence_bias());
        assert_eq!(
            second.evaluate().expect("one"),
            whole.evaluate().expect("one")
        );
    }
}

#[test]
fn what_is_no_checkpoint_of_the_run_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("checkpoint.safetensors");
    let problem = Problem::new(4);
    let schedule = connect(&Ring, 4);
    let mut trainer = problem.trainer(&schedule, &settings());
    trainer.round().expect("a round");
    let saved = trainer
        .checkpoint("one run")
        .expect("gathered")
        .expect("rank 0");
    saved.write(&path, 4).expect("written");

    let read = Checkpoint::read(&path).expect("read");
    let error = trainer
        .restore(&read, "another", &path)
        .expect_err("another run");
    let error = error.to_string();
    assert!(
        error.ends_with("it is of another run: one run, expected another"),
        "{error}"
    );
    let other = Problem::new(5);
    let wider = connect(&Ring, 5);
    let mut other = other.trainer(&wider, &settings());
    let error = other
        .restore(&read, "one run", &path)
        .expect_err("another size");
    assert!(
        error.to_string().contains("is missing or not [5, "),
        "{error}"
    );

    let bytes = fs::read(&path).expect("the file");
    let missing = folder.path().join("none");
    assert!(Checkpoint::read(&missing).is_err());
    for len in [0, 7, 8, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).expect("written");
        let error = Checkpoint::read(&path).expect_err("cut short").to_string();
        assert!(error.contains("checkpoint.safetensors: "), "{error}");
    }
}
