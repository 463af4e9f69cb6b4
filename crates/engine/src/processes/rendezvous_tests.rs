//! Processes played by threads that meet at a port of this machine.

use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use super::*;

/// The rank `rank` of `world_size` at a port.
fn place(rank: usize, world_size: usize, port: u16) -> Rendezvous {
    Rendezvous {
        rank,
        world_size,
        host: "localhost".to_owned(),
        port,
        job: 7,
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

type Ended = (Result<Met, FollowError>, Receiver<FollowError>);

/// What comes of a meeting, and who is lost afterwards.
fn meets(place: &Rendezvous) -> Ended {
    let (tell, lost) = channel();
    let on_lost = move |error| drop(tell.send(error));
    (meet(place, &Missing::default(), on_lost), lost)
}

/// Starts the given ranks, after `before` has been done to the port of rank 0.
fn all_meet(world_size: usize, before: impl FnOnce(u16)) -> Vec<Ended> {
    let port = free_port();
    thread::scope(|scope| {
        let leader = scope.spawn(move || meets(&place(0, world_size, port)));
        before(port);
        let others =
            (1..world_size).map(|rank| scope.spawn(move || meets(&place(rank, world_size, port))));
        let all: Vec<_> = std::iter::once(leader).chain(others).collect();
        let ended = all.into_iter().map(|rank| rank.join().expect("a rank"));
        ended.collect()
    })
}

/// A connection to rank 0, once it listens.
fn stranger(port: u16) -> TcpStream {
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(_) => pause(),
        }
    }
}

fn hello(job: u64, rank: u64, invitation: &[u8]) -> Vec<u8> {
    let mut hello = MAGIC.to_vec();
    hello.extend_from_slice(&job.to_le_bytes());
    hello.extend_from_slice(&rank.to_le_bytes());
    put_bytes(&mut hello, invitation);
    hello
}

fn joined(ended: Vec<Ended>, agreement: impl Fn(usize) -> u64 + Sync) -> Vec<Result<f32, String>> {
    let agreement = &agreement;
    thread::scope(|scope| {
        let ranks: Vec<_> = ended
            .into_iter()
            .enumerate()
            .map(|(rank, (met, _))| {
                scope.spawn(move || {
                    let met = met.map_err(|error| error.to_string())?;
                    let joined = met
                        .join(agreement(rank))
                        .map_err(|error| error.to_string())?;
                    let mut sum = [joined.collective.rank() as f32];
                    let summed = joined.collective.all_reduce(&mut sum);
                    summed.map(|()| sum[0]).map_err(|error| error.to_string())
                })
            })
            .collect();
        let all = ranks.into_iter().map(|rank| rank.join().expect("a rank"));
        all.collect()
    })
}

#[test]
fn strangers_are_not_waited_for_and_those_of_the_job_meet() {
    let started = Instant::now();
    let ended = all_meet(4, |port| {
        // They stay, and say nothing, or nothing of sense, or without end.
        let mut huge = hello(7, 1, &[]);
        huge.truncate(huge.len() - 8);
        huge.extend_from_slice(&[0xff; 8]);
        huge.resize(1 << 20, 0xff);
        let noises = [
            &b""[..],
            b"GET / HTTP/1.1\r\n\r\n",
            &MAGIC,
            &[0xff; 5000],
            &huge,
        ];
        for noise in noises {
            for _ in 0..8 {
                let mut stranger = stranger(port);
                let _ = stranger.set_write_timeout(Some(Duration::from_millis(50)));
                // It may be hung up on.
                let _ = stranger.write_all(noise);
                std::mem::forget(stranger);
            }
        }
        // Another job, and ranks that there are not.
        for (said, expected) in [
            (
                hello(8, 1, &[]),
                "belongs to another job or is another version",
            ),
            (hello(7, 0, &[]), "is rank 0 as well"),
            (hello(7, 4, &[]), "has ranks below 4 alone"),
            (hello(7, u64::MAX, &[]), "has ranks below 4 alone"),
        ] {
            let mut stranger = stranger(port);
            stranger.write_all(&said).expect("it listens");
            assert_eq!(read_byte(&mut stranger).expect("a word"), REFUSED);
            let reason = read_bytes(&mut stranger).expect("a reason");
            assert_eq!(String::from_utf8_lossy(&reason), expected);
        }
    });
    let all = joined(ended, |_| 3);
    assert_eq!(all, [const { Ok(6.0) }; 4]);
    assert!(started.elapsed() < TRY, "{:?}", started.elapsed());
}

