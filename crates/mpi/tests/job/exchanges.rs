//! Rows along graphs, compared with what every rank can work out itself.

use moeshard_mpi::links::{Receive, Send};
use moeshard_mpi::{Links, MpiError, Placement, World};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::{Check, Verdict, same, text};

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "halos_of_random_graphs_hold_the_neighbours",
        run: random_graphs,
    },
    Check {
        name: "random_links_keep_the_order_of_the_sender",
        run: random_links,
    },
    Check {
        name: "links_without_rows_and_to_oneself_are_links",
        run: odd_links,
    },
    Check {
        name: "several_exchanges_live_side_by_side",
        run: side_by_side,
    },
    Check {
        name: "links_that_do_not_fit_are_refused_everywhere",
        run: misfits,
    },
    Check {
        name: "wrong_buffers_are_refused_and_the_next_round_works",
        run: buffers,
    },
    Check {
        name: "rows_of_two_lengths_are_refused_everywhere",
        run: two_lengths,
    },
];

/// The number in a column of a node's row in a round.
fn entry(node: usize, column: usize, round: usize) -> f32 {
    (node * 1000 + column) as f32 + round as f32 / 8.0
}

/// `[nodes, row_len]`
fn matrix(nodes: impl Iterator<Item = usize>, row_len: usize, round: usize) -> Vec<f32> {
    nodes
        .flat_map(|node| (0..row_len).map(move |column| entry(node, column, round)))
        .collect()
}

/// In-neighbours of every node: each of the others with the same chance, the last node none.
fn random_graph(n_nodes: usize, chance: f64, seed: u64) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut graph: Vec<Vec<usize>> = (0..n_nodes)
        .map(|_| (0..n_nodes).filter(|_| rng.random_bool(chance)).collect())
        .collect();
    if let Some(last) = graph.last_mut() {
        last.clear();
    }
    graph
}

fn random_graphs(world: &World) -> Verdict {
    let cases = [
        (0, 0.5),
        (1, 1.0),
        (3, 1.0),
        (7, 0.4),
        (24, 0.1),
        (61, 0.0),
        (61, 0.2),
        (96, 1.0),
    ];
    for (case, (n_nodes, chance)) in cases.into_iter().enumerate() {
        let graph = random_graph(n_nodes, chance, case as u64);
        let placement = Placement::new(n_nodes, world.world_size());
        let here = placement.nodes(world.rank());
        let found = placement.links(world.rank(), |node| graph[node].iter().copied());
        let mut exchange = world.exchange(&found.links).map_err(text)?;
        // By brute force: the others' nodes that some node of this rank hears.
        let needed: Vec<usize> = (0..n_nodes)
            .filter(|node| {
                !here.contains(node) && here.clone().any(|own| graph[own].contains(node))
            })
            .collect();
        for (round, row_len) in [5, 5, 1, 0, 785].into_iter().enumerate() {
            let local = matrix(here.clone(), row_len, round);
            let mut halo = vec![f32::NAN; exchange.n_halo() * row_len];
            exchange.run(&local, row_len, &mut halo).map_err(text)?;
            let expected = matrix(needed.iter().copied(), row_len, round);
            same(
                &format!("halo of case {case}, round {round}"),
                &halo,
                &expected,
            )?;
        }
    }
    Ok(())
}

/// Rows that each rank sends to each other: `[sender][receiver]` is a list of the sender's rows,
/// with repetitions, empty for some, also for the sender itself.
fn random_sends(n_local: &[usize], seed: u64) -> Vec<Vec<Vec<usize>>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut list = |n: usize| -> Vec<usize> {
        let len = if n == 0 { 0 } else { rng.random_range(0..5) };
        (0..len).map(|_| rng.random_range(0..n)).collect()
    };
    let mut all = Vec::new();
    for &n in n_local {
        all.push(n_local.iter().map(|_| list(n)).collect());
    }
    all
}

fn random_links(world: &World) -> Verdict {
    let (rank, row_len) = (world.rank(), 3);
    let n_local: Vec<usize> = (0..world.world_size())
        .map(|rank| (rank * 5 + 2) % 7)
        .collect();
    for seed in 0..5 {
        let sends = random_sends(&n_local, seed);
        // Named from the last rank to the first: the order of links must not matter.
        let send = sends[rank].iter().enumerate().rev();
        let receive = sends.iter().enumerate().rev();
        let links = Links {
            n_local: n_local[rank],
            send: send
                .map(|(to, rows)| Send {
                    to,
                    rows: rows.clone(),
                })
                .collect(),
            receive: receive
                .map(|(from, sends)| Receive {
                    from,
                    n_rows: sends[rank].len(),
                })
                .collect(),
        };
        let mut exchange = world.exchange(&links).map_err(text)?;
        same(
            "rows sent",
            &exchange.n_sent(),
            &sends[rank].iter().map(Vec::len).sum(),
        )?;
        let local = matrix((0..n_local[rank]).map(|row| rank * 10 + row), row_len, 0);
        let mut halo = vec![f32::NAN; links.n_halo() * row_len];
        exchange.run(&local, row_len, &mut halo).map_err(text)?;
        let senders = sends.iter().enumerate();
        let rows =
            senders.flat_map(|(from, sends)| sends[rank].iter().map(move |row| from * 10 + row));
        same("halo", &halo, &matrix(rows, row_len, 0))?;
    }
    Ok(())
}

