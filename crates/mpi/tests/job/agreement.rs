//! Smallest, largest, agreement, and failures that are shared.

use moeshard_mpi::{MpiError, World};

use crate::{Check, Verdict, same, text};

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "extremes_are_those_of_all_ranks",
        run: extremes,
    },
    Check {
        name: "ranks_agree_or_all_are_told",
        run: agree,
    },
    Check {
        name: "one_ranks_failure_is_everybodys",
        run: all_ok,
    },
];

fn extremes(world: &World) -> Verdict {
    let (rank, last) = (world.rank() as u64, world.world_size() as u64 - 1);
    let mut counts = [rank, last - rank, u64::MAX - rank];
    world.all_min(&mut counts).map_err(text)?;
    same("smallest", &counts, &[0, 0, u64::MAX - last])?;
    let mut reals = [-(rank as f64), 1e300 + rank as f64, f64::NEG_INFINITY];
    world.all_max(&mut reals).map_err(text)?;
    same(
        "largest",
        &reals,
        &[0.0, 1e300 + last as f64, f64::NEG_INFINITY],
    )?;
    world.all_max::<u64>(&mut []).map_err(text)
}

fn agree(world: &World) -> Verdict {
    for value in [0, 17, u64::MAX] {
        world.agree("the configuration", value).map_err(text)?;
    }
    let (rank, world_size) = (world.rank(), world.world_size());
    let here = if rank + 1 == world_size { 3 } else { 8 };
    let found = world.agree("the epoch", here);
    let expected = match world_size {
        1 => Ok(()),
        _ => Err(MpiError::Disagree {
            what: "the epoch",
            rank,
            world_size,
            here,
            min: 3,
            max: 8,
        }),
    };
    same("the epoch", &found, &expected)
}

fn all_ok(world: &World) -> Verdict {
    let (rank, world_size) = (world.rank(), world.world_size());
    let value = world
        .all_ok("reading", Ok::<_, MpiError>(rank))
        .map_err(text)?;
    same("value", &value, &rank)?;
    let own = MpiError::Finalised { op: "x", rank };
    let result = if rank % 2 == 0 {
        Err(own.clone())
    } else {
        Ok(())
    };
    let found = world.all_ok("reading", result);
    let n_failed = world_size.div_ceil(2) as u64;
    let told = MpiError::Elsewhere {
        op: "reading",
        rank,
        n_failed,
        world_size,
    };
    same(
        "failure",
        &found,
        &Err(if rank % 2 == 0 { own } else { told }),
    )
}
