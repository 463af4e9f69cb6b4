//! The tensor layer's collective on MPI beside the one on threads.

use std::thread;
use std::time::Duration;

use moeshard_mpi::World;
use moeshard_tensor::collective::{Collective, CollectiveError, in_process};

use crate::{Check, Verdict, same, text};

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "collectives_have_the_bits_of_those_in_process",
        run: bits,
    },
    Check {
        name: "failed_collectives_are_errors_and_poison",
        run: errors,
    },
    Check {
        name: "collectives_stay_on_their_thread",
        run: threads,
    },
];

/// What one rank gets out of one of each, as bits.
fn one_of_each(end: &impl Collective) -> Result<Vec<Vec<u32>>, CollectiveError> {
    let (rank, n) = (end.rank(), end.world_size());
    let counts: Vec<usize> = (0..n).map(|rank| (rank * 5 + 3) % 8 * 11).collect();
    let n_total = counts.iter().sum();
    // Sums of these depend on their order.
    let number =
        |i: usize| ((i * 37 + rank * 101) % 997) as f32 * 3.1f32.powi((i + rank) as i32 % 7);
    let whole: Vec<f32> = (0..n_total).map(number).collect();

    let mut gathered = vec![0.0; n_total];
    end.all_gather(&whole[..counts[rank]], &counts, &mut gathered)?;
    let mut share = vec![0.0; counts[rank]];
    end.reduce_scatter(&whole, &counts, &mut share)?;
    let mut sum = whole.clone();
    end.all_reduce(&mut sum)?;
    let mut few = [number(3), -0.0];
    end.all_reduce(&mut few)?;
    end.all_reduce(&mut [])?;
    let mut copy = whole;
    end.broadcast(&mut copy, n - 1)?;
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect();
    Ok(vec![
        bits(&gathered),
        bits(&share),
        bits(&sum),
        bits(&few),
        bits(&copy),
    ])
}

fn bits(world: &World) -> Verdict {
    let collective = world.collective().map_err(text)?;
    let found = one_of_each(&collective).map_err(text)?;
    let ends = in_process(world.world_size(), Duration::from_secs(60));
    let expected = thread::scope(|scope| {
        let threads = ends
            .into_iter()
            .map(|end| scope.spawn(move || one_of_each(&end)));
        let threads: Vec<_> = threads.collect();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().expect("rank"));
        results.collect::<Result<Vec<_>, _>>()
    });
    let expected = expected.map_err(text)?.swap_remove(world.rank());
    same("bits", &found, &expected)
}

fn errors(world: &World) -> Verdict {
    let (rank, world_size) = (world.rank(), world.world_size());
    let collective = world.collective().map_err(text)?;
    let found = collective.all_gather(
        &[1.0; 3],
        &vec![2; world_size],
        &mut vec![0.0; 2 * world_size],
    );
    let (op, buffer) = ("all_gather", "send");
    let length = CollectiveError::Length {
        op,
        buffer,
        rank,
        expected: 2,
        got: 3,
    };
    same("length", &found, &Err(length))?;
    // MPI itself refuses this one, without a word to the other ranks.
    let found = collective.broadcast(&mut [1.0], world_size).map_err(text);
    let reason = found.err().unwrap_or_default();
    let start = format!(
        "broadcast on rank {rank} of {world_size}: MPI_Bcast on rank {rank} of {world_size} failed with code "
    );
    same(
        &reason,
        &(reason.starts_with(&start) && reason.contains("MPI_ERR_ROOT")),
        &true,
    )?;
    let op = "all_reduce";
    let poisoned = CollectiveError::Poisoned {
        op,
        rank,
        world_size,
    };
    same(
        "the next call",
        &collective.all_reduce(&mut [1.0]),
        &Err(poisoned),
    )
}

fn threads(world: &World) -> Verdict {
    let collective = world.collective().map_err(text)?;
    let (collective, found) = thread::scope(|scope| {
        let elsewhere = scope.spawn(move || {
            let found = collective.all_reduce(&mut [1.0]);
            (collective, found)
        });
        elsewhere.join().expect("thread")
    });
    let refused = found.map_err(text);
    let is_named = refused
        .as_ref()
        .is_err_and(|reason| reason.contains("another thread"));
    same(&format!("{refused:?}"), &is_named, &true)?;
    let mut sum = [1.0];
    collective.all_reduce(&mut sum).map_err(text)?;
    same("back on its thread", &sum, &[world.world_size() as f32])
}
