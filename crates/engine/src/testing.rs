//! A small model on ranks of the CPU, for tests.

use std::path::Path;
use std::sync::Arc;

use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::dtype::DType;

use crate::{CpuRanks, Layout};

pub(crate) fn model() -> Arc<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/nomic_moe");
    Arc::new(Model::open(&folder).expect("nomic_moe"))
}

pub(crate) fn layout(n_ranks: usize) -> Layout {
    Layout {
        n_ranks,
        strategy: Strategy::Sharded,
        sequence_capacity: None,
        overlap: None,
    }
}

pub(crate) fn cpu() -> CpuRanks {
    CpuRanks {
        dtype: DType::F32,
        n_threads: 3,
        binds_threads: false,
        isa: Isa::detect(),
    }
}

/// Told of progress in loading, and forgets it.
pub(crate) fn told() -> Arc<dyn Fn(u64) + Send + Sync> {
    Arc::new(|_| {})
}
