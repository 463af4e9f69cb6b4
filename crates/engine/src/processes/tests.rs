//! Processes played by threads: the collective is the in-process one, the links are real connections.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use moeshard_batcher::{Engine, EngineError, PackedBatch, Task};
use moeshard_tensor::collective::in_process;
use moeshard_tensor::device::DeviceError;

use super::*;
use crate::testing::{cpu, layout, model, told};
use crate::{CpuRanks, DeviceMaker, RankEngine};

fn batch(n_seqs: usize) -> PackedBatch {
    let task = Task::Embed {
        normalize: true,
        dimensions: None,
    };
    PackedBatch {
        ids: (0..3 * n_seqs as u32).map(|i| i % 11).collect(),
        type_ids: vec![0; 3 * n_seqs],
        cu_seqlens: (0..=n_seqs).map(|seq| 3 * seq).collect(),
        tasks: vec![task; n_seqs],
    }
}

/// A launcher's library, played by channels: rank 0's word goes to all.
fn joins(n_ranks: usize) -> Vec<JoinWorld> {
    let (words, heard): (Vec<_>, Vec<_>) = (1..n_ranks).map(|_| channel::<Vec<u8>>()).unzip();
    let mut ends = in_process(n_ranks, Duration::from_secs(20)).into_iter();
    let first = ends.next().expect("rank 0");
    let lead: JoinWorld = Box::new(move || {
        // Where nobody can be reached, which is known at once: a name would have to be asked for.
        let hosts = ["255.255.255.255".to_owned()];
        let links = links((0, n_ranks), &hosts, |word| {
            for other in words {
                let _ = other.send(word.clone());
            }
            Ok(())
        });
        let collective = Box::new(first);
        links.map(|links| Joined { collective, links })
    });
    let others = (1..).zip(ends).zip(heard);
    let others = others.map(|((rank, end), heard)| -> JoinWorld {
        Box::new(move || {
            let links = links((rank, n_ranks), &[], |word| {
                *word = heard.recv().unwrap_or_default();
                Ok(())
            });
            let collective = Box::new(end);
            links.map(|links| Joined { collective, links })
        })
    });
    std::iter::once(lead).chain(others).collect()
}

fn leadership(join: JoinWorld, lost: &Arc<Mutex<Vec<String>>>) -> Leadership {
    let lost = Arc::clone(lost);
    Leadership {
        join,
        on_lost: Box::new(move |reason| lost.lock().expect("reasons").push(reason.to_owned())),
    }
}

#[test]
fn processes_have_the_bits_of_threads_and_leave_together() {
    for n_ranks in 1..=3 {
        let lost = Arc::default();
        let mut joins = joins(n_ranks).into_iter();
        let lead = leadership(joins.next().expect("rank 0"), &lost);
        thread::scope(|scope| {
            let others = (1..).zip(joins).map(|(rank, join)| {
                scope.spawn(move || follow(model(), layout(n_ranks), cpu(), rank, join))
            });
            let others: Vec<_> = others.collect();
            let engine = RankEngine::lead(&model(), layout(n_ranks), cpu(), lead, &told());
            let engine = engine.expect("all processes");
            let alone = RankEngine::start(&model(), layout(n_ranks), cpu(), &told());
            let alone = alone.expect("an engine");
            for n_seqs in [1, 7, 2] {
                let rows = engine.run(&batch(n_seqs)).expect("rows");
                assert_eq!(rows, alone.run(&batch(n_seqs)).expect("rows"));
            }
            assert_eq!(engine.stats(), alone.stats());
            engine.stop().expect("nobody was lost");
            for other in others {
                other.join().expect("a thread").expect("it was let go");
            }
            assert!(matches!(engine.run(&batch(1)), Err(EngineError::Failed(_))));
        });
        assert_eq!(*lost.lock().expect("reasons"), [""; 0]);
    }
}

/// Has no device for one rank.
struct Without(usize);

impl DeviceMaker for Without {
    type Device = <CpuRanks as DeviceMaker>::Device;

    fn make(&self, collective: Box<dyn Collective>) -> Result<Self::Device, DeviceError> {
        match collective.rank() == self.0 {
            true => Err(DeviceError::SetUp("there is none".to_owned())),
            false => cpu().make(collective),
        }
    }
}

