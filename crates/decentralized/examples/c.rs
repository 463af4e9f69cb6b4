use moeshard_decentralized::{
    data::*, model::*, partition::*, seed, topology::*, train::absence::Absences,
    train::transport::InProcess, train::*,
};
use std::time::Instant;
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let batch: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let epochs: u64 = std::env::args().nth(3).unwrap().parse().unwrap();
    let dir = std::path::Path::new("/work/shared/data/mnist");
    let t = Instant::now();
    let train = ImageSet::Mnist
        .read(dir, Split::Train)
        .unwrap()
        .first(50000);
    let test = ImageSet::Mnist.read(dir, Split::Test).unwrap();
    eprintln!("load {:?}", t.elapsed());
    let model = Linear::new(784, 10);
    let p = Shards { k: 2 }
        .partition(
            &Labels {
                labels: &train.labels,
                n_classes: 10,
            },
            n,
            &mut seed::rng(1, 1 << 60),
        )
        .unwrap();
    let classes = p.class_counts(&train.labels, 10);
    let dc = DCliques {
        size: 10,
        inter: InterClique::FullyConnected,
        steps: None,
        removed_edges: 0,
    };
    let stl = stl_fw::StlFw::new(10);
    let rr = RandomRegular { degree: 10 };
    let tops: Vec<(&str, &dyn Topology, bool)> = vec![
        ("complete", &Complete, false),
        ("stl10", &stl, false),
        ("dc+ca", &dc, true),
        ("dc", &dc, false),
        ("rand", &rr, false),
        ("exp", &Exponential, false),
        ("ring", &Ring, false),
    ];
    for (name, t, ca) in tops {
        let s = t
            .connect(
                &Nodes {
                    n_nodes: n,
                    classes: Some(&classes),
                },
                &mut seed::rng(1, 5),
            )
            .unwrap();
        let settings = Settings {
            method: Method::DSgd {
                order: MixOrder::AfterStep,
                momentum: 0.0,
                clique_averaging: ca,
            },
            learning_rate: 0.1,
            batch_size: batch.try_into().unwrap(),
            seed: 1,
            start_alike: None,
            absences: Absences::default(),
            n_threads: 2,
        };
        let task = Task {
            model: &model,
            train: &train,
            test: &test,
            partition: &p,
        };
        let mut tr = Trainer::new(task, &s, settings, Box::new(InProcess)).unwrap();
        let per = tr.rounds_per_epoch();
        let mut secs = 0.0;
        let mut ev = 0.0;
        print!("{name:10}");
        for e in 1..=epochs {
            let t = Instant::now();
            for _ in 0..per {
                tr.round().unwrap();
            }
            secs += t.elapsed().as_secs_f64();
            if [5, 10, 20, 100].contains(&e) {
                let t = Instant::now();
                let r = tr.evaluate().unwrap().unwrap();
                ev += t.elapsed().as_secs_f64();
                let a = &r.accuracy;
                let m = a.iter().sum::<f32>() / a.len() as f32;
                print!(
                    " e{e} {:.2} [{:.2}..{:.2}]",
                    m * 100.,
                    a.iter().cloned().fold(1.0, f32::min) * 100.,
                    a.iter().cloned().fold(0.0, f32::max) * 100.
                );
            }
        }
        println!(
            " train {secs:.2} eval {ev:.2} rounds {} msgs {}",
            tr.n_rounds(),
            tr.n_messages()
        );
    }
}
