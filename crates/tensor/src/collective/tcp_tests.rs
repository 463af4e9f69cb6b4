//! Ranks that are threads, with connections of this machine.

use std::net::TcpListener;

use super::*;
use crate::collective::in_process;

const PATIENCE: Duration = Duration::from_secs(20);

/// Connections between every two of `n` ranks.
fn connections(n: usize) -> Vec<Vec<Option<TcpStream>>> {
    let mut streams: Vec<Vec<_>> = (0..n).map(|_| (0..n).map(|_| None).collect()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    for (low, high) in (0..n).flat_map(|high| (0..high).map(move |low| (low, high))) {
        let one = TcpStream::connect(address).expect("a connection");
        let other = listener.accept().expect("a connection").0;
        streams[low][high] = Some(one);
        streams[high][low] = Some(other);
    }
    streams
}

fn over_tcp(n: usize, deadline: Duration) -> Vec<Tcp> {
    let ends = connections(n).into_iter().enumerate();
    let ends = ends.map(|(rank, streams)| Tcp::over(rank, streams, deadline).expect("an end"));
    ends.collect()
}

fn on_every_rank<C: Collective, T: Send>(ends: Vec<C>, f: impl Fn(C) -> T + Sync) -> Vec<T> {
    let f = &f;
    thread::scope(|scope| {
        let threads: Vec<_> = ends
            .into_iter()
            .map(|end| scope.spawn(move || f(end)))
            .collect();
        let results = threads.into_iter().map(|t| t.join().expect("rank"));
        results.collect()
    })
}

/// Numbers by chance, the same in every run (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Of any size, with the signs of zero; sums of them depend on the order.
    fn numbers(&mut self, n: usize) -> Vec<f32> {
        let number = |x: u64| match x % 17 {
            0 => 0.0,
            1 => -0.0,
            _ => ((x >> 40) as f32 - 8e6) * 10f32.powi((x >> 8) as i32 % 9),
        };
        (0..n).map(|_| number(self.next())).collect()
    }
}

/// A list of operations with sizes by chance, from the bits of a rank's numbers to the bits of its results.
fn script<C: Collective>(end: &C, seed: u64) -> Vec<Vec<u32>> {
    let (rank, n) = (end.rank(), end.world_size());
    // What all ranks must agree on, and what each has for itself.
    let mut common = Chance(seed);
    let mut own = Chance(seed ^ (rank as u64 + 1) << 32);
    let mut results = Vec::new();
    for _ in 0..40 {
        // Now and then more than a connection takes without being read.
        let most = [400_000, 1, 7, 300, 5000][(common.next() % 21).min(4) as usize];
        let counts: Vec<_> = (0..n)
            .map(|_| {
                (common.next() % most) as usize * usize::from(!common.next().is_multiple_of(4))
            })
            .collect();
        let total = counts.iter().sum();
        let mut out = match common.next() % 4 {
            0 => {
                let mut all = vec![0.5; total];
                let send = own.numbers(counts[rank]);
                end.all_gather(&send, &counts, &mut all).expect("gathered");
                all
            }
            1 => {
                let mut mine = vec![0.5; counts[rank]];
                let send = own.numbers(total);
                let summed = end.reduce_scatter(&send, &counts, &mut mine);
                summed.expect("summed");
                mine
            }
            2 => {
                let mut data = own.numbers(total);
                end.all_reduce(&mut data).expect("summed");
                data
            }
            _ => {
                let mut data = own.numbers(total);
                let root = common.next() as usize % n;
                end.broadcast(&mut data, root).expect("heard");
                data
            }
        };
        results.push(out.drain(..).map(f32::to_bits).collect());
    }
    results
}

#[test]
fn processes_have_the_bits_of_threads() {
    for n in 1..=4 {
        for seed in 0..4 {
            let found = on_every_rank(over_tcp(n, PATIENCE), |end| script(&end, seed));
            let expected = on_every_rank(in_process(n, PATIENCE), |end| script(&end, seed));
            assert!(found == expected, "{n} ranks, seed {seed}");
        }
    }
}

#[test]
fn ranks_that_all_send_much_do_not_wait_for_each_other() {
    // 16 MiB to each other rank, more than any buffer of the system.
    let n = 4 << 20;
    let sums = on_every_rank(over_tcp(3, PATIENCE), |end| {
        let mut mine = vec![0.0; n];
        let send = vec![end.rank() as f32 + 1.0; 3 * n];
        let summed = end.reduce_scatter(&send, &[n; 3], &mut mine);
        summed.map(|()| mine.iter().all(|&x| x == 6.0))
    });
    assert_eq!(sums, [Ok(true), Ok(true), Ok(true)]);
}

