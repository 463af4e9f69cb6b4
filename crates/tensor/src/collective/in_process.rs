//! Ranks as threads of one process, exchanging through shared buffers.
//!
//! Each rank publishes its part in its own slot, waits for the others, reads what it needs, and
//! waits again before a slot may be overwritten. Copies are the price of having no `unsafe` here.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use super::{Collective, CollectiveError, check_counts, check_length};

/// One rank's end of an in-process world. Dropping it lets the other ranks' next call fail.
#[derive(Debug)]
pub struct InProcess {
    rank: usize,
    deadline: Duration,
    world: Arc<World>,
}

/// Makes the ends of a world of `world_size` ranks, in rank order.
///
/// `deadline` is the longest that a rank waits for the others in one operation.
pub fn in_process(world_size: usize, deadline: Duration) -> Vec<InProcess> {
    let world = Arc::new(World {
        slots: (0..world_size).map(|_| RwLock::default()).collect(),
        gate: Mutex::default(),
        arrival: Condvar::new(),
    });
    (0..world_size)
        .map(|rank| InProcess {
            rank,
            deadline,
            world: Arc::clone(&world),
        })
        .collect()
}

#[derive(Debug)]
struct World {
    /// What each rank has published.
    slots: Vec<RwLock<Vec<f32>>>,
    gate: Mutex<Gate>,
    arrival: Condvar,
}

/// A barrier that can be broken.
#[derive(Debug, Default)]
struct Gate {
    /// Ranks that wait in this generation.
    n_waiting: usize,
    /// How often everybody has passed.
    generation: u64,
    /// Set once a rank has failed or left; never cleared.
    poisoned: bool,
}

