//! Ranks as processes, exchanging over TCP: one connection between every two of them.
//!
//! A thread for each connection takes what comes, whatever this rank is doing. So nobody who sends waits for
//! somebody who sends as well, however much it is, and a rank that is gone is noticed at once. Every part of an
//! operation is one frame, also an empty one: its header tells ranks that do not call the same from each other.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::{Collective, CollectiveError, check_counts, check_length};

/// Up to so many bytes, header and elements are one write.
const SMALL: usize = 16 << 10;

/// Elements that memory is taken for at a time: it grows with what comes, whatever length is claimed.
const STEP: usize = 1 << 18;

/// The operation, its number and the elements that follow; each a u64, the lowest byte first.
const HEADER: usize = 24;

/// One rank's end of a world over TCP. Dropping it lets the other ranks' next call fail.
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    deadline: Duration,
    /// One for each rank; none for this one.
    peers: Vec<Option<Peer>>,
    /// What has come, by rank.
    come: Receiver<(usize, Come)>,
    state: RefCell<State>,
}

/// Another rank.
#[derive(Debug)]
struct Peer {
    stream: TcpStream,
    /// Takes back the memory of frames.
    used: Sender<Vec<f32>>,
}

/// What a connection has brought.
#[derive(Debug)]
enum Come {
    Frame(Frame),
    /// There will be no more.
    End,
}

#[derive(Debug)]
struct Frame {
    op: u64,
    n_op: u64,
    data: Vec<f32>,
}

#[derive(Debug)]
struct State {
    /// Operations so far.
    n_op: u64,
    /// A rank may be ahead of this one.
    frames: Vec<VecDeque<Frame>>,
    /// Ranks of which no more will come.
    is_gone: Vec<bool>,
    /// Set once something has failed; never cleared.
    is_poisoned: bool,
}

/// An operation under way.
#[derive(Clone, Copy)]
struct Call {
    op: &'static str,
    n_op: u64,
    started: Instant,
}

impl Call {
    /// What headers call the operation.
    fn code(self) -> u64 {
        match self.op {
            "all_gather" => 0,
            "reduce_scatter" => 1,
            "all_reduce" => 2,
            _ => 3,
        }
    }
}

impl Tcp {
    /// The end of `rank`, with its connections: `streams[r]` leads to rank r, and `streams[rank]` nowhere.
    ///
    /// `deadline` is the longest that a rank waits for the others in one operation.
    ///
    /// # Errors
    /// If a connection is broken or there is no thread for it.
    ///
    /// # Panics
    /// If a connection is missing.
    pub fn over(
        rank: usize,
        streams: Vec<Option<TcpStream>>,
        deadline: Duration,
    ) -> io::Result<Self> {
        let world_size = streams.len();
        let (tell, come) = channel();
        let mut peers = Vec::with_capacity(world_size);
        for (peer, stream) in streams.into_iter().enumerate() {
            if peer == rank {
                peers.push(None);
                continue;
            }
            let stream = stream.expect("a connection to every other rank");
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(None)?;
            let (used, free) = channel();
            let (from, tell) = (stream.try_clone()?, tell.clone());
            thread::Builder::new()
                .name(format!("from-{peer}"))
                .spawn(move || receive(from, &free, |come| tell.send((peer, come)).is_ok()))?;
            peers.push(Some(Peer { stream, used }));
        }
        let mut world = Self {
            rank,
            deadline,
            peers,
            come,
            state: RefCell::new(State {
                n_op: 0,
                frames: (0..world_size).map(|_| VecDeque::new()).collect(),
                is_gone: vec![false; world_size],
                is_poisoned: false,
            }),
        };
        world.set_deadline(deadline)?;
        Ok(world)
    }

    /// Changes the longest that a rank waits for the others in one operation.
    ///
    /// # Errors
    /// If the system does not take it, as zero.
    pub fn set_deadline(&mut self, deadline: Duration) -> io::Result<()> {
        for peer in self.peers.iter().flatten() {
            peer.stream.set_write_timeout(Some(deadline))?;
        }
        self.deadline = deadline;
        Ok(())
    }

    /// Begins an operation, if its arguments fit.
    fn begin(
        &self,
        op: &'static str,
        checked: Result<(), CollectiveError>,
    ) -> Result<Call, CollectiveError> {
        let mut state = self.state.borrow_mut();
        if state.is_poisoned {
            return Err(self.poisoned(op));
        }
        state.n_op += 1;
        let call = Call {
            op,
            n_op: state.n_op,
            started: Instant::now(),
        };
        drop(state);
        // So that the others do not wait for the rest of it.
        self.or_poison(checked)?;
        Ok(call)
    }

