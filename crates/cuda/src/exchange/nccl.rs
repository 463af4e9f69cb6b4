//! Ranks on GPUs that do not reach each other's memory: NCCL brings what each gives, all parts of one size.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use moeshard_tensor::device::Result;

use super::{ALIGNMENT, BLOCK_BYTES, Part, Source, WORD, at, largest};
use crate::device::CudaDevice;
use crate::driver::nccl::{ALL_GATHER, ALL_TO_ALL, WorldId};
use crate::driver::{Driver, N_STREAMS};
use crate::memory::Heap;
use crate::operations::words;
use crate::pass::Word;
use crate::tensor::Tensor;
use crate::weights::Buffer;

/// A rank's end of a world of NCCL's.
pub(crate) struct Ring<R: Driver> {
    heap: Rc<Heap<R>>,
    n_ranks: usize,
    /// u64 `[2]`, zero: there are no halves.
    state: Buffer<R>,
    /// Of each stream.
    buffers: [RefCell<Buffers<R>>; N_STREAMS],
}

/// What is sent and received, `[world, _]` each.
struct Buffers<R: Driver> {
    sent: Option<Buffer<R>>,
    received: Option<Buffer<R>>,
    n_bytes: usize,
}

impl<R: Driver> Ring<R> {
    /// This rank's end, if every rank has the library.
    pub(super) fn of(device: &CudaDevice<R>, deadline: Duration) -> Result<Option<Self>> {
        let (heap, collective) = (&device.heap, &device.collective);
        let (rank, n_ranks) = (collective.rank(), collective.world_size());
        let nccl = device.driver.nccl();
        if device.gather_words(nccl.is_some().into())?.contains(&0) {
            return Ok(None);
        }
        let Some(nccl) = nccl else {
            return Ok(None);
        };
        // The library knows no two ranks on one GPU.
        let mut ids = device.gather_words(device.driver.gpu_id()?)?;
        ids.sort_unstable();
        ids.dedup();
        if ids.len() < n_ranks {
            return Ok(None);
        }
        let mut id = match rank {
            0 => nccl.new_id()?,
            _ => WorldId([0; 16]),
        };
        // Copies bits, as floats.
        collective.broadcast(bytemuck::cast_slice_mut(&mut id.0), 0)?;
        nccl.join(id, (rank, n_ranks), deadline)?;
        Ok(Some(Self {
            heap: Rc::clone(heap),
            n_ranks,
            state: Buffer::zeroed(heap, 2 * size_of::<u64>())?,
            buffers: std::array::from_fn(|_| {
                RefCell::new(Buffers {
                    sent: None,
                    received: None,
                    n_bytes: 0,
                })
            }),
        }))
    }

    /// Every rank's parts to every rank.
    pub(super) fn give(
        &self,
        device: &CudaDevice<R>,
        parts: &[Part<'_>],
        slot: usize,
    ) -> Result<Source> {
        self.make_room(device, self.n_ranks * slot)?;
        let buffers = self.buffers[device.stream()].borrow();
        let sent = at(buffers.sent.as_ref());
        let state = Word::address(self.state.at());
        for part in parts {
            device.publish(part, sent, 0, state);
        }
        Ok(self.exchange(device, ALL_GATHER, slot))
    }

    /// To every rank its rows of `x`.
    pub(super) fn spread(
        &self,
        device: &CudaDevice<R>,
        x: &Tensor,
        n_rows: &[usize],
    ) -> Result<Source> {
        let row_bytes = x.n_cols * x.dtype.size();
        let slot = (largest(n_rows) * row_bytes).next_multiple_of(ALIGNMENT);
        self.make_room(device, self.n_ranks * slot)?;
        let rows = device.summed(x);
        let buffers = self.buffers[device.stream()].borrow();
        device.launch(
            "exchange_spread",
            [(x.n_padded * row_bytes).div_ceil(BLOCK_BYTES), 1],
            0,
            &words![
                Word::piece(&rows),
                device.ranks_starts(n_rows),
                self.n_ranks,
                row_bytes / WORD,
                Word::address(slot as u64),
                at(buffers.sent.as_ref()),
            ],
        );
        Ok(self.exchange(device, ALL_TO_ALL, slot))
    }

    fn exchange(&self, device: &CudaDevice<R>, op: &'static str, slot: usize) -> Source {
        let buffers = self.buffers[device.stream()].borrow();
        let received = at(buffers.received.as_ref());
        device.launch_with(
            op,
            [1, 1],
            1,
            0,
            &words![
                at(buffers.sent.as_ref()),
                received,
                Word::address(slot as u64)
            ],
        );
        Source {
            buffers: received,
            stride: slot,
            half_bytes: 0,
            state: Word::address(self.state.at()),
        }
    }

    fn make_room(&self, device: &CudaDevice<R>, n_bytes: usize) -> Result<()> {
        let mut buffers = self.buffers[device.stream()].borrow_mut();
        if n_bytes <= buffers.n_bytes {
            return Ok(());
        }
        // What was noted names the old places.
        device.run()?;
        let n_bytes = n_bytes.next_power_of_two();
        *buffers = Buffers {
            sent: Some(Buffer::new(&self.heap, n_bytes)?),
            received: Some(Buffer::new(&self.heap, n_bytes)?),
            n_bytes,
        };
        Ok(())
    }
}

impl<R: Driver> Drop for Ring<R> {
    fn drop(&mut self) {
        // Before anything waits for the stream: kernels there may wait for ranks that are gone.
        if let Some(nccl) = self.heap.driver.nccl() {
            nccl.abort();
        }
    }
}
