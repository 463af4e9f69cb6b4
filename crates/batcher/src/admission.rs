//! Whether new work is accepted: by tokens, because tokens are what takes time, and by bytes of
//! text until it is tokenized, because those are what takes memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The longest time a client is told to wait. Not measured: by then the load has changed, so that a
/// longer promise would only keep clients away from an idle server.
const LONGEST_RETRY: Duration = Duration::from_secs(120);

/// Whether work may come in while `n_held` tokens (or bytes) of accepted work are held.
///
/// The size of the newcomer does not count: a bulk request larger than the whole limit is accepted
/// by an idle server and split, so the limit may be exceeded by one request.
#[must_use]
pub fn admits(n_held: usize, limit: usize) -> bool {
    n_held < limit.max(1)
}

/// When it is worth trying again: the time the accepted tokens take at the measured rate.
///
/// # Units
/// Whole seconds, at least one, as `Retry-After` wants them; `tokens_per_second` is zero as long as
/// nothing was measured.
#[must_use]
pub fn retry_after(n_tokens: usize, tokens_per_second: f64) -> Duration {
    if tokens_per_second.is_nan() || tokens_per_second <= 0.0 {
        return Duration::from_secs(1);
    }
    let seconds = (n_tokens as f64 / tokens_per_second).ceil();
    Duration::from_secs_f64(seconds.clamp(1.0, LONGEST_RETRY.as_secs_f64()))
}

/// Counts the tokens and sequences that are accepted and not answered, and the bytes that are
/// accepted and not tokenized.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    n_tokens: AtomicUsize,
    n_seqs: AtomicUsize,
    n_bytes: AtomicUsize,
}

impl Gauge {
    /// Takes room for one request of `sizes` tokens each, or says how many tokens are in the way.
    pub(crate) fn admit(
        self: &Arc<Self>,
        sizes: &[usize],
        max_tokens: usize,
    ) -> Result<Vec<Reservation>, usize> {
        take(&self.n_tokens, sizes.iter().sum(), max_tokens)?;
        self.n_seqs.fetch_add(sizes.len(), Ordering::AcqRel);
        let reserve = |&n_tokens: &usize| Reservation {
            gauge: Arc::clone(self),
            n_tokens,
        };
        Ok(sizes.iter().map(reserve).collect())
    }

    /// Takes room for texts of `sizes` bytes each, or says how many bytes are in the way.
    pub(crate) fn admit_bytes(
        self: &Arc<Self>,
        sizes: &[usize],
        max_bytes: usize,
    ) -> Result<Vec<ByteReservation>, usize> {
        take(&self.n_bytes, sizes.iter().sum(), max_bytes)?;
        let reserve = |&n_bytes: &usize| ByteReservation {
            gauge: Arc::clone(self),
            n_bytes,
        };
        Ok(sizes.iter().map(reserve).collect())
    }

    /// Tokens accepted and not answered.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens.load(Ordering::Acquire)
    }

    /// Sequences accepted and not answered.
    pub(crate) fn n_seqs(&self) -> usize {
        self.n_seqs.load(Ordering::Acquire)
    }

    /// Bytes accepted and not tokenized.
    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes.load(Ordering::Acquire)
    }
}

/// Adds `more` to `held` if the limit admits it, or says how much is held.
fn take(held: &AtomicUsize, more: usize, limit: usize) -> Result<(), usize> {
    let add = |n_held| admits(n_held, limit).then_some(n_held + more);
    held.fetch_update(Ordering::AcqRel, Ordering::Acquire, add)
        .map(|_| ())
}

/// Room held by one sequence; given back when dropped, whatever becomes of the sequence.
#[derive(Debug)]
pub(crate) struct Reservation {
    gauge: Arc<Gauge>,
    n_tokens: usize,
}

impl Reservation {
    /// Replaces the estimate by the true number of tokens.
    pub(crate) fn resize(&mut self, n_tokens: usize) {
        if n_tokens >= self.n_tokens {
            self.gauge
                .n_tokens
                .fetch_add(n_tokens - self.n_tokens, Ordering::AcqRel);
        } else {
            self.gauge
                .n_tokens
                .fetch_sub(self.n_tokens - n_tokens, Ordering::AcqRel);
        }
        self.n_tokens = n_tokens;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.gauge
            .n_tokens
            .fetch_sub(self.n_tokens, Ordering::AcqRel);
        self.gauge.n_seqs.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Memory held by one text until it is tokenized; given back when dropped.
#[derive(Debug)]
pub(crate) struct ByteReservation {
    gauge: Arc<Gauge>,
    n_bytes: usize,
}

impl ByteReservation {
    /// Bytes of the text.
    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

impl Drop for ByteReservation {
    fn drop(&mut self) {
        self.gauge.n_bytes.fetch_sub(self.n_bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_may_overshoot_once() {
        let gauge = Arc::new(Gauge::default());
        let bulk = gauge
            .admit(&[100; 50], 1000)
            .expect("an idle server takes a bulk request");
        assert_eq!((gauge.n_tokens(), gauge.n_seqs()), (5000, 50));
        assert_eq!(
            gauge.admit(&[1], 1000).expect_err("the limit is reached"),
            5000
        );
        drop(bulk);
        assert_eq!((gauge.n_tokens(), gauge.n_seqs()), (0, 0));
        assert!(gauge.admit(&[1], 1000).is_ok());
    }

    #[test]
    fn a_reservation_gives_back_what_it_took() {
        let gauge = Arc::new(Gauge::default());
        let mut room = gauge.admit(&[10], 100).expect("room");
        room[0].resize(25);
        assert_eq!(gauge.n_tokens(), 25);
        room[0].resize(5);
        assert_eq!(gauge.n_tokens(), 5);
        drop(room);
        assert_eq!(gauge.n_tokens(), 0);
    }

    #[test]
    fn bytes_have_a_limit_of_their_own() {
        let gauge = Arc::new(Gauge::default());
        let texts = gauge
            .admit_bytes(&[600, 600], 1000)
            .expect("one overshoot is allowed");
        assert_eq!((gauge.n_bytes(), texts[0].n_bytes()), (1200, 600));
        let refused = gauge.admit_bytes(&[1], 1000);
        assert_eq!(refused.expect_err("the limit is reached"), 1200);
        assert_eq!((gauge.n_tokens(), gauge.n_seqs()), (0, 0));
        drop(texts);
        assert_eq!(gauge.n_bytes(), 0);
    }

    #[test]
    fn retry_after_is_the_time_to_drain() {
        let check = |n_tokens, rate, expect| {
            assert_eq!(retry_after(n_tokens, rate), Duration::from_secs(expect));
        };
        check(1000, 0.0, 1);
        check(1000, 1e9, 1);
        check(1000, 300.0, 4);
        check(usize::MAX, 1.0, 120);
        check(1000, f64::NAN, 1);
    }
}
