//! The same bits for any number of ranks, here threads that send rows through channels.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use moeshard_decentralized::topology::{DCliques, InterClique, OnePeerExponential, Ring, Topology};
use moeshard_decentralized::train::transport::{LinkId, Links, Transport};
use moeshard_decentralized::train::{Method, MixOrder, Result, Settings, Trainer};

use crate::support::{Problem, connect, d_sgd, settings};

/// A rank that is a thread.
struct Threaded {
    rank: usize,
    /// To each rank, and from each.
    to: Vec<Sender<Vec<f32>>>,
    from: Vec<Receiver<Vec<f32>>>,
    links: Vec<Links>,
}

impl Transport for Threaded {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.to.len()
    }

    fn link(&mut self, links: &Links) -> Result<LinkId> {
        self.links.push(links.clone());
        Ok(LinkId(self.links.len() - 1))
    }

    fn exchange(
        &mut self,
        link: LinkId,
        row_len: usize,
        local: &[f32],
        halo: &mut [f32],
    ) -> Result<()> {
        let Links { nodes, needs } = &self.links[link.0];
        let mine = &nodes[self.rank];
        for (to, needs) in self.to.iter().zip(needs) {
            let rows = needs.iter().map(|&node| node as usize);
            let rows = rows.filter(|node| mine.contains(node));
            let rows = rows.map(|node| &local[(node - mine.start) * row_len..][..row_len]);
            to.send(rows.flatten().copied().collect()).expect("a peer");
        }
        let received: Vec<f32> = (self.from.iter())
            .flat_map(|from| from.recv().expect("rows"))
            .collect();
        halo.copy_from_slice(&received);
        Ok(())
    }

    fn gather(&mut self, row_len: usize, local: &[f32]) -> Result<Option<Vec<f32>>> {
        let sent = [&[row_len as f32], local].concat();
        self.to[0].send(sent).expect("rank 0");
        if self.rank > 0 {
            return Ok(None);
        }
        let mut all = Vec::new();
        for from in &self.from {
            let rows = from.recv().expect("rows");
            assert_eq!(
                rows[0], row_len as f32,
                "ranks gather rows of unequal length"
            );
            all.extend(&rows[1..]);
        }
        Ok(Some(all))
    }

    fn broadcast(&mut self, data: &mut [f32]) -> Result<()> {
        if self.rank == 0 {
            for to in &self.to {
                to.send(data.to_vec()).expect("a peer");
            }
        }
        data.copy_from_slice(&self.from[0].recv().expect("data"));
        Ok(())
    }
}

fn ranks(world_size: usize) -> Vec<Threaded> {
    let mut ranks: Vec<Threaded> = (0..world_size)
        .map(|rank| Threaded {
            rank,
            to: Vec::new(),
            from: Vec::new(),
            links: Vec::new(),
        })
        .collect();
    for from in 0..world_size {
        for to in 0..world_size {
            let (sender, receiver) = channel();
            ranks[from].to.push(sender);
            ranks[to].from.push(receiver);
        }
    }
    ranks
}

/// Models, evaluation and messages after some rounds.
fn run(
    problem: &Problem,
    topology: &dyn Topology,
    settings: &Settings,
    world_size: usize,
) -> String {
    let schedule = connect(topology, problem.partition.n_nodes());
    let results = thread::scope(|scope| {
        let threads: Vec<_> = ranks(world_size)
            .into_iter()
            .map(|transport| {
                let schedule = &schedule;
                scope.spawn(move || {
                    let transport = Box::new(transport);
                    let trainer =
                        Trainer::new(problem.task(), schedule, settings.clone(), transport);
                    let mut trainer = trainer.expect("a trainer");
                    (0..5).for_each(|_| trainer.round().expect("a round"));
                    let evaluation = trainer.evaluate().expect("an evaluation");
                    let heterogeneity = trainer.heterogeneity(schedule).expect("heterogeneity");
                    let checkpoint = trainer.checkpoint("run").expect("a checkpoint");
                    evaluation.map(|evaluation| {
                        format!("{evaluation:?} {heterogeneity:?} {checkpoint:?}")
                    })
                })
            })
            .collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().expect("a rank"));
        joined.collect::<Vec<_>>()
    });
    assert!(
        results[1..].iter().all(Option::is_none),
        "only rank 0 knows all"
    );
    results.into_iter().next().flatten().expect("rank 0")
}

#[test]
fn ranks_change_no_bit() {
    let problem = Problem::new(11);
    let cliques = DCliques {
        size: 4,
        inter: InterClique::FullyConnected,
        steps: Some(0),
        removed_edges: 0,
    };
    let cases: [(&dyn Topology, Method); 5] = [
        (&Ring, d_sgd(MixOrder::AfterStep, 0.0, false)),
        (&Ring, d_sgd(MixOrder::BeforeStep, 0.3, false)),
        (&OnePeerExponential, Method::GradientTracking),
        (&Ring, Method::D2),
        (&cliques, d_sgd(MixOrder::AfterStep, 0.9, true)),
    ];
    for (topology, method) in cases {
        let settings = Settings {
            method,
            n_threads: 1,
            ..settings()
        };
        let alone = run(&problem, topology, &settings, 1);
        // The last has ranks without nodes.
        for world_size in [2, 4, 8, 11, 13] {
            let together = run(&problem, topology, &settings, world_size);
            assert!(
                alone == together,
                "{} on {world_size} ranks",
                topology.name()
            );
        }
    }
}
