//! The memory of weights, and that of activations: one region, from which a pass takes and to which it gives back in an order
//! that depends on shapes alone, so that the same shapes find the same places.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::driver::{Address, Driver};

/// Alignment of every piece: whole sectors of memory, and more than any kernel asks for.
const ALIGNMENT: u64 = 256;

/// The memory of weights. What is released may still be named by launches that were only noted: it is given
/// back when they have been started.
pub(crate) struct Heap<R: Driver> {
    pub(crate) driver: Rc<R>,
    pub(crate) released: RefCell<Vec<Address>>,
    /// Whether memory is given back at the end alone. Giving back waits for the whole device, and its kernels may
    /// wait for ranks that are just giving back as well.
    pub(crate) holds_back: Cell<bool>,
}

impl<R: Driver> Heap<R> {
    pub(crate) fn new(driver: &Rc<R>) -> Rc<Self> {
        Rc::new(Self {
            driver: Rc::clone(driver),
            released: RefCell::default(),
            holds_back: Cell::new(false),
        })
    }

    /// Gives back what was released. Nothing that was noted may name it.
    pub(crate) fn give_back(&self) {
        if self.holds_back.get() {
            return;
        }
        for at in self.released.borrow_mut().drain(..) {
            // SAFETY: it was allocated for a buffer that is gone, and the driver waits for what it has
            // started.
            unsafe { self.driver.free(at) };
        }
    }
}

impl<R: Driver> Drop for Heap<R> {
    fn drop(&mut self) {
        self.holds_back.set(false);
        self.give_back();
    }
}

/// Which pieces of a region are in use. Knows no addresses: the region may move while it grows.
#[derive(Debug, Default)]
pub(crate) struct Region {
    /// Whose it is.
    stream: usize,
    /// Start and length of free pieces below `end`, in order, never adjacent.
    free: Vec<(u64, u64)>,
    /// Where what was never used begins, or was given back from there on.
    end: u64,
    /// The largest `end` since the last pass ran, and of pieces that were used since.
    size: u64,
}

impl Region {
    /// For what is done in a stream, one thing after the other.
    pub(crate) fn of_stream(stream: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            stream,
            ..Self::default()
        }))
    }

    /// Bytes that the region must have for what was noted.
    pub(crate) fn size(&self) -> u64 {
        self.size.max(self.end)
    }

    /// Begins anew to measure what is needed: a pass has run, or will never run.
    pub(crate) fn end_pass(&mut self) {
        self.size = 0;
    }

    /// The first place that is large enough.
    fn take(&mut self, n_bytes: u64) -> u64 {
        if let Some(i) = self.free.iter().position(|&(_, len)| len >= n_bytes) {
            let (start, len) = self.free[i];
            match len == n_bytes {
                true => drop(self.free.remove(i)),
                false => self.free[i] = (start + n_bytes, len - n_bytes),
            }
            return start;
        }
        let start = self.end;
        self.end += n_bytes;
        self.size = self.size.max(self.end);
        start
    }

    fn give_back(&mut self, start: u64, n_bytes: u64) {
        let at = self.free.partition_point(|&(other, _)| other < start);
        self.free.insert(at, (start, n_bytes));
        let joins = |free: &[(u64, u64)], i: usize| {
            i + 1 < free.len() && free[i].0 + free[i].1 == free[i + 1].0
        };
        if joins(&self.free, at) {
            self.free[at].1 += self.free.remove(at + 1).1;
        }
        if at > 0 && joins(&self.free, at - 1) {
            self.free[at - 1].1 += self.free.remove(at).1;
        }
        if let Some(&(start, len)) = self.free.last()
            && start + len == self.end
        {
            self.end = start;
            self.free.pop();
        }
    }
}

/// A piece of a region, given back when it is dropped.
///
/// It may be taken again while work that uses it has only been asked for: a stream does one thing after
/// the other, and each has a region of its own.
#[derive(Debug)]
pub(crate) struct Piece {
    region: Rc<RefCell<Region>>,
    stream: usize,
    start: u64,
    n_bytes: u64,
}

impl Piece {
    pub(crate) fn take(region: &Rc<RefCell<Region>>, n_bytes: usize) -> Self {
        let n_bytes = (n_bytes as u64).next_multiple_of(ALIGNMENT);
        let start = match n_bytes {
            0 => 0,
            n => region.borrow_mut().take(n),
        };
        Self {
            region: Rc::clone(region),
            stream: region.borrow().stream,
            start,
            n_bytes,
        }
    }

    /// Has the pass that is noted use it: there must be room for it when that runs, also if it was taken for an earlier one
    /// and is given back before.
    pub(crate) fn used(&self) -> &Self {
        let mut region = self.region.borrow_mut();
        region.size = region.size.max(self.start + self.n_bytes);
        self
    }

    /// In whose region it is.
    pub(crate) fn stream(&self) -> usize {
        self.stream
    }

    /// From the beginning of the region.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.n_bytes > 0 {
            self.region.borrow_mut().give_back(self.start, self.n_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_do_not_overlap_and_all_comes_back(
            steps in prop::collection::vec((any::<bool>(), 0..5000_usize), 1..200)
        ) {
            let region = Rc::new(RefCell::new(Region::default()));
            let mut held: Vec<Piece> = Vec::new();
            for (takes, n) in steps {
                if takes || held.is_empty() {
                    held.push(Piece::take(&region, n));
                } else {
                    held.swap_remove(n % held.len());
                }
                let mut places: Vec<_> = held
                    .iter()
                    .filter(|p| p.n_bytes > 0)
                    .map(|p| (p.start, p.n_bytes))
                    .collect();
                places.sort_unstable();
                for two in places.windows(2) {
                    prop_assert!(two[0].0 + two[0].1 <= two[1].0, "{places:?}");
                }
                let end = places.last().map_or(0, |&(start, n)| start + n);
                prop_assert_eq!(region.borrow().end, end);
                prop_assert!(region.borrow().size() >= end);
            }
            held.clear();
            prop_assert_eq!(region.borrow().end, 0);
            prop_assert!(region.borrow().free.is_empty());
        }
    }

    #[test]
    fn what_is_used_after_a_pass_has_ended_counts_for_the_next() {
        let region = Rc::new(RefCell::new(Region::default()));
        let size = || region.borrow().size();
        let held = [1000, 3000].map(|n| Piece::take(&region, n));
        region.borrow_mut().end_pass();
        held[0].used();
        drop(held);
        assert_eq!(size(), 1024);
        region.borrow_mut().end_pass();
        assert_eq!(size(), 0);
    }

    #[test]
    fn the_same_sequence_finds_the_same_places() {
        let region = Rc::new(RefCell::new(Region::default()));
        let sequence = || {
            let a = Piece::take(&region, 1000);
            let b = Piece::take(&region, 10);
            drop(a);
            let c = Piece::take(&region, 300);
            let d = Piece::take(&region, 3000);
            [b.start(), c.start(), d.start()]
        };
        assert_eq!(sequence(), sequence());
        assert_eq!(region.borrow().size(), 1024 + 256 + 3072);
    }
}