#[test]
fn a_rank_that_comes_twice_is_refused() {
    let port = free_port();
    thread::scope(|scope| {
        let leader = scope.spawn(move || meets(&place(0, 3, port)));
        let first = scope.spawn(move || meets(&place(1, 3, port)));
        // Whichever of the two is later.
        let second = scope.spawn(move || meets(&place(1, 3, port)));
        while !first.is_finished() && !second.is_finished() {
            pause();
        }
        let third = scope.spawn(move || meets(&place(2, 3, port)));
        let ended = [leader, first, second, third].map(|rank| rank.join().expect("a rank").0);
        let refused: Vec<_> = ended.into_iter().filter_map(Result::err).collect();
        let expected = format!("rank 0 at localhost:{port} has met this rank already");
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].to_string(), expected);
    });
}

#[test]
fn whoever_is_lost_before_all_are_there_is_named() {
    let port = free_port();
    let leader = thread::spawn(move || meets(&place(0, 3, port)).0.err());
    let other = thread::spawn(move || meets(&place(1, 3, port)).0.err());
    // It comes, and goes before the last has come.
    let mut lost = stranger(port);
    lost.write_all(&hello(7, 2, b"x")).expect("it listens");
    assert_eq!(read_byte(&mut lost).expect("a word"), NOTED);
    drop(lost);
    let said = leader.join().expect("rank 0").expect("rank 2 is lost");
    // Rank 1 may have come before or after.
    if said.to_string() == "rank 2 is lost: its process is gone" {
        return drop(other);
    }
    // Nobody knows how to reach the one who has never been there.
    assert!(said.to_string().contains("rank 2"), "{said}");
}

#[test]
fn whoever_is_lost_before_joining_is_named() {
    for lost in 0..3 {
        let mut ended = all_meet(3, |_| {});
        let gone = ended.remove(lost);
        // A process that ends stops watching as well.
        let Ok(Met {
            links, mesh, watch, ..
        }) = gone.0
        else {
            panic!("rank {lost} has met nobody");
        };
        watch.end();
        drop((links, mesh));
        let reasons = ended.iter().map(|(_, told)| {
            let told = told.recv_timeout(TRY).expect("a word");
            told.to_string()
        });
        let reasons: Vec<_> = reasons.collect();
        let expected = match lost {
            0 => ["rank 0 is lost: its process is gone"; 2].map(str::to_owned),
            _ => [
                format!("rank {lost} is lost: its process is gone"),
                "rank 0 has ended the job".to_owned(),
            ],
        };
        assert_eq!(reasons, expected);
        for (met, _) in ended {
            let met = met.expect("it has met all");
            assert!(met.join(1).is_err(), "a rank is lost");
        }
    }
}

#[test]
fn ranks_that_differ_do_not_join() {
    let all = joined(all_meet(3, |_| {}), |rank| u64::MAX - (rank as u64 / 2));
    for (rank, result) in all.into_iter().enumerate() {
        let reason = result.expect_err("they differ");
        assert!(
            reason.contains("do not agree on the model"),
            "{rank}: {reason}"
        );
    }
}

#[test]
fn what_is_no_rank_0_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a rank");
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .expect("bytes");
        listener
    });
    let error = meets(&place(1, 2, port)).0.expect_err("a server");
    let expected = format!("what listens at localhost:{port} is no rank 0 of moeshard");
    assert_eq!(error.to_string(), expected);
    let _listener = server.join().expect("a server");
    let error = meets(&place(0, 2, port)).0.expect_err("it is taken");
    assert!(
        error.to_string().contains(&format!("port {port}: ")),
        "{error}"
    );
}