impl InProcess {
    /// Waits until every rank has called this.
    fn meet(&self, op: &'static str) -> Result<(), CollectiveError> {
        let world_size = self.world.slots.len();
        let start = Instant::now();
        let mut gate = self.lock();
        if gate.poisoned {
            return Err(self.poisoned(op));
        }
        gate.n_waiting += 1;
        if gate.n_waiting == world_size {
            gate.n_waiting = 0;
            gate.generation += 1;
            self.world.arrival.notify_all();
            return Ok(());
        }
        let generation = gate.generation;
        while gate.generation == generation {
            if gate.poisoned {
                return Err(self.poisoned(op));
            }
            let waited = start.elapsed();
            if waited >= self.deadline {
                gate.poisoned = true;
                self.world.arrival.notify_all();
                return Err(CollectiveError::Deadline {
                    op,
                    rank: self.rank,
                    world_size,
                    waited,
                });
            }
            gate = self
                .world
                .arrival
                .wait_timeout(gate, self.deadline - waited)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.world
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn poisoned(&self, op: &'static str) -> CollectiveError {
        CollectiveError::Poisoned {
            op,
            rank: self.rank,
            world_size: self.world.slots.len(),
        }
    }

    fn slot(&self, rank: usize) -> RwLockReadGuard<'_, Vec<f32>> {
        self.world.slots[rank]
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes `send`, lets `read` look at all slots, and leaves them free again.
    fn exchange(
        &self,
        op: &'static str,
        send: &[f32],
        read: impl FnOnce() -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        {
            let mut slot = self.world.slots[self.rank]
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            slot.clear();
            slot.extend_from_slice(send);
        }
        self.meet(op)?;
        let result = read();
        if result.is_err() {
            self.poison();
        }
        result?;
        self.meet(op)
    }

    fn poison(&self) {
        self.lock().poisoned = true;
        self.world.arrival.notify_all();
    }

    /// Poisons the world if the arguments of a call do not fit, so that the others do not wait.
    fn checked(&self, check: Result<(), CollectiveError>) -> Result<(), CollectiveError> {
        if check.is_err() {
            self.poison();
        }
        check
    }

    fn check(
        &self,
        op: &'static str,
        counts: &[usize],
        part: (&'static str, usize),
        whole: (&'static str, usize),
    ) -> Result<(), CollectiveError> {
        self.checked(check_counts(op, self, counts, part, whole))
    }

    /// Adds elements `offset ..` of every rank's slot into `recv`, in rank order.
    fn sum_slots(
        &self,
        op: &'static str,
        offset: usize,
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        recv.fill(0.0);
        for rank in 0..self.world_size() {
            let slot = self.slot(rank);
            let part = slot.get(offset..offset + recv.len());
            let part = part.ok_or(CollectiveError::Length {
                op,
                buffer: "another rank's send",
                rank: self.rank,
                expected: offset + recv.len(),
                got: slot.len(),
            })?;
            for (sum, x) in recv.iter_mut().zip(part) {
                *sum += x;
            }
        }
        Ok(())
    }
}

impl Collective for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world.slots.len()
    }

    fn all_gather(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let op = "all_gather";
        self.check(op, counts, ("send", send.len()), ("recv", recv.len()))?;
        self.exchange(op, send, || {
            let mut rest = recv;
            for (rank, &count) in counts.iter().enumerate() {
                let (part, tail) = rest.split_at_mut(count);
                let slot = self.slot(rank);
                check_length(op, "another rank's send", self.rank, count, slot.len())?;
                part.copy_from_slice(&slot);
                rest = tail;
            }
            Ok(())
        })
    }

    fn reduce_scatter(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let op = "reduce_scatter";
        self.check(op, counts, ("recv", recv.len()), ("send", send.len()))?;
        let offset = counts[..self.rank].iter().sum();
        self.exchange(op, send, || self.sum_slots(op, offset, recv))
    }

    fn all_reduce(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let send = data.to_vec();
        self.exchange("all_reduce", &send, || {
            self.sum_slots("all_reduce", 0, data)
        })
    }

    fn broadcast(&self, data: &mut [f32], root: usize) -> Result<(), CollectiveError> {
        let op = "broadcast";
        let send = if self.rank == root {
            data.to_vec()
        } else {
            Vec::new()
        };
        self.exchange(op, &send, || {
            let slot = self.slot(root);
            check_length(op, "the root's data", self.rank, data.len(), slot.len())?;
            data.copy_from_slice(&slot);
            Ok(())
        })
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.poison();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_every_rank<T: Send>(n: usize, f: impl Fn(InProcess) -> T + Sync) -> Vec<T> {
        let f = &f;
        std::thread::scope(|scope| {
            let threads: Vec<_> = in_process(n, Duration::from_secs(20))
                .into_iter()
                .map(|end| scope.spawn(move || f(end)))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("rank"))
                .collect()
        })
    }

    #[test]
    fn gathers_uneven_parts_in_rank_order() {
        for counts in [vec![3, 0, 2, 1], vec![0, 0], vec![5]] {
            let total: usize = counts.iter().sum();
            let results = on_every_rank(counts.len(), |end| {
                let send = vec![end.rank() as f32; counts[end.rank()]];
                let mut recv = vec![-1.0; total];
                for _ in 0..50 {
                    end.all_gather(&send, &counts, &mut recv)
                        .expect("all_gather");
                }
                recv
            });
            let expected: Vec<f32> = counts
                .iter()
                .enumerate()
                .flat_map(|(rank, &n)| std::iter::repeat_n(rank as f32, n))
                .collect();
            for recv in results {
                assert_eq!(recv, expected);
            }
        }
    }

    #[test]
    fn reduce_scatter_keeps_the_owners_part_of_the_sum() {
        let counts = [2, 0, 3];
        let results = on_every_rank(3, |end| {
            let send: Vec<f32> = (0..5).map(|i| (i * 10 + end.rank()) as f32).collect();
            let mut recv = vec![0.0; counts[end.rank()]];
            end.reduce_scatter(&send, &counts, &mut recv)
                .expect("reduce_scatter");
            recv
        });
        assert_eq!(
            results,
            vec![vec![3.0, 33.0], vec![], vec![63.0, 93.0, 123.0]]
        );
    }

    #[test]
    fn all_reduce_and_broadcast_agree_on_every_rank() {
        let results = on_every_rank(4, |end| {
            let mut data = [end.rank() as f32, 1.0];
            end.all_reduce(&mut data).expect("all_reduce");
            let mut root = [end.rank() as f32];
            end.broadcast(&mut root, 2).expect("broadcast");
            (data, root)
        });
        assert!(results.iter().all(|r| *r == ([6.0, 4.0], [2.0])));
    }

    #[test]
    fn a_rank_that_leaves_poisons_the_others() {
        let results = on_every_rank(3, |end| {
            if end.rank() == 1 {
                return Ok(());
            }
            end.all_reduce(&mut [1.0])
        });
        assert!(results[1].is_ok());
        for rank in [0, 2] {
            assert_eq!(
                results[rank],
                Err(CollectiveError::Poisoned {
                    op: "all_reduce",
                    rank,
                    world_size: 3
                })
            );
        }
    }

    #[test]
    fn a_rank_that_never_comes_ends_the_wait_at_the_deadline() {
        let mut ends = in_process(2, Duration::from_millis(30));
        let _absent = ends.pop();
        let end = ends.pop().expect("rank 0");
        let error = end.all_reduce(&mut [1.0]).expect_err("nobody came");
        assert!(
            matches!(error, CollectiveError::Deadline { rank: 0, .. }),
            "{error}"
        );
    }

    #[test]
    fn wrong_lengths_are_refused_on_every_rank() {
        let results = on_every_rank(2, |end| {
            let n = if end.rank() == 0 { 3 } else { 2 };
            end.all_gather(&vec![0.0; n], &[2, 2], &mut [0.0; 4])
        });
        assert!(results.iter().all(Result::is_err), "{results:?}");
    }
}
