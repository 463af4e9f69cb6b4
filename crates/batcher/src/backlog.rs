//! The sequences that wait for their batch.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::pack::{Budget, Waiting, pack};
use crate::queue::Sequence;

/// How often everything is searched for clients that are gone, whose room others may be waiting
/// for. Searching 65,536 sequences took 0.2 ms on one core of a shared virtual machine, so this costs
/// less than 1 % of the time.
const SWEEP_PAUSE: Duration = Duration::from_millis(50);

/// The sequences that wait for their batch, by length.
///
/// Of sequences of the same length the one that came first goes first, and a batch has room for
/// only so many of a length. So only the first of each length have to be looked at, and a batch
/// costs no more when tens of thousands wait.
#[derive(Default)]
pub(crate) struct Backlog {
    /// By number of tokens; of one length in order of arrival. No queue is empty.
    by_length: BTreeMap<usize, VecDeque<Sequence>>,
    /// When everything was last searched for clients that are gone.
    swept: Option<Instant>,
}

impl Backlog {
    /// Sequences that wait.
    pub(crate) fn n_seqs(&self) -> usize {
        self.by_length.values().map(VecDeque::len).sum()
    }

    /// Lets one more wait.
    pub(crate) fn push(&mut self, sequence: Sequence) {
        let queue = self.by_length.entry(sequence.ids.len()).or_default();
        queue.push_back(sequence);
    }