    /// Sends each of the other ranks its part; the next rank first, so that not all begin with the same.
    fn send<'a>(
        &self,
        call: Call,
        part: impl Fn(usize) -> &'a [f32],
    ) -> Result<(), CollectiveError> {
        let n = self.peers.len();
        let to = (1..n).map(|step| (self.rank + step) % n);
        let sent = to
            .into_iter()
            .try_for_each(|peer| self.send_to(call, peer, part(peer)));
        self.or_poison(sent)
    }

    fn send_to(&self, call: Call, peer: usize, part: &[f32]) -> Result<(), CollectiveError> {
        let Some(Peer { stream, .. }) = &self.peers[peer] else {
            return Ok(());
        };
        let mut header = Vec::with_capacity(HEADER);
        for word in [call.code(), call.n_op, part.len() as u64] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        let bytes: &[u8] = bytemuck::cast_slice(part);
        if bytes.len() <= SMALL {
            header.extend_from_slice(bytes);
            return self.write(call, stream, &header);
        }
        self.write(call, stream, &header)?;
        self.write(call, stream, bytes)
    }

    fn write(
        &self,
        call: Call,
        mut stream: &TcpStream,
        mut bytes: &[u8],
    ) -> Result<(), CollectiveError> {
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(0) => return Err(self.poisoned(call.op)),
                Ok(n) => bytes = &bytes[n..],
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                    _ => return Err(self.poisoned(call.op)),
                },
            }
            if !bytes.is_empty() && call.started.elapsed() >= self.deadline {
                return Err(self.late(call));
            }
        }
        Ok(())
    }

    /// Hands every rank's part of `counts(rank)` elements to `take`, in rank order; `own` is this rank's.
    fn take_all(
        &self,
        call: Call,
        own: &[f32],
        counts: impl Fn(usize) -> usize,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let n = self.peers.len();
        // All at once: the end of any is noticed while another is waited for.
        let others: Vec<_> = (0..n).filter(|&peer| peer != self.rank).collect();
        self.or_poison(self.wait_for(call, &others))?;
        for rank in 0..n {
            match rank == self.rank {
                true => take(rank, own),
                false => self.take_one(call, rank, counts(rank), |part| take(rank, part))?,
            }
        }
        Ok(())
    }

    /// Waits until there is a frame of each of these ranks.
    fn wait_for(&self, call: Call, ranks: &[usize]) -> Result<(), CollectiveError> {
        let mut state = self.state.borrow_mut();
        loop {
            while let Ok((rank, come)) = self.come.try_recv() {
                state.note(rank, come);
            }
            let missing = |&&rank: &&usize| state.frames[rank].is_empty();
            if ranks
                .iter()
                .filter(missing)
                .any(|&rank| state.is_gone[rank])
            {
                return Err(self.poisoned(call.op));
            }
            if !ranks.iter().any(|rank| missing(&rank)) {
                return Ok(());
            }
            let left = self.deadline.saturating_sub(call.started.elapsed());
            match self.come.recv_timeout(left) {
                Ok((rank, come)) => state.note(rank, come),
                Err(RecvTimeoutError::Timeout) => return Err(self.late(call)),
                // Every thread has said before that its connection has ended.
                Err(RecvTimeoutError::Disconnected) => return Err(self.poisoned(call.op)),
            }
        }
    }

    /// Has a frame that is there, which must be of this operation and have so many elements.
    fn take_one(
        &self,
        call: Call,
        rank: usize,
        count: usize,
        take: impl FnOnce(&[f32]),
    ) -> Result<(), CollectiveError> {
        let frame = self.state.borrow_mut().frames[rank].pop_front();
        let Some(frame) = frame else {
            return self.or_poison(Err(self.poisoned(call.op)));
        };
        let fits = match (frame.op, frame.n_op) == (call.code(), call.n_op) {
            true => check_length(
                call.op,
                "another rank's part",
                self.rank,
                count,
                frame.data.len(),
            ),
            false => Err(CollectiveError::Transport {
                op: call.op,
                rank: self.rank,
                world_size: self.peers.len(),
                reason: format!("rank {rank} calls another operation"),
            }),
        };
        self.or_poison(fits)?;
        take(&frame.data);
        if let Some(peer) = &self.peers[rank] {
            // Its thread may have ended, and needs no memory then.
            let _ = peer.used.send(frame.data);
        }
        Ok(())
    }

    /// Lets nobody wait for this rank once something has failed.
    fn or_poison<T>(&self, result: Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        if result.is_err() {
            self.state.borrow_mut().is_poisoned = true;
            self.leave();
        }
        result
    }

    fn leave(&self) {
        for peer in self.peers.iter().flatten() {
            // It may have ended already.
            let _ = peer.stream.shutdown(Shutdown::Both);
        }
    }

    fn poisoned(&self, op: &'static str) -> CollectiveError {
        CollectiveError::Poisoned {
            op,
            rank: self.rank,
            world_size: self.peers.len(),
        }
    }

    fn late(&self, call: Call) -> CollectiveError {
        CollectiveError::Deadline {
            op: call.op,
            rank: self.rank,
            world_size: self.peers.len(),
            waited: call.started.elapsed(),
        }
    }

    fn gather(
        &self,
        call: Call,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.send(call, |_| send)?;
        let parts = ranges(counts);
        self.take_all(
            call,
            send,
            |rank| counts[rank],
            |rank, part| recv[parts[rank].clone()].copy_from_slice(part),
        )
    }

    fn sum(
        &self,
        call: Call,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let parts = ranges(counts);
        self.send(call, |peer| &send[parts[peer].clone()])?;
        recv.fill(0.0);
        self.take_all(
            call,
            &send[parts[self.rank].clone()],
            |_| counts[self.rank],
            |_, part| {
                for (sum, x) in recv.iter_mut().zip(part) {
                    *sum += x;
                }
            },
        )
    }
}

