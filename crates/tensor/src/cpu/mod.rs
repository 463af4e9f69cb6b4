//! The device of a machine without accelerators: one rank on some of its cores.

mod attention;
mod compute;
pub mod cores;
mod experts;
mod ffn;
mod gemm;
pub(crate) mod isa;
pub(crate) mod lanes;
pub(crate) mod math;
mod norm;
pub(crate) mod pages;
mod panels;
pub(crate) mod parallel;
pub mod peak;
mod positions;
mod router;
mod table;
mod tensor;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use experts::Experts;
pub use isa::Isa;
pub use panels::Matrix;
pub use positions::{relative_bucket, rotation};
pub use table::Table;
pub use tensor::Tensor;

use crate::checkpoint::HostTensor;
use crate::checks::{check, check_attention, check_embedding, check_norm, check_segments};
use crate::collective::Collective;
use crate::device::{
    Activation, AttentionShape, DenseFfn, Device, DeviceError, DeviceStats, EmbeddingRows,
    ExpertSlice, HostMatrix, LinearWeights, Norm, Pooling, Result, RouterRule, Routing,
};
use crate::dtype::DType;
use crate::imposed::TakesRouting;
use compute::Compute;
use ffn::{FfnWeights, dense_ffn};
use gemm::{Layer, gemm};
use norm::norm_row;

/// How a [`CpuDevice`] is set up.
#[derive(Clone, Copy, Debug)]
pub struct CpuConfig {
    /// In which matrices and tables are kept. Activations and sums are f32.
    pub dtype: DType,
    /// Threads that share every operation.
    pub n_threads: usize,
    /// The first of as many cores, among those that the process may use, that threads are bound to;
    /// `None` leaves them to the system.
    pub first_core: Option<usize>,
    /// Which kernels to use.
    pub isa: Isa,
}

impl CpuConfig {
    /// The best kernels that this machine has, on threads that the system places.
    pub fn new(dtype: DType, n_threads: usize) -> Self {
        Self {
            dtype,
            n_threads,
            first_core: None,
            isa: Isa::detect(),
        }
    }
}

/// One rank on a CPU.
pub struct CpuDevice {
    config: CpuConfig,
    compute: Compute,
    collective: Box<dyn Collective>,
    counters: Arc<Counters>,
}

/// What a device counts; readable while it works.
#[derive(Debug, Default)]
pub struct Counters {
    expert_bytes: AtomicU64,
    expert_multiply_adds: AtomicU64,
    n_dropped: AtomicU64,
}

impl Counters {
    /// The counts as of now.
    pub fn read(&self) -> DeviceStats {
        DeviceStats {
            expert_bytes: self.expert_bytes.load(Ordering::Relaxed),
            expert_multiply_adds: self.expert_multiply_adds.load(Ordering::Relaxed),
            n_dropped: self.n_dropped.load(Ordering::Relaxed),
        }
    }
}

impl CpuDevice {
    /// A rank of `collective`'s world.
    ///
    /// # Errors
    /// [`DeviceError::SetUp`] if the threads cannot be started or the machine lacks the kernels'
    /// instructions.
    pub fn new(config: CpuConfig, collective: Box<dyn Collective>) -> Result<Self> {
        // What the kernels' `unsafe` relies on.
        if !Isa::available().contains(&config.isa) {
            let message = format!("this machine has no {} instructions", config.isa);
            return Err(DeviceError::SetUp(message));
        }
        let compute = Compute::new(&config)?;
        Ok(Self {
            config,
            compute,
            collective,
            counters: Arc::default(),
        })
    }

    /// Binds the calling thread, which is to run the operations, to the first of the device's
    /// cores, if it has any. The device's own threads are bound already.
    pub fn bind_caller(&self) {
        if let Some(core) = self.config.first_core {
            cores::bind(core);
        }
    }