#[test]
fn a_process_without_a_device_ends_all() {
    for without in 0..3 {
        let lost = Arc::default();
        let mut joins = joins(3).into_iter();
        let lead = leadership(joins.next().expect("rank 0"), &lost);
        thread::scope(|scope| {
            let others = (1..).zip(joins).map(|(rank, join)| {
                scope.spawn(move || follow(model(), layout(3), Without(without), rank, join))
            });
            let others: Vec<_> = others.collect();
            let engine = RankEngine::lead(&model(), layout(3), Without(without), lead, &told());
            let reason = engine.err().expect("a device is missing").to_string();
            let expected = format!("rank {without}: cannot set up the device: there is none");
            assert_eq!(reason, expected);
            for other in others {
                let ended = other.join().expect("a thread");
                assert!(matches!(ended, Err(FollowError::Ended)), "{ended:?}");
            }
        });
    }
}

/// A process that has met rank 0 and loaded, and does nothing.
struct Idle {
    link: Link,
    sentinel: TcpStream,
    /// Rank 0 has said that it is over.
    over: Receiver<()>,
    /// A lost process poisons nobody: whoever exchanges with it waits.
    _collective: Box<dyn Collective>,
}

impl Idle {
    fn join(join: JoinWorld) -> Self {
        let Joined {
            collective,
            mut links,
        } = join().expect("the world");
        let mut leader = links[0].peer_addr().expect("an address");
        let ((ask, asked), (end, over)) = (channel(), channel());
        let link = Link::open(links.remove(0), "0", move |message| {
            let _ = match message {
                Ok(Message::Sentinels { token, port }) => ask.send((token, port)).is_ok(),
                Ok(Message::End { .. }) => end.send(()).is_ok(),
                _ => true,
            };
            true
        });
        let link = link.expect("a link");
        for _ in ["a device", "weights"] {
            let (stats, answer) = (Default::default(), Ok(Vec::new()));
            let _ = link.send(&Message::Answer { stats, answer });
        }
        let (token, port) = asked.recv().expect("rank 0 asks for sentinels");
        leader.set_port(port);
        let hello = Message::Hello { token, rank: 1 };
        Self {
            link,
            sentinel: meet::say_hello(leader, &hello).expect("rank 0"),
            over,
            _collective: collective,
        }
    }
}

/// Rank 0 with an idle rank 1, and whom it has lost.
fn engine_and_idle() -> (RankEngine, Idle, Arc<Mutex<Vec<String>>>) {
    let lost = Arc::default();
    let mut joins = joins(2).into_iter();
    let lead = leadership(joins.next().expect("rank 0"), &lost);
    let join = joins.next().expect("rank 1");
    let other = thread::spawn(move || Idle::join(join));
    let engine = RankEngine::lead(&model(), layout(2), cpu(), lead, &told()).expect("both");
    (engine, other.join().expect("a thread"), lost)
}

const RANK_1_IS_GONE: &str = "rank 1 is lost: its process is gone";

#[test]
fn a_lost_process_fails_the_batch_and_says_so_once() {
    let (engine, other, lost) = engine_and_idle();
    thread::scope(|scope| {
        let run = scope.spawn(|| engine.run(&batch(4)));
        thread::sleep(Duration::from_millis(50));
        other.link.cut();
        let error = run.join().expect("a thread").expect_err("rank 1 is gone");
        assert!(matches!(error, EngineError::Failed(_)), "{error:?}");
    });
    assert!(
        matches!(engine.run(&batch(1)), Err(EngineError::Failed(found)) if found == RANK_1_IS_GONE)
    );
    assert_eq!(engine.stop(), Err(RANK_1_IS_GONE.to_owned()));
    assert_eq!(*lost.lock().expect("reasons"), [RANK_1_IS_GONE]);
}

#[test]
fn a_process_is_missed_when_its_sentinel_ends_though_its_link_does_not() {
    let (engine, other, lost) = engine_and_idle();
    drop(other.sentinel);
    let error = engine.run(&batch(4)).expect_err("rank 1 is gone");
    assert!(matches!(error, EngineError::Failed(_)), "{error:?}");
    assert_eq!(*lost.lock().expect("reasons"), [RANK_1_IS_GONE]);
}

#[test]
fn a_process_that_was_let_go_is_not_missed() {
    let (engine, other, lost) = engine_and_idle();
    thread::scope(|scope| {
        let stop = scope.spawn(|| engine.stop());
        other.over.recv().expect("the end");
        drop(other.sentinel);
        // Its word comes later than its end.
        thread::sleep(Duration::from_millis(200));
        let _ = other.link.send(&Message::End { failed: false });
        stop.join().expect("a thread").expect("nobody was lost");
    });
    assert_eq!(*lost.lock().expect("reasons"), [""; 0]);
}