impl State {
    fn note(&mut self, rank: usize, come: Come) {
        match come {
            Come::Frame(frame) => self.frames[rank].push_back(frame),
            Come::End => self.is_gone[rank] = true,
        }
    }
}

/// Hands on what comes, until there is no more or nobody wants it.
fn receive(mut from: TcpStream, free: &Receiver<Vec<f32>>, tell: impl Fn(Come) -> bool) {
    loop {
        let come = match read(&mut from, free.try_recv().unwrap_or_default()) {
            Ok(frame) => Come::Frame(frame),
            Err(_) => Come::End,
        };
        let is_last = matches!(come, Come::End);
        if !tell(come) || is_last {
            return;
        }
    }
}

fn read(from: &mut TcpStream, mut data: Vec<f32>) -> io::Result<Frame> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let [op, n_op, n] = std::array::from_fn(|i| {
        let word = header[8 * i..].first_chunk().copied();
        u64::from_le_bytes(word.unwrap_or_default())
    });
    let n = usize::try_from(n).map_err(|_| ErrorKind::InvalidData)?;
    data.clear();
    while data.len() < n {
        let at = data.len();
        data.resize(n.min(at + STEP), 0.0);
        from.read_exact(bytemuck::cast_slice_mut(&mut data[at..]))?;
    }
    Ok(Frame { op, n_op, data })
}

/// Where each rank's part lies.
fn ranges(counts: &[usize]) -> Vec<Range<usize>> {
    let mut end = 0;
    let next = |&count| {
        end += count;
        end - count..end
    };
    counts.iter().map(next).collect()
}

/// Shares of `n` elements that differ by at most one.
fn even_shares(n: usize, world_size: usize) -> Vec<usize> {
    (0..world_size)
        .map(|rank| n / world_size + usize::from(rank < n % world_size))
        .collect()
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.peers.len()
    }

    fn all_gather(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let op = "all_gather";
        let (part, whole) = (("send", send.len()), ("recv", recv.len()));
        let call = self.begin(op, check_counts(op, self, counts, part, whole))?;
        self.gather(call, send, counts, recv)
    }

    fn reduce_scatter(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let op = "reduce_scatter";
        let (part, whole) = (("recv", recv.len()), ("send", send.len()));
        let call = self.begin(op, check_counts(op, self, counts, part, whole))?;
        self.sum(call, send, counts, recv)
    }

    /// Each rank sums its share, then all gather the shares.
    fn all_reduce(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let counts = even_shares(data.len(), self.peers.len());
        let mut share = vec![0.0; counts[self.rank]];
        let op = "all_reduce";
        self.sum(self.begin(op, Ok(()))?, data, &counts, &mut share)?;
        self.gather(self.begin(op, Ok(()))?, &share, &counts, data)
    }

    fn broadcast(&self, data: &mut [f32], root: usize) -> Result<(), CollectiveError> {
        let op = "broadcast";
        let world_size = self.peers.len();
        let known = (root < world_size)
            .then_some(())
            .ok_or(CollectiveError::Length {
                op,
                buffer: "the list of ranks",
                rank: self.rank,
                expected: root.saturating_add(1),
                got: world_size,
            });
        let call = self.begin(op, known)?;
        if self.rank == root {
            return self.send(call, |_| &*data);
        }
        self.or_poison(self.wait_for(call, &[root]))?;
        self.take_one(call, root, data.len(), |part| data.copy_from_slice(part))
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
