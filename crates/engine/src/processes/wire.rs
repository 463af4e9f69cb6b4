//! What goes over a link, and how it looks: a kind, a length, and numbers, the lowest byte first.
//!
//! Both ends are the same program, which `meet` makes sure of; even so nothing that comes can crash it.

use std::io::{self, ErrorKind, Read, Write};

use moeshard_batcher::Task;
use moeshard_tensor::device::DeviceStats;

use crate::rank::{MicroBatch, RankJob};

/// Proves that somebody belongs to this job: rank 0 makes it up, and the launcher's library hands it on.
pub(crate) type Token = [u8; 16];

/// What one end tells the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    /// A follower's first word.
    Hello { token: Token, rank: usize },
    /// Nothing but that the sender is there.
    Ping,
    /// From rank 0: it expects sentinels at this port.
    Sentinels { token: Token, port: u16 },
    /// A rank's share of a batch.
    Job(RankJob),
    /// What became of a job, or of a step of loading.
    Answer {
        stats: DeviceStats,
        answer: Result<Vec<Vec<f32>>, String>,
    },
    /// From rank 0: there are no more jobs; all is done, or it has said why not. From another: it leaves.
    End { failed: bool },
}

impl Message {
    /// Writes it in one piece.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut frame = vec![self.kind()];
        frame.extend_from_slice(&[0; 8]);
        self.put(&mut frame);
        let len = (frame.len() - HEADER) as u64;
        frame[1..HEADER].copy_from_slice(&len.to_le_bytes());
        to.write_all(&frame)
    }

    /// Reads one.
    pub(crate) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let [kind, len @ ..] = header;
        let len = u64::from_le_bytes(len);
        // Grows with what comes, whatever length is claimed.
        let mut body = Vec::new();
        from.take(len).read_to_end(&mut body)?;
        if body.len() as u64 != len {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut rest = Rest(&body);
        let message = rest.message(kind).filter(|_| rest.0.is_empty());
        message.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a message makes no sense"))
    }

    /// The first byte of it on a link.
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 0,
            Self::Ping => 1,
            Self::Job(_) => 2,
            Self::Answer { .. } => 3,
            Self::End { .. } => 4,
            Self::Sentinels { .. } => 5,
        }
    }

    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Hello { token, rank } => {
                to.extend_from_slice(token);
                put(to, *rank);
            }
            Self::Ping => {}
            Self::Job(job) => {
                put(to, job.len());
                job.iter().for_each(|micro| put_micro_batch(to, micro));
            }
            Self::Answer { stats, answer } => {
                to.extend_from_slice(&stats.expert_bytes.to_le_bytes());
                to.extend_from_slice(&stats.expert_multiply_adds.to_le_bytes());
                to.extend_from_slice(&stats.n_dropped.to_le_bytes());
                match answer {
                    Ok(rows) => {
                        put(to, rows.len());
                        for row in rows {
                            put(to, row.len());
                            row.iter().for_each(|x| to.extend(x.to_le_bytes()));
                        }
                    }
                    Err(reason) => {
                        put(to, FAILED);
                        to.extend_from_slice(reason.as_bytes());
                    }
                }
            }
            Self::End { failed } => put(to, usize::from(*failed)),
            Self::Sentinels { token, port } => {
                to.extend_from_slice(token);
                to.extend_from_slice(&port.to_le_bytes());
            }
        }
    }
}

/// A kind and a length.
const HEADER: usize = 9;

/// In the place of a number of rows: a reason follows.
const FAILED: usize = usize::MAX;

fn put(to: &mut Vec<u8>, n: usize) {
    to.extend_from_slice(&(n as u64).to_le_bytes());
}

fn put_ids(to: &mut Vec<u8>, ids: &[u32]) {
    put(to, ids.len());
    ids.iter().for_each(|id| to.extend(id.to_le_bytes()));
}

fn put_all(to: &mut Vec<u8>, numbers: &[usize]) {
    put(to, numbers.len());
    numbers.iter().for_each(|&n| put(to, n));
}

fn put_micro_batch(to: &mut Vec<u8>, micro: &MicroBatch) {
    put_ids(to, &micro.ids);
    put_ids(to, &micro.type_ids);
    put_all(to, &micro.cu_seqlens);
    put_all(to, &micro.n_tokens_per_rank);
    put(to, micro.tasks.len());
    for task in &micro.tasks {
        let (kind, flag, dimensions) = match *task {
            Task::Embed {
                normalize,
                dimensions,
            } => (0, normalize, dimensions),
            Task::Classify { raw_scores } => (1, raw_scores, None),
        };
        to.extend_from_slice(&[kind, u8::from(flag), u8::from(dimensions.is_some())]);
        put(to, dimensions.unwrap_or(0));
    }
}

