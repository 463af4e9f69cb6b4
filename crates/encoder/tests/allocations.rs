//! A forward pass allocates nothing once a batch of its size has been seen.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use moeshard_encoder::forward::{Encoder, RankBatch};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice};
use moeshard_tensor::dtype::DType;

/// Counts what all threads ask for.
struct Counting;

static N_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_forward_pass_allocates_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mini");
    let model = Model::open(&folder).expect("models/mini");
    for dtype in [DType::F32, DType::BF16] {
        let config = CpuConfig::new(dtype, 2);
        let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
        let plan = ShardPlan {
            rank: 0,
            world_size: 1,
            strategy: Strategy::Replicated,
        };
        let (spec, checkpoint) = (&model.spec, &model.checkpoint);
        let encoder =
            Encoder::load(device, spec, checkpoint, plan, None, &|_| ()).expect("weights");
        let run = |n_seqs: usize, length: usize| {
            let ids: Vec<u32> = (0..n_seqs * length)
                .map(|i| (i * 37 % 1000) as u32)
                .collect();
            let cu_seqlens: Vec<usize> = (0..=n_seqs).map(|i| i * length).collect();
            let batch = RankBatch {
                ids: &ids,
                type_ids: &vec![0; ids.len()],
                cu_seqlens: &cu_seqlens,
                n_tokens_per_rank: &[ids.len()],
            };
            let before = N_ALLOCATIONS.load(Ordering::Relaxed);
            let hidden = encoder.forward(&batch).expect("forward");
            drop(hidden);
            N_ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        // More tokens than are multiplied at once.
        assert!(run(41, 100) > 0, "{dtype}: the counter counts");
        // Which thread works on what differs from pass to pass, and each has memory of its own.
        for _ in 0..20 {
            run(41, 100);
        }
        for (n_seqs, length) in [(41, 100), (1, 7), (20, 100), (3, 64), (31, 100), (41, 100)] {
            assert_eq!(run(n_seqs, length), 0, "{dtype}: {n_seqs} × {length}");
        }
    }
}
