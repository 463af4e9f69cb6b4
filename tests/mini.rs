//! The built-in model answers as its recipe's own evaluation does, and is as good as its card says.

use moeshard_batcher::Task;
use moeshard_encoder::spec::ProblemType;
use moeshard_engine::output::probabilities;
use moeshard_tensor::dtype::DType;
use moeshard_tests::compare::{assert_close, cosine};
use moeshard_tests::data;
use moeshard_tests::service::{Service, mini_folder};
use moeshard_tests::world::{Layout, run};
use serde::Deserialize;

const EMBED: Task = Task::Embed {
    normalize: true,
    dimensions: None,
};

/// One entry of `models/mini/expected.json`, computed by `models/mini/recipe`.
#[derive(Deserialize)]
struct Expected {
    text: String,
    token_ids: Vec<u32>,
    embedding: Vec<f32>,
    top3: Vec<Intent>,
}

#[derive(Deserialize)]
struct Intent {
    label: String,
    probability: f32,
}

#[test]
fn texts_give_the_ids_embeddings_and_intents_of_the_recipe() {
    let json = std::fs::read(mini_folder().join("expected.json")).expect("expected.json");
    let expected: Vec<Expected> = serde_json::from_slice(&json).expect("expected.json");
    assert!(expected.len() >= 10);
    for n_ranks in 1..=4 {
        let service = Service::start(&mini_folder(), n_ranks, DType::F32);
        let ids: Vec<_> = expected.iter().map(|e| e.token_ids.clone()).collect();
        // The empty text is refused over HTTP, so ids stand for it here.
        let (spec, checkpoint) = (&service.model.spec, &service.model.checkpoint);
        let layout = Layout {
            n_ranks,
            ..Layout::default()
        };
        let (runs, _) = run(spec, checkpoint, layout, &ids);
        let labels = &spec.head.as_ref().expect("head").labels;
        for (run, expected) in runs.iter().zip(&expected) {
            let embedding = moeshard_tests::compare::unit(&run.pooled[1]);
            assert_close(&expected.text, &embedding, &expected.embedding, 1e-4);
            let scores = probabilities(&run.logits, ProblemType::SingleLabel);
            for intent in &expected.top3 {
                let idx = labels
                    .iter()
                    .position(|l| *l == intent.label)
                    .expect("label");
                assert_close(&expected.text, &[scores[idx]], &[intent.probability], 1e-3);
            }
        }
        let with_text: Vec<_> = expected
            .iter()
            .filter(|e| !e.text.trim().is_empty())
            .collect();
        let texts: Vec<_> = with_text.iter().map(|e| e.text.clone()).collect();
        for (answer, expected) in service.run(&texts, EMBED).iter().zip(&with_text) {
            assert_eq!(
                answer.n_tokens,
                expected.token_ids.len(),
                "{}",
                expected.text
            );
            assert_close(&expected.text, &answer.values, &expected.embedding, 1e-4);
        }
    }
}

#[test]
fn half_precision_keeps_the_direction_of_every_embedding() {
    let json = std::fs::read(mini_folder().join("expected.json")).expect("expected.json");
    let expected: Vec<Expected> = serde_json::from_slice(&json).expect("expected.json");
    let ids: Vec<_> = expected.iter().map(|e| e.token_ids.clone()).collect();
    let service = Service::start(&mini_folder(), 1, DType::F32);
    for dtype in [DType::BF16, DType::F16] {
        let layout = Layout {
            dtype,
            ..Layout::default()
        };
        let (runs, _) = run(&service.model.spec, &service.model.checkpoint, layout, &ids);
        for (run, expected) in runs.iter().zip(&expected) {
            let cosine = cosine(&run.pooled[1], &expected.embedding);
            assert!(
                cosine > 0.999,
                "{}: cosine {cosine} in {dtype}",
                expected.text
            );
        }
    }
}

#[test]
fn sts_b_banking77_and_expert_use_are_what_the_card_promises() {
    let Some(folder) = data::folder() else { return };
    let service = Service::start(&mini_folder(), 2, DType::BF16);

    let pairs = data::sts_b(&folder);
    assert_eq!(pairs.len(), 1379);
    let texts: Vec<String> = pairs
        .iter()
        .flat_map(|p| [p.a.clone(), p.b.clone()])
        .collect();
    let answers = service.run(&texts, EMBED);
    let similarities: Vec<f64> = answers
        .chunks(2)
        .map(|p| cosine(&p[0].values, &p[1].values))
        .collect();
    let scores: Vec<f64> = pairs.iter().map(|p| p.score).collect();
    let spearman = data::spearman(&similarities, &scores);
    println!("STS-B English test, Spearman: {spearman:.4}");
    assert!(spearman >= 0.78, "{spearman}");

    let ids = service.ids(&texts);
    let (runs, _) = run(
        &service.model.spec,
        &service.model.checkpoint,
        Layout::default(),
        &ids,
    );
    for (nth, (layer, experts)) in service.model.spec.expert_layers().enumerate() {
        let mut load = vec![0_u32; experts.experts.len()];
        for run in &runs {
            run.routing[nth]
                .1
                .expert_idx
                .iter()
                .for_each(|&e| load[e as usize] += 1);
        }
        let total: u32 = load.iter().sum();
        let shares: Vec<f64> = load
            .iter()
            .map(|&n| f64::from(n) / f64::from(total))
            .collect();
        println!("layer {layer}, share of each expert: {shares:.3?}");
        assert!(
            shares.iter().all(|s| (0.03..=0.40).contains(s)),
            "layer {layer}: {shares:?}"
        );
    }

    let queries = data::banking77_test(&folder);
    assert_eq!(queries.len(), 3080);
    let labels = &service.model.spec.head.as_ref().expect("head").labels;
    let texts: Vec<String> = queries.iter().map(|(text, _)| text.clone()).collect();
    let answers = service.run(&texts, Task::Classify { raw_scores: false });
    let n_right = answers
        .iter()
        .zip(&queries)
        .filter(|(answer, (_, label))| {
            let best = answer
                .values
                .iter()
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(b.1));
            best.is_some_and(|(idx, _)| labels[idx] == *label)
        })
        .count();
    let accuracy = n_right as f64 / queries.len() as f64;
    println!("Banking77 test, accuracy: {accuracy:.4}");
    assert!(accuracy >= 0.90, "{accuracy}");
}
