//! Rounds of averaging over a graph, compared with one process doing all of it, bit for bit.

use moeshard_mpi::{Placement, World};

use crate::{Check, Verdict, same, text};

pub(crate) const CHECKS: &[Check] = &[Check {
    name: "averaging_has_the_bits_of_one_process",
    run: averaging,
}];

const N_NODES: usize = 42;
const ROW_LEN: usize = 129;
const N_ROUNDS: usize = 25;

/// In-neighbours of a node on the exponential graph and the node itself, ascending: the order in
/// which sums are taken must not depend on who holds what.
fn heard(node: usize) -> Vec<usize> {
    let offsets = (0..)
        .map(|power| 1 << power)
        .take_while(|offset| *offset < N_NODES);
    let mut heard: Vec<usize> = offsets.map(|offset| (node + offset) % N_NODES).collect();
    heard.push(node);
    heard.sort_unstable();
    heard
}

/// Rows of different sizes, so that the order of a sum shows in its bits.
fn start(node: usize) -> Vec<f32> {
    (0..ROW_LEN)
        .map(|column| ((node * 31 + column * 17) % 1009) as f32 * 1.7f32.powi(node as i32 % 9))
        .collect()
}

/// The mean of the rows that a node hears.
fn mean<'a>(node: usize, row_of: impl Fn(usize) -> &'a [f32]) -> Vec<f32> {
    let heard = heard(node);
    let weight = 1.0 / heard.len() as f32;
    let mut mean = vec![0.0; ROW_LEN];
    for other in heard {
        for (sum, x) in mean.iter_mut().zip(row_of(other)) {
            *sum += weight * x;
        }
    }
    mean
}

fn averaging(world: &World) -> Verdict {
    let placement = Placement::new(N_NODES, world.world_size());
    let here = placement.nodes(world.rank());
    let found = placement.links(world.rank(), heard);
    let mut exchange = world.exchange(&found.links).map_err(text)?;
    let mut local: Vec<f32> = here.clone().flat_map(start).collect();
    let mut halo = vec![0.0; exchange.n_halo() * ROW_LEN];
    for _ in 0..N_ROUNDS {
        exchange.run(&local, ROW_LEN, &mut halo).map_err(text)?;
        let row_of = |node: usize| match found.halo.binary_search(&node) {
            Ok(row) => &halo[row * ROW_LEN..][..ROW_LEN],
            Err(_) => &local[(node - here.start) * ROW_LEN..][..ROW_LEN],
        };
        local = here.clone().flat_map(|node| mean(node, row_of)).collect();
    }
    let bits = |rows: Vec<f32>| rows.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    let gathered = world.gather_rows(&local, ROW_LEN).map_err(text)?;
    let expected = (world.rank() == 0).then(|| bits(alone()));
    same("models", &gathered.map(bits), &expected)
}

/// The same in one matrix.
fn alone() -> Vec<f32> {
    let mut all: Vec<f32> = (0..N_NODES).flat_map(start).collect();
    for _ in 0..N_ROUNDS {
        let row_of = |node: usize| &all[node * ROW_LEN..][..ROW_LEN];
        all = (0..N_NODES).flat_map(|node| mean(node, row_of)).collect();
    }
    all
}