#[test]
fn a_rank_that_never_comes_ends_the_wait_at_the_deadline() {
    let deadline = Duration::from_millis(60);
    let mut ends = over_tcp(3, deadline);
    let _absent = ends.pop();
    let started = Instant::now();
    let errors = on_every_rank(ends, |end| {
        let error = end.all_reduce(&mut [1.0; 5]).expect_err("nobody came");
        let again = end.all_reduce(&mut [1.0]).expect_err("it is poisoned");
        assert!(
            matches!(again, CollectiveError::Poisoned { .. }),
            "{again:?}"
        );
        error
    });
    assert!(started.elapsed() < 10 * deadline, "{:?}", started.elapsed());
    // Who is first to give up ends the other's wait.
    let is_late = |error: &CollectiveError| matches!(error, CollectiveError::Deadline { .. });
    assert!(errors.iter().any(is_late), "{errors:?}");
}

#[test]
fn a_rank_that_reads_nothing_ends_the_wait_at_the_deadline() {
    let deadline = Duration::from_millis(60);
    let mut streams = connections(2);
    // Nothing takes what comes here.
    let _deaf = streams.pop();
    let end = Tcp::over(0, streams.remove(0), deadline).expect("an end");
    let error = end.broadcast(&mut vec![1.0; 8 << 20], 0);
    let error = error.expect_err("nobody reads");
    assert!(
        matches!(error, CollectiveError::Deadline { rank: 0, .. }),
        "{error}"
    );
}

#[test]
fn a_rank_that_is_gone_is_noticed_at_once() {
    for gone in 0..3 {
        let started = Instant::now();
        let results = on_every_rank(over_tcp(3, PATIENCE), |end| {
            let mut x = [1.0];
            end.all_reduce(&mut x).expect("all are there");
            match end.rank() == gone {
                true => Ok(()),
                false => end.all_reduce(&mut x),
            }
        });
        assert!(started.elapsed() < PATIENCE / 4, "{:?}", started.elapsed());
        for (rank, result) in results.into_iter().enumerate() {
            let error = result.err();
            assert_eq!(error.is_none(), rank == gone, "{error:?}");
            let poisoned = matches!(error, None | Some(CollectiveError::Poisoned { .. }));
            assert!(poisoned, "{error:?}");
        }
    }
}

#[test]
fn a_rank_may_leave_when_it_has_done_its_part() {
    for _ in 0..50 {
        let sums = on_every_rank(over_tcp(4, PATIENCE), |end| {
            let mut x = [end.rank() as f32];
            end.all_gather(&[1.0], &[1; 4], &mut [0.0; 4])?;
            end.all_reduce(&mut x).map(|()| x[0])
        });
        assert_eq!(sums, [const { Ok(6.0) }; 4]);
    }
}

#[test]
fn calls_that_do_not_fit_are_refused_on_every_rank() {
    let lengths = on_every_rank(over_tcp(2, PATIENCE), |end| {
        let n = 3 - end.rank();
        end.all_gather(&vec![0.0; n], &[2, 2], &mut [0.0; 4])
    });
    assert!(lengths.iter().all(Result::is_err), "{lengths:?}");
    let counts = on_every_rank(over_tcp(2, PATIENCE), |end| {
        let n = 1 + end.rank();
        end.all_gather(&vec![0.0; n], &[n, n], &mut vec![0.0; 2 * n])
    });
    assert!(counts.iter().all(Result::is_err), "{counts:?}");
    let others = on_every_rank(over_tcp(2, PATIENCE), |end| match end.rank() {
        0 => end.all_gather(&[1.0], &[1, 1], &mut [0.0; 2]),
        _ => end.reduce_scatter(&[1.0; 2], &[1, 1], &mut [0.0]),
    });
    assert!(others.iter().all(Result::is_err), "{others:?}");
    let roots = on_every_rank(over_tcp(2, PATIENCE), |end| end.broadcast(&mut [1.0], 2));
    assert!(roots.iter().all(Result::is_err), "{roots:?}");
}

#[test]
fn what_is_no_frame_poisons() {
    for noise in [[0xff; 64], [0; 64], [9; 64]] {
        let mut streams = connections(2);
        let other = streams.pop().and_then(|mut ends| ends[0].take());
        let end = Tcp::over(0, streams.remove(0), PATIENCE).expect("an end");
        let mut other = other.expect("a connection");
        other.write_all(&noise).expect("bytes");
        drop(other);
        assert!(end.all_reduce(&mut [1.0; 3]).is_err());
    }
}