fn odd_links(world: &World) -> Verdict {
    let (rank, n) = (world.rank(), world.world_size());
    // Only the sender names the link without rows, and only rank 0 has a link, to itself.
    let mut links = Links {
        n_local: 1,
        ..Links::default()
    };
    links.send.push(Send {
        to: (rank + 1) % n,
        rows: vec![],
    });
    if rank == 0 {
        links.send.retain(|link| link.to != 0);
        links.send.push(Send {
            to: 0,
            rows: vec![0, 0],
        });
        links.receive.push(Receive { from: 0, n_rows: 2 });
    }
    let mut exchange = world.exchange(&links).map_err(text)?;
    let mut halo = vec![0.0; links.n_halo()];
    exchange
        .run(&[rank as f32 + 5.0], 1, &mut halo)
        .map_err(text)?;
    same(
        "halo",
        &halo,
        &if rank == 0 { vec![5.0, 5.0] } else { vec![] },
    )
}

/// Links of a ring with one row a rank; `step` ranks further.
fn ring(world: &World, step: usize) -> Links {
    let (rank, n) = (world.rank(), world.world_size());
    let (to, from) = ((rank + step) % n, (rank + n - step % n) % n);
    Links {
        n_local: 1,
        receive: vec![Receive { from, n_rows: 1 }],
        send: vec![Send { to, rows: vec![0] }],
    }
}

fn side_by_side(world: &World) -> Verdict {
    let steps = [1, 2, 5];
    let exchanges: Result<Vec<_>, _> = steps
        .iter()
        .map(|&step| world.exchange(&ring(world, step)))
        .collect();
    let mut exchanges = exchanges.map_err(text)?;
    for round in 0..20 {
        for (exchange, &step) in exchanges.iter_mut().zip(&steps) {
            let local = [entry(world.rank(), step, round)];
            let mut halo = [f32::NAN];
            exchange.run(&local, 1, &mut halo).map_err(text)?;
            let n = world.world_size();
            let from = (world.rank() + n - step % n) % n;
            same("halo", &halo, &[entry(from, step, round)])?;
        }
    }
    // The first that was made goes first; the others must still work.
    drop(exchanges.remove(0));
    let mut halo = [f32::NAN];
    exchanges[0].run(&[1.5], 1, &mut halo).map_err(text)?;
    same("halo", &halo, &[1.5])
}

fn misfits(world: &World) -> Verdict {
    let (rank, world_size) = (world.rank(), world.world_size());
    let told = MpiError::Elsewhere {
        op: "exchange",
        rank,
        n_failed: 1,
        world_size,
    };

    let mut links = ring(world, 1);
    if rank == 0 {
        links.send[0].rows = vec![0, 0];
    }
    let hearer = 1 % world_size;
    let mismatch = MpiError::Mismatch {
        rank,
        from: 0,
        expected: 1,
        got: 2,
    };
    let expected = if rank == hearer {
        mismatch
    } else {
        told.clone()
    };
    same(
        "too many rows",
        &world.exchange(&links).map(drop),
        &Err(expected),
    )?;

    let mut links = ring(world, 1);
    let to = links.send[0].to;
    if rank + 1 == world_size {
        links.send[0].rows = vec![1];
    }
    let unknown = MpiError::UnknownRow {
        rank,
        row: 1,
        to,
        n_local: 1,
    };
    let expected = if rank + 1 == world_size {
        unknown
    } else {
        told
    };
    same(
        "no such row",
        &world.exchange(&links).map(drop),
        &Err(expected),
    )
}

fn buffers(world: &World) -> Verdict {
    let mut exchange = world.exchange(&ring(world, 1)).map_err(text)?;
    let rank = world.rank();
    let length = |buffer, expected, got| MpiError::Length {
        op: "exchange",
        rank,
        buffer,
        expected,
        got,
    };
    let found = exchange.run(&[0.0; 3], 2, &mut [0.0; 2]);
    same("local", &found, &Err(length("local", 2, 3)))?;
    let found = exchange.run(&[0.0; 2], 2, &mut [0.0; 1]);
    same("halo", &found, &Err(length("halo", 2, 1)))?;
    let huge = usize::MAX / 2 + 1;
    let found = exchange.run(&[], huge, &mut []);
    same("huge", &found, &Err(length("local", huge, 0)))?;
    let mut halo = [0.0; 2];
    exchange.run(&[2.5; 2], 2, &mut halo).map_err(text)?;
    same("the next round", &halo, &[2.5; 2])
}

fn two_lengths(world: &World) -> Verdict {
    let mut exchange = world.exchange(&ring(world, 1)).map_err(text)?;
    let row_len = if world.rank() == 0 { 4 } else { 6 };
    let found = exchange.run(&vec![0.0; row_len], row_len, &mut vec![0.0; row_len]);
    let disagrees = matches!(
        found,
        Err(MpiError::Disagree {
            what: "the length of a row",
            min: 4,
            max: 6,
            ..
        })
    );
    same("refused", &disagrees, &(world.world_size() > 1))?;
    let mut halo = [0.0; 5];
    exchange.run(&[1.0; 5], 5, &mut halo).map_err(text)?;
    same("the next round", &halo, &[1.0; 5])
}