/// What is left of a body.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn message(&mut self, kind: u8) -> Option<Message> {
        Some(match kind {
            0 => Message::Hello {
                token: self.bytes()?,
                rank: self.n()?,
            },
            1 => Message::Ping,
            2 => Message::Job(self.list(Self::micro_batch)?),
            3 => Message::Answer {
                stats: DeviceStats {
                    expert_bytes: self.u64()?,
                    expert_multiply_adds: self.u64()?,
                    n_dropped: self.u64()?,
                },
                answer: self.answer()?,
            },
            4 => Message::End {
                failed: self.n()? != 0,
            },
            5 => Message::Sentinels {
                token: self.bytes()?,
                port: u16::from_le_bytes(self.bytes()?),
            },
            _ => return None,
        })
    }

    fn micro_batch(&mut self) -> Option<MicroBatch> {
        Some(MicroBatch {
            ids: self.list(|rest| rest.bytes().map(u32::from_le_bytes))?,
            type_ids: self.list(|rest| rest.bytes().map(u32::from_le_bytes))?,
            cu_seqlens: self.list(Self::n)?,
            n_tokens_per_rank: self.list(Self::n)?.into(),
            tasks: self.list(Self::task)?,
        })
    }

    fn task(&mut self) -> Option<Task> {
        let [kind, flag, is_some] = self.bytes()?;
        let dimensions = self.n()?;
        match kind {
            0 => Some(Task::Embed {
                normalize: flag != 0,
                dimensions: (is_some != 0).then_some(dimensions),
            }),
            1 => Some(Task::Classify {
                raw_scores: flag != 0,
            }),
            _ => None,
        }
    }

    fn answer(&mut self) -> Option<Result<Vec<Vec<f32>>, String>> {
        let row = |rest: &mut Self| rest.list(|rest| rest.bytes().map(f32::from_le_bytes));
        let n = self.n()?;
        if n == FAILED {
            let reason = String::from_utf8_lossy(self.0).into_owned();
            self.0 = &[];
            return Some(Err(reason));
        }
        (0..n).map(|_| row(self)).collect::<Option<_>>().map(Ok)
    }

    /// As many as the number in front says.
    fn list<T>(&mut self, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let n = self.n()?;
        (0..n).map(|_| one(self)).collect()
    }

    fn n(&mut self) -> Option<usize> {
        usize::try_from(self.u64()?).ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(message: &Message) {
        let mut bytes = Vec::new();
        message.write(&mut bytes).expect("a vector takes anything");
        let read = Message::read(&mut &bytes[..]).expect("what was written");
        assert_eq!(&read, message);
        // Cut or changed anywhere: an error or another message, never a panic.
        for at in 0..bytes.len() {
            assert!(Message::read(&mut &bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 0xff;
            let _ = Message::read(&mut &changed[..]);
        }
    }

    #[test]
    fn every_message_arrives_as_it_was() {
        round_trip(&Message::Hello {
            token: [7; 16],
            rank: 3,
        });
        round_trip(&Message::Sentinels {
            token: [9; 16],
            port: 65_000,
        });
        round_trip(&Message::Ping);
        round_trip(&Message::End { failed: true });
        round_trip(&Message::Job(RankJob::default()));
        let embed = |dimensions| Task::Embed {
            normalize: true,
            dimensions,
        };
        let micro = MicroBatch {
            ids: vec![1, u32::MAX, 3],
            type_ids: vec![0, 1, 0],
            cu_seqlens: vec![0, 1, 2, 3],
            tasks: vec![
                embed(None),
                embed(Some(5)),
                Task::Classify { raw_scores: true },
            ],
            n_tokens_per_rank: [3, 0].into(),
        };
        round_trip(&Message::Job(vec![micro.clone()]));
        round_trip(&Message::Job(vec![MicroBatch::default(), micro]));
        let stats = DeviceStats {
            expert_bytes: 1,
            expert_multiply_adds: u64::MAX,
            n_dropped: 3,
        };
        for answer in [
            Ok(vec![vec![0.1, -0.0], vec![]]),
            Err("no memory".to_owned()),
        ] {
            round_trip(&Message::Answer { stats, answer });
        }
    }
}
