//! Ranks, broadcast, and rows gathered at rank 0.

use moeshard_mpi::{Element, MpiError, World};

use crate::{Check, Verdict, same, text};

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "ranks_know_their_place",
        run: places,
    },
    Check {
        name: "rank_0s_bytes_reach_everybody",
        run: broadcast,
    },
    Check {
        name: "uneven_rows_are_gathered_in_rank_order",
        run: gather,
    },
    Check {
        name: "half_a_row_is_refused_on_every_rank",
        run: half_a_row,
    },
];

fn places(world: &World) -> Verdict {
    let launched = moeshard_mpi::launcher::n_ranks_launched();
    same("ranks launched", &launched, &Some(world.world_size()))?;
    same("no name", &world.processor().is_empty(), &false)?;
    world.barrier().map_err(text)?;
    let ranks = world.gather_rows(&[world.rank() as u64], 1).map_err(text)?;
    let all: Vec<u64> = (0..world.world_size() as u64).collect();
    same("ranks", &ranks, &(world.rank() == 0).then_some(all))?;
    same(
        "a second start",
        &World::init().map(drop),
        &Err(MpiError::Initialised),
    )
}

fn broadcast(world: &World) -> Verdict {
    for len in [0, 1, 7, 100_000] {
        let sent: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        // The others start with bytes of their own, fewer or more.
        let mut bytes = vec![255; 40 * world.rank()];
        if world.rank() == 0 {
            bytes.clone_from(&sent);
        }
        world.broadcast(&mut bytes).map_err(text)?;
        same("bytes", &bytes, &sent)?;
    }
    Ok(())
}

fn gather(world: &World) -> Verdict {
    for row_len in [1, 3, 785] {
        gathered(world, row_len, |x| x as f32)?;
        gathered(world, row_len, |x| x as f64 / 3.0)?;
        gathered(world, row_len, |x| x as u64)?;
        gathered(world, row_len, |x| (x % 256) as u8)?;
    }
    let nothing = world.gather_rows::<f32>(&[], 0).map_err(text)?;
    same("nothing", &nothing, &(world.rank() == 0).then_some(vec![]))
}

/// Ranks hold 3, 0, 1, 3, 0, … rows; every number tells its rank and its place.
fn gathered<T>(world: &World, row_len: usize, number: fn(usize) -> T) -> Verdict
where
    T: Element + PartialEq + std::fmt::Debug,
{
    let rows_of = |rank: usize| -> Vec<T> {
        let n_rows = [3, 0, 1][rank % 3];
        (0..n_rows * row_len)
            .map(|i| number(rank * 10_000 + i))
            .collect()
    };
    let found = world
        .gather_rows(&rows_of(world.rank()), row_len)
        .map_err(text)?;
    let all = (0..world.world_size()).flat_map(rows_of).collect();
    same("rows", &found, &(world.rank() == 0).then_some(all))
}

fn half_a_row(world: &World) -> Verdict {
    let (rank, world_size) = (world.rank(), world.world_size());
    let wrong = world_size / 2;
    let n_elements = if rank == wrong { 5 } else { 4 };
    let found = world.gather_rows(&vec![0f32; n_elements], 2);
    let op = "gather_rows";
    let expected = if rank == wrong {
        MpiError::Rows {
            op,
            rank,
            n_elements: 5,
            row_len: 2,
        }
    } else {
        MpiError::Elsewhere {
            op,
            rank,
            n_failed: 1,
            world_size,
        }
    };
    same("half a row", &found, &Err(expected))?;
    let found = world.gather_rows(&[0f32; 12], if rank == 0 { 3 } else { 4 });
    let disagrees = matches!(found, Err(MpiError::Disagree { .. }));
    same("rows of two lengths", &disagrees, &(world_size > 1))
}