    /// The counters, for readers on other threads.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl Device for CpuDevice {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Table = Table;
    type Experts = Experts;
    type Routing = Routing;

    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        for part in parts {
            check("load_matrix", "n_in", parts[0].n_in(), part.n_in())?;
        }
        Matrix::pack(self.config.dtype, parts, &self.compute.parallel)
    }

    fn load_exact_matrix(&self, host: &HostMatrix<'_>) -> Result<Matrix> {
        Matrix::pack(
            DType::F32,
            std::slice::from_ref(host),
            &self.compute.parallel,
        )
    }

    fn load_vector(&self, parts: &[HostTensor<'_>]) -> Result<Vec<f32>> {
        let vector: Vec<f32> = parts.iter().flat_map(HostTensor::to_f32).collect();
        match panels::all_finite(&vector) {
            true => Ok(vector),
            false => Err(panels::find_non_finite(parts.iter(), DType::F32)),
        }
    }

    fn load_table(&self, host: &HostTensor<'_>) -> Result<Table> {
        Table::load(self.config.dtype, host, &self.compute.parallel)
    }

    fn load_exact_table(&self, host: &HostTensor<'_>) -> Result<Table> {
        Table::load(DType::F32, host, &self.compute.parallel)
    }

    fn load_experts(
        &self,
        n_experts: usize,
        slices: Vec<ExpertSlice<'_>>,
        activation: Activation,
    ) -> Result<Experts> {
        let dtype = self.config.dtype;
        let experts = Experts::load(dtype, n_experts, slices, activation, &self.compute.parallel)?;
        self.counters
            .expert_bytes
            .fetch_add(experts.n_bytes() as u64, Ordering::Relaxed);
        Ok(experts)
    }

    fn embed(
        &self,
        rows: &[EmbeddingRows<'_, Table>],
        norm: Option<&Norm<Vec<f32>>>,
    ) -> Result<Tensor> {
        let [n_tokens, n_cols] = check_embedding(rows, |t: &Table| [t.n_rows(), t.n_cols()])?;
        let mut out = self.compute.arena.tensor(n_tokens, n_cols);
        check_norm("embed", n_cols, norm, Vec::len)?;
        let isa = self.config.isa;
        self.compute.for_each_row(&mut out, |token, out| {
            out.fill(0.0);
            for part in rows {
                part.table
                    .add_row(part.row_idx[token] as usize, part.scale, out);
            }
            if let Some(norm) = norm {
                norm_row(isa, norm, None, out);
            }
        });
        Ok(out)
    }

    fn norm(&self, x: &Tensor, norm: &Norm<Vec<f32>>) -> Result<Tensor> {
        check_norm("norm", x.n_cols, Some(norm), Vec::len)?;
        let mut out = self.compute.arena.tensor(x.n_rows, x.n_cols);
        let isa = self.config.isa;
        self.compute.for_each_row(&mut out, |i, out| {
            norm_row(isa, norm, Some(x.row(i)), out);
        });
        Ok(out)
    }

    fn linear(
        &self,
        x: &Tensor,
        w: &Matrix,
        bias: Option<&Vec<f32>>,
        activation: Activation,
        residual: Option<&Tensor>,
        norm: Option<&Norm<Vec<f32>>>,
    ) -> Result<Tensor> {
        check("linear", "n_in", w.n_in(), x.n_cols)?;
        if let Some(bias) = bias {
            check("linear", "bias", w.n_out(), bias.len())?;
        }
        if let Some(residual) = residual {
            check("linear", "residual rows", x.n_rows, residual.n_rows)?;
            check("linear", "residual columns", w.n_out(), residual.n_cols)?;
        }
        check_norm("linear", w.n_out(), norm, Vec::len)?;
        let mut out = self.compute.arena.tensor(x.n_rows, w.n_out());
        let layer = Layer {
            matrix: w,
            bias: bias.map(Vec::as_slice),
        };
        gemm(
            &self.compute,
            x.as_slice(),
            layer,
            activation,
            residual.map(Tensor::as_slice),
            norm,
            out.as_mut_slice(),
        );
        Ok(out)
    }

    fn ffn(
        &self,
        x: &Tensor,
        ffn: &DenseFfn<'_, Matrix, Vec<f32>>,
        residual: &Tensor,
        norm: Option<&Norm<Vec<f32>>>,
    ) -> Result<Tensor> {
        let (w_in, w_out) = (ffn.up.weight, ffn.down.weight);
        let check = |dim, expected, got| check("ffn", dim, expected, got);
        let check_bias = |dim, linear: &LinearWeights<'_, Matrix, Vec<f32>>| {
            let n_out = linear.weight.n_out();
            check(dim, n_out, linear.bias.map_or(n_out, Vec::len))
        };
        check("d_model of up", x.n_cols, w_in.n_in())?;
        check("d_ff", w_in.n_out(), w_out.n_in())?;
        check("bytes of a weight", w_in.weight_size(), w_out.weight_size())?;
        check_bias("bias of up", &ffn.up)?;
        check_bias("bias of down", &ffn.down)?;
        if let Some(gate) = &ffn.gate {
            let w = gate.weight;
            check("d_model of the gate", x.n_cols, w.n_in())?;
            check("d_ff of the gate", w_in.n_out(), w.n_out())?;
            check(
                "bytes of a weight of the gate",
                w_in.weight_size(),
                w.weight_size(),
            )?;
            check_bias("bias of the gate", gate)?;
        }
        check("residual rows", x.n_rows, residual.n_rows)?;
        check("residual columns", w_out.n_out(), residual.n_cols)?;
        check_norm("ffn", w_out.n_out(), norm, Vec::len)?;
        let mut out = self.compute.arena.tensor(x.n_rows, w_out.n_out());
        let weights = FfnWeights {
            up: Layer::of(&ffn.up),
            gate: ffn.gate.as_ref().map(Layer::of),
            down: Layer::of(&ffn.down),
        };
        dense_ffn(
            &self.compute,
            x.as_slice(),
            weights,
            ffn.activation,
            residual.as_slice(),
            norm,
            out.as_mut_slice(),
        );
        Ok(out)
    }

    fn add(
        &self,
        x: &mut Tensor,
        residual: &Tensor,
        bias: Option<&Vec<f32>>,
        norm: Option<&Norm<Vec<f32>>>,
    ) -> Result<()> {
        check("add", "n_rows", x.n_rows, residual.n_rows)?;
        check("add", "n_cols", x.n_cols, residual.n_cols)?;
        check("add", "bias", x.n_cols, bias.map_or(x.n_cols, Vec::len))?;
        check_norm("add", x.n_cols, norm, Vec::len)?;
        let isa = self.config.isa;
        self.compute.for_each_row(x, |i, row| {
            row.iter_mut()
                .zip(residual.row(i))
                .for_each(|(x, r)| *x += r);
            if let Some(bias) = bias {
                row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
            if let Some(norm) = norm {
                norm_row(isa, norm, None, row);
            }
        });
        Ok(())
    }

    fn attention(
        &self,
        qkv: &mut Tensor,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
        bias: Option<&Vec<f32>>,
    ) -> Result<Tensor> {
        let bias = bias.map_or(&[][..], Vec::as_slice);
        check_attention([qkv.n_rows, qkv.n_cols], cu_seqlens, shape, bias.len())?;
        let width = shape.n_heads * shape.head_dim;
        let mut out = self.compute.arena.tensor(qkv.n_rows, width);
        attention::attention(
            &self.compute,
            qkv.as_slice(),
            cu_seqlens,
            shape,
            bias,
            out.as_mut_slice(),
        );
        Ok(out)
    }

    fn route(&self, x: &Tensor, router: &Matrix, rule: RouterRule) -> Result<Routing> {
        let mut logits = self.linear(x, router, None, Activation::Identity, None, None)?;
        let mut routing = self.compute.routings().pop().unwrap_or_default();
        router::route(logits.as_mut_slice(), router.n_out(), rule, &mut routing);
        Ok(routing)
    }

    fn recycle(&self, routing: Routing) {
        self.compute.routings().push(routing);
    }

    fn limit_capacity(
        &self,
        routing: &mut Routing,
        segments: &[usize],
        capacity: usize,
        counted: bool,
    ) -> Result<()> {
        check_segments("limit_capacity", segments, routing.n_tokens())?;
        let kept = routing
            .expert_idx
            .iter()
            .filter(|&&e| e != Routing::DROPPED);
        let n_experts = kept.max().map_or(0, |&e| e as usize + 1);
        let n_dropped = router::limit_capacity(routing, n_experts, segments, capacity);
        if counted {
            self.counters
                .n_dropped
                .fetch_add(n_dropped, Ordering::Relaxed);
        }
        Ok(())
    }

    fn expert_ffn(&self, x: &Tensor, routing: &Routing, experts: &Experts) -> Result<Tensor> {
        check("expert_ffn", "n_tokens", x.n_rows, routing.n_tokens())?;
        let d_model = experts.d_model().unwrap_or(x.n_cols);
        check("expert_ffn", "d_model", d_model, x.n_cols)?;
        let mut out = self.compute.arena.tensor(x.n_rows, x.n_cols);
        let n = experts.run(
            &self.compute,
            x.as_slice(),
            routing,
            x.n_cols,
            out.as_mut_slice(),
        );
        self.counters
            .expert_multiply_adds
            .fetch_add(n, Ordering::Relaxed);
        Ok(out)
    }

    fn all_gather(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        let mut out = self.compute.arena.tensor(n_rows.iter().sum(), x.n_cols);
        let counts: Vec<_> = n_rows.iter().map(|n| n * x.n_cols).collect();
        self.collective
            .all_gather(x.as_slice(), &counts, out.as_mut_slice())?;
        Ok(out)
    }

    fn all_gather_routing(&self, routing: &Routing, n_rows: &[usize]) -> Result<Routing> {
        let counts: Vec<_> = n_rows.iter().map(|n| n * routing.top_k).collect();
        let n_slots = counts.iter().sum();
        let mut all = self.compute.routings().pop().unwrap_or_default();
        all.top_k = routing.top_k;
        all.expert_idx.resize(n_slots, 0);
        all.gate_weight.resize(n_slots, 0.0);
        // Gathering copies bits, so indices may travel as floats.
        let send = bytemuck::cast_slice(&routing.expert_idx);
        let recv = bytemuck::cast_slice_mut(&mut all.expert_idx);
        self.collective.all_gather(send, &counts, recv)?;
        self.collective
            .all_gather(&routing.gate_weight, &counts, &mut all.gate_weight)?;
        Ok(all)
    }

    fn reduce_scatter(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        let counts: Vec<_> = n_rows.iter().map(|n| n * x.n_cols).collect();
        let mine = n_rows.get(self.collective.rank()).copied().unwrap_or(0);
        let mut out = self.compute.arena.tensor(mine, x.n_cols);
        self.collective
            .reduce_scatter(x.as_slice(), &counts, out.as_mut_slice())?;
        Ok(out)
    }

    fn pool(&self, x: &Tensor, cu_seqlens: &[usize], rule: Pooling) -> Result<Tensor> {
        check_segments("pool", cu_seqlens, x.n_rows)?;
        let n_seqs = cu_seqlens.len().saturating_sub(1);
        let mut out = self.compute.arena.tensor(n_seqs, x.n_cols);
        self.compute.for_each_row(&mut out, |seq, out| {
            let range = &cu_seqlens[seq..seq + 2];
            let rows = match rule {
                Pooling::Cls => range[0]..(range[0] + 1).min(range[1]),
                Pooling::Mean => range[0]..range[1],
                Pooling::LastToken => range[1].saturating_sub(1).max(range[0])..range[1],
            };
            let factor = 1.0 / rows.len().max(1) as f32;
            out.fill(0.0);
            for row in rows {
                out.iter_mut().zip(x.row(row)).for_each(|(o, x)| *o += x);
            }
            out.iter_mut().for_each(|o| *o *= factor);
        });
        Ok(out)
    }

    fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        let mut out = self.compute.arena.tensor(x.n_rows, x.n_cols);
        self.compute.for_each_row(&mut out, |i, out| {
            out.iter_mut()
                .zip(x.row(i))
                .for_each(|(out, x)| *out = factor * x);
        });
        Ok(out)
    }

    fn to_host(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.as_slice().to_vec())
    }

    fn routing_to_host(&self, routing: &Routing) -> Result<Routing> {
        Ok(routing.clone())
    }

    fn stats(&self) -> DeviceStats {
        self.counters.read()
    }
}

impl TakesRouting for CpuDevice {
    fn routing_from_host(&self, routing: &Routing, n_experts: usize) -> Result<Routing> {
        let kept = routing.expert_idx.iter().copied();
        let kept = kept.filter(|&e| e != Routing::DROPPED);
        let n_named = kept.max().map_or(0, |e| e as usize + 1);
        let op = "routing_from_host";
        check(op, "n_experts", n_experts.max(n_named), n_experts)?;
        let (n_slots, n_gates) = (routing.expert_idx.len(), routing.gate_weight.len());
        check(op, "gates", n_slots, n_gates)?;
        Ok(self.routing_again(routing))
    }

    fn routing_again(&self, routing: &Routing) -> Routing {
        let mut again = self.compute.routings().pop().unwrap_or_default();
        again.top_k = routing.top_k;
        again.expert_idx.clone_from(&routing.expert_idx);
        again.gate_weight.clone_from(&routing.gate_weight);
        again
    }
}