    /// Removes everything.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Sequence> + use<> {
        std::mem::take(&mut self.by_length).into_values().flatten()
    }

    /// Removes the sequences that [`pack`] chooses; none only if nobody waits for an answer.
    /// Sequences whose client is gone are dropped.
    pub(crate) fn take_batch(&mut self, budget: Budget, now: Instant) -> Vec<Sequence> {
        self.sweep(now);
        loop {
            let mut batch = self.take_chosen(budget, now);
            batch.retain(is_wanted);
            if !batch.is_empty() || self.by_length.is_empty() {
                return batch;
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        let since = |swept| now.saturating_duration_since(swept);
        if self.swept.is_some_and(|swept| since(swept) < SWEEP_PAUSE) {
            return;
        }
        self.swept = Some(now);
        self.by_length.retain(|_, queue| {
            queue.retain(is_wanted);
            !queue.is_empty()
        });
    }

    /// Those that can be in the next batch, by length.
    fn candidates(&self, budget: Budget) -> impl Iterator<Item = &Sequence> {
        let first = move |(&n_tokens, queue): (&usize, _)| {
            let queue: &VecDeque<Sequence> = queue;
            queue.iter().take(budget.most_of(n_tokens))
        };
        self.by_length.iter().flat_map(first)
    }

    fn take_chosen(&mut self, budget: Budget, now: Instant) -> Vec<Sequence> {
        let waiting = |sequence: &Sequence| Waiting {
            n_tokens: sequence.ids.len(),
            waited: now.saturating_duration_since(sequence.submitted),
        };
        let waiting: Vec<Waiting> = self.candidates(budget).map(waiting).collect();
        let chosen = pack(&waiting, budget);
        let mut batch = Vec::with_capacity(chosen.len());
        let mut chosen = chosen.into_iter().peekable();
        let mut start = 0;
        for (&n_tokens, queue) in &mut self.by_length {
            let end = start + queue.len().min(budget.most_of(n_tokens));
            let next = || chosen.next_if(|&candidate| candidate < end);
            let positions: Vec<usize> = std::iter::from_fn(next).map(|c| c - start).collect();
            take(queue, &positions, &mut batch);
            start = end;
        }
        self.by_length.retain(|_, queue| !queue.is_empty());
        batch
    }
}

fn is_wanted(sequence: &Sequence) -> bool {
    !sequence.reply.is_closed()
}

/// Moves the elements at the `chosen` positions, which ascend, to `taken`. Whatever is behind the
/// last of them stays where it is.
fn take<T>(queue: &mut VecDeque<T>, chosen: &[usize], taken: &mut Vec<T>) {
    let end = chosen.last().map_or(0, |last| last + 1);
    let mut kept = Vec::with_capacity(end - chosen.len());
    let mut chosen = chosen.iter().peekable();
    for (position, element) in queue.drain(..end).enumerate() {
        if chosen.next_if_eq(&&position).is_some() {
            taken.push(element);
        } else {
            kept.push(element);
        }
    }
    for element in kept.into_iter().rev() {
        queue.push_front(element);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::oneshot::Receiver;

    use super::*;
    use crate::SubmitError;
    use crate::handle::Answer;
    use crate::testing::sequence;

    type Client = Receiver<Result<Answer, SubmitError>>;

    /// Sequences of these lengths that came one second after the other, the last one just now; the
    /// only token id that matters, the first, is their number.
    fn backlog(lengths: &[usize], now: Instant) -> (Backlog, Vec<Client>) {
        let mut backlog = Backlog::default();
        let mut clients = Vec::new();
        for (seq_idx, &n_tokens) in lengths.iter().enumerate() {
            let age = Duration::from_secs((lengths.len() - seq_idx) as u64);
            let (mut sequence, client) = sequence(n_tokens, now - age);
            sequence.ids[0] = seq_idx as u32;
            backlog.push(sequence);
            clients.push(client);
        }
        (backlog, clients)
    }

    fn numbers(batch: &[Sequence]) -> Vec<u32> {
        batch.iter().map(|sequence| sequence.ids[0]).collect()
    }

    #[test]
    fn only_the_chosen_are_taken() {
        let check = |n: usize, chosen: &[usize], left: &[usize]| {
            let mut queue: VecDeque<usize> = (0..n).collect();
            let mut taken = Vec::new();
            take(&mut queue, chosen, &mut taken);
            assert_eq!(taken, chosen);
            assert_eq!(queue, left);
        };
        check(0, &[], &[]);
        check(3, &[], &[0, 1, 2]);
        check(5, &[0, 2], &[1, 3, 4]);
        check(5, &[0, 4], &[1, 2, 3]);
        check(3, &[0, 1, 2], &[]);
    }

    #[test]
    fn a_batch_looks_at_a_few_of_those_that_wait() {
        let now = Instant::now();
        let lengths: Vec<usize> = (0..65_536).map(|i| 3 + i % 10).collect();
        let (backlog, _clients) = backlog(&lengths, now);
        let budget = |max_seqs| Budget {
            max_tokens: 512,
            max_seqs,
        };
        assert_eq!(backlog.candidates(budget(8)).count(), 10 * 8);
        let fitting: usize = (3..13).map(|n_tokens| 512 / n_tokens).sum();
        assert_eq!(backlog.candidates(budget(usize::MAX)).count(), fitting);
    }

    #[test]
    fn those_whose_client_is_gone_are_passed_over_and_later_dropped() {
        let now = Instant::now();
        let budget = Budget {
            max_tokens: 6,
            max_seqs: 2,
        };
        let (mut backlog, mut clients) = backlog(&[3; 9], now);
        assert_eq!(numbers(&backlog.take_batch(budget, now)), [0, 1]);
        clients.drain(2..6);
        clients.pop();
        assert_eq!(numbers(&backlog.take_batch(budget, now)), [6, 7]);
        assert_eq!(backlog.n_seqs(), 1);
        assert!(backlog.take_batch(budget, now).is_empty());
        assert_eq!(backlog.n_seqs(), 0);
    }

    #[test]
    fn a_sweep_finds_those_far_behind() {
        let now = Instant::now();
        let budget = Budget {
            max_tokens: 3,
            max_seqs: 1,
        };
        let (mut backlog, mut clients) = backlog(&[3; 9], now);
        assert_eq!(numbers(&backlog.take_batch(budget, now)), [0]);
        clients.pop();
        assert_eq!(numbers(&backlog.take_batch(budget, now)), [1]);
        assert_eq!(backlog.n_seqs(), 7);
        let later = now + SWEEP_PAUSE;
        assert_eq!(numbers(&backlog.take_batch(budget, later)), [2]);
        assert_eq!(backlog.n_seqs(), 5);
    }

    proptest! {
        #[test]
        fn every_sequence_leaves_exactly_once(
            lengths in prop::collection::vec(1usize..40, 1..120),
            max_tokens in 1usize..100,
            max_seqs in 1usize..20,
        ) {
            let now = Instant::now();
            let (mut backlog, _clients) = backlog(&lengths, now);
            let mut waiting: Vec<u32> = (0..lengths.len() as u32).collect();
            while !waiting.is_empty() {
                let batch = backlog.take_batch(Budget { max_tokens, max_seqs }, now);
                let n_tokens: usize = batch.iter().map(|sequence| sequence.ids.len()).sum();
                prop_assert!(n_tokens <= max_tokens || batch.len() == 1);
                prop_assert!(batch.len() <= max_seqs);
                let numbers = numbers(&batch);
                prop_assert!(numbers.contains(&waiting[0]), "the oldest always goes");
                let before = waiting.len();
                waiting.retain(|number| !numbers.contains(number));
                prop_assert_eq!(before - waiting.len(), batch.len());
                prop_assert_eq!(backlog.n_seqs(), waiting.len());
            }
        }
    }
}
