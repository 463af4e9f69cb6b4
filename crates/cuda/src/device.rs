//! The device: checks of arguments, and which launches an operation is made of.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::checks::{
    check, check_attention, check_embedding, check_norm, check_segments,
};
use moeshard_tensor::collective::Collective;
use moeshard_tensor::device::{
    Activation, AttentionShape, DenseFfn, Device, DeviceStats, EmbeddingRows, ExpertSlice,
    HostMatrix, LinearWeights, Norm, Pooling, Result, RouterRule, Routing as HostRouting,
};
use moeshard_tensor::dtype::DType;

use crate::arguments::{check_bias, check_dtype, check_linear, check_shared};
use crate::attention::Rotations;
use crate::driver::Driver;
use crate::exchange::Link;
use crate::gemm::Gemm;
use crate::memory::Heap;
use crate::moe::sorting_bytes;
use crate::operations::{named, norm_words, words};
use crate::pass::{Pass, Word};
use crate::tensor::{Content, Routing, Tensor, Weighted, padded};
use crate::weights::{Buffer, Experts, Matrix, Table, Vector, widened};

/// Warps of a block.
const WARPS: usize = 8;
/// Tokens of a batch, at most: kernels count assignments and elements of a row in 32 bits.
const MOST_TOKENS: usize = 1 << 24;
/// Tables of an embedding, at most.
const MOST_TABLES: usize = 3;
/// Layers of experts whose work is counted.
const MOST_COUNTERS: usize = 1023;

/// How a [`CudaDevice`] is set up.
#[derive(Clone, Copy, Debug)]
pub struct CudaConfig {
    /// In which weights and activations are kept. Sums are f32, and so are norms, softmax and router.
    pub dtype: DType,
}

/// One rank on a GPU. It belongs to the thread that made it.
pub struct CudaDevice<R: Driver> {
    /// First, so that it leaves the others before anything is given back.
    pub(crate) link: Link<R>,
    pub(crate) config: CudaConfig,
    pub(crate) gemm: Gemm,
    pub(crate) pass: RefCell<Pass<R>>,
    pub(crate) collective: Box<dyn Collective>,
    /// u64: assignments dropped, then those computed by each layer of experts.
    pub(crate) counters: Buffer<R>,
    /// Multiply-adds of an assignment of each counter.
    costs: RefCell<Vec<u64>>,
    expert_bytes: Cell<u64>,
    pub(crate) rotations: RefCell<Vec<Rotations<R>>>,
    /// Whether every operation runs, and is waited for, when it is asked for.
    is_eager: Cell<bool>,
    pub(crate) heap: Rc<Heap<R>>,
    pub(crate) driver: Rc<R>,
}

impl<R: Driver> CudaDevice<R> {
    /// A rank of `collective`'s world on the driver's GPU.
    ///
    /// # Errors
    /// If the GPU has no memory left, or `MOESHARD_CUDA_GEMM` names no kernel.
    pub fn new(config: CudaConfig, driver: R, collective: Box<dyn Collective>) -> Result<Self> {
        Self::with_gemm(config, Gemm::from_env()?, driver, collective)
    }

    /// The same, with products on these kernels.
    ///
    /// # Errors
    /// If the GPU has no memory left.
    pub fn with_gemm(
        config: CudaConfig,
        gemm: Gemm,
        driver: R,
        collective: Box<dyn Collective>,
    ) -> Result<Self> {
        let driver = Rc::new(driver);
        let heap = Heap::new(&driver);
        Ok(Self {
            link: Link::Host,
            config,
            gemm,
            pass: RefCell::new(Pass::new(Rc::clone(&heap))),
            collective,
            counters: Buffer::zeroed(&heap, (1 + MOST_COUNTERS) * size_of::<u64>())?,
            costs: RefCell::new(vec![0]),
            expert_bytes: Cell::new(0),
            rotations: RefCell::default(),
            is_eager: Cell::new(false),
            heap,
            driver,
        })
    }

    /// The driver that it was made with.
    pub fn driver(&self) -> &R {
        &self.driver
    }

    /// Whether to run every operation when it is asked for and wait for it, so that it can be timed.
    pub fn set_eager(&self, is_eager: bool) {
        self.is_eager.set(is_eager);
    }

    /// Starts everything that was asked for, without waiting for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self) -> Result<()> {
        self.run()
    }

    /// Waits until everything that was started is done.
    ///
    /// # Errors
    /// If some of it failed.
    pub fn wait(&self) -> Result<()> {
        self.driver.wait()?;
        self.link.check()
    }

    /// Has a tensor computed to its end: what experts have said is summed, which would else wait for someone
    /// who adds to it.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn finish(&self, x: &Tensor) -> Result<()> {
        self.summed(x);
        self.noted()
    }

    /// A tensor of what was noted last; timed if asked.
    pub(crate) fn tensor(
        &self,
        content: Content,
        dtype: DType,
        (n_rows, n_padded, n_cols): (usize, usize, usize),
    ) -> Result<Tensor> {
        self.noted()?;
        Ok(Tensor {
            content,
            dtype,
            n_rows,
            n_padded,
            n_cols,
        })
    }

    /// After an operation.
    fn noted(&self) -> Result<()> {
        if !self.is_eager.get() {
            return Ok(());
        }
        self.run()?;
        self.driver.wait()
    }

    /// Starts what was noted.
    pub(crate) fn run(&self) -> Result<()> {
        self.pass.borrow_mut().run()
    }

    /// Rows of a piece on the host, once everything before is done.
    pub(crate) fn download(&self, piece: &crate::memory::Piece, to: &mut [u8]) -> Result<()> {
        self.run()?;
        let at = self.pass.borrow().address(piece);
        // SAFETY: a piece is as large as what is asked of it, and the region is there once something ran.
        unsafe { self.driver.download(at, to)? };
        self.link.check()
    }
}

impl<R: Driver> Device for CudaDevice<R> {
    type Tensor = Tensor;
    type Matrix = Matrix<R>;
    type Vector = Vector<R>;
    type Table = Table<R>;
    type Experts = Experts<R>;
    type Routing = Routing;

    fn n_streams(&self) -> usize {
        self.link.n_streams()
    }

    fn enter_stream(&self, idx: usize) {
        let idx = idx % self.n_streams();
        self.pass.borrow_mut().enter_stream(idx);
    }

    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix<R>> {
        for part in parts {
            check("load_matrix", "n_in", parts[0].n_in(), part.n_in())?;
        }
        Matrix::load(&self.heap, self.gemm, self.config.dtype, parts)
    }

    fn load_exact_matrix(&self, host: &HostMatrix<'_>) -> Result<Matrix<R>> {
        Matrix::load(
            &self.heap,
            self.gemm,
            DType::F32,
            std::slice::from_ref(host),
        )
    }

    fn load_vector(&self, parts: &[HostTensor<'_>]) -> Result<Vector<R>> {
        Vector::load(&self.heap, self.config.dtype, parts)
    }

    fn load_table(&self, host: &HostTensor<'_>) -> Result<Table<R>> {
        Table::load(&self.heap, self.config.dtype, host)
    }

    fn load_exact_table(&self, host: &HostTensor<'_>) -> Result<Table<R>> {
        Table::load(&self.heap, DType::F32, host)
    }

    fn load_experts(
        &self,
        n_experts: usize,
        slices: Vec<ExpertSlice<'_>>,
        activation: Activation,
    ) -> Result<Experts<R>> {
        let n_bytes = sorting_bytes(n_experts);
        check_shared(
            &*self.driver,
            "load_experts",
            "n_experts",
            (n_experts, n_bytes),
        )?;
        let mut costs = self.costs.borrow_mut();
        let counter = costs.len();
        check(
            "load_experts",
            "layers",
            counter.min(MOST_COUNTERS),
            counter,
        )?;
        let kept = (self.gemm, self.config.dtype);
        let experts = Experts::load(&self.heap, kept, n_experts, &slices, activation, counter)?;
        costs.push(
            experts
                .held
                .as_ref()
                .map_or(0, |h| (2 * h.d_model * h.n_hidden) as u64),
        );
        self.expert_bytes.update(|n| n + experts.n_bytes() as u64);
        Ok(experts)
    }

    fn embed(
        &self,
        rows: &[EmbeddingRows<'_, Table<R>>],
        norm: Option<&Norm<Vector<R>>>,
    ) -> Result<Tensor> {
        check("embed", "tables", rows.len().min(MOST_TABLES), rows.len())?;
        let [n_tokens, n_cols] = check_embedding(rows, |t: &Table<R>| [t.n_rows, t.n_cols])?;
        check("embed", "n_tokens", n_tokens.min(MOST_TOKENS), n_tokens)?;
        check_norm("embed", n_cols, norm, Vector::len)?;
        let (dtype, n_padded) = (self.config.dtype, padded(n_tokens));
        let mut args = Vec::new();
        for j in 0..MOST_TABLES {
            match rows.get(j) {
                Some(part) => {
                    let mut idx = part.row_idx.to_vec();
                    idx.resize(n_padded, 0);
                    let is_exact = u32::from(part.table.dtype == DType::F32);
                    let table = Word::address(part.table.buffer.at());
                    args.extend(words![table, is_exact, self.input(&idx), part.scale]);
                }
                None => args.extend(words![Word::NULL, 0_u32, Word::NULL, 0.0]),
            }
        }
        args.extend(norm_words(norm));
        let out = self.rows(n_padded, n_cols, dtype);
        args.extend(words![n_padded, n_cols, Word::piece(&out)]);
        self.launch(
            named!("embed", dtype),
            [n_padded.div_ceil(WARPS), 1],
            0,
            &args,
        );
        self.tensor(Content::Rows(out), dtype, (n_tokens, n_padded, n_cols))
    }

    fn norm(&self, x: &Tensor, norm: &Norm<Vector<R>>) -> Result<Tensor> {
        check_norm("norm", x.n_cols, Some(norm), Vector::len)?;
        let out = self.rows(x.n_padded, x.n_cols, x.dtype);
        let rows = self.summed(x);
        self.norm_rows(
            x,
            (Word::piece(&rows), 1.0),
            Word::NULL,
            None,
            Some(norm),
            &out,
        );
        self.tensor(
            Content::Rows(out),
            x.dtype,
            (x.n_rows, x.n_padded, x.n_cols),
        )
    }

    fn linear(
        &self,
        x: &Tensor,
        w: &Matrix<R>,
        bias: Option<&Vector<R>>,
        activation: Activation,
        residual: Option<&Tensor>,
        norm: Option<&Norm<Vector<R>>>,
    ) -> Result<Tensor> {
        let linear = LinearWeights { weight: w, bias };
        check_linear("linear", x, &linear)?;
        if let Some(residual) = residual {
            check("linear", "residual rows", x.n_rows, residual.n_rows)?;
            check("linear", "residual columns", w.n_out, residual.n_cols)?;
            check_dtype("linear", x.dtype, residual.dtype)?;
        }
        check_norm("linear", w.n_out, norm, Vector::len)?;
        let out = self.multiply(x, &linear, activation, None, residual);
        self.norm_in_place(&out, norm);
        self.noted()?;
        Ok(out)
    }

    fn ffn(
        &self,
        x: &Tensor,
        ffn: &DenseFfn<'_, Matrix<R>, Vector<R>>,
        residual: &Tensor,
        norm: Option<&Norm<Vector<R>>>,
    ) -> Result<Tensor> {
        let (up, down) = (&ffn.up, &ffn.down);
        check_linear("ffn", x, up)?;
        check("ffn", "d_ff", up.weight.n_out, down.weight.n_in)?;
        check_bias("ffn", "bias of down", down)?;
        check_dtype("ffn", down.weight.dtype, x.dtype)?;
        check_dtype("ffn", x.dtype, residual.dtype)?;
        if let Some(gate) = &ffn.gate {
            check_linear("ffn", x, gate)?;
            check(
                "ffn",
                "d_ff of the gate",
                up.weight.n_out,
                gate.weight.n_out,
            )?;
        }
        check("ffn", "residual rows", x.n_rows, residual.n_rows)?;
        check(
            "ffn",
            "residual columns",
            down.weight.n_out,
            residual.n_cols,
        )?;
        check_norm("ffn", down.weight.n_out, norm, Vector::len)?;
        let hidden = match &ffn.gate {
            Some(gate) => {
                let gate = self.multiply(x, gate, ffn.activation, None, None);
                self.multiply(x, up, Activation::Identity, Some(&gate), None)
            }
            None => self.multiply(x, up, ffn.activation, None, None),
        };
        let out = self.multiply(&hidden, down, Activation::Identity, None, Some(residual));
        self.norm_in_place(&out, norm);
        self.noted()?;
        Ok(out)
    }

    fn add(
        &self,
        x: &mut Tensor,
        residual: &Tensor,
        bias: Option<&Vector<R>>,
        norm: Option<&Norm<Vector<R>>>,
    ) -> Result<()> {
        check("add", "n_rows", x.n_rows, residual.n_rows)?;
        check("add", "n_cols", x.n_cols, residual.n_cols)?;
        check("add", "bias", x.n_cols, bias.map_or(x.n_cols, Vector::len))?;
        check_norm("add", x.n_cols, norm, Vector::len)?;
        check_dtype("add", x.dtype, residual.dtype)?;
        let residual = self.summed(residual);
        let plus = Word::piece(&residual);
        let out = match &x.content {
            Content::Rows(rows) => {
                let out = Rc::clone(rows);
                self.norm_rows(x, (Word::piece(rows), 1.0), plus, bias, norm, &out);
                out
            }
            Content::Weighted(weighted) => {
                let out = self.rows(x.n_padded, x.n_cols, x.dtype);
                self.combine(x, weighted, plus, bias, norm, &out);
                out
            }
        };
        x.content = Content::Rows(out);
        self.noted()
    }

    fn attention(
        &self,
        qkv: &mut Tensor,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
        bias: Option<&Vector<R>>,
    ) -> Result<Tensor> {
        let n_bias = bias.map_or(0, Vector::len);
        check_attention([qkv.n_rows, qkv.n_cols], cu_seqlens, shape, n_bias)?;
        let width = shape.n_heads * shape.head_dim;
        let out = self.attend(qkv, cu_seqlens, shape, bias)?;
        self.tensor(
            Content::Rows(out),
            qkv.dtype,
            (qkv.n_rows, qkv.n_padded, width),
        )
    }

    fn route(&self, x: &Tensor, router: &Matrix<R>, rule: RouterRule) -> Result<Routing> {
        let routing = self.choose_experts(x, router, rule)?;
        self.noted()?;
        Ok(routing)
    }

    fn recycle(&self, routing: Routing) {
        drop(routing);
    }

    fn limit_capacity(
        &self,
        routing: &mut Routing,
        segments: &[usize],
        capacity: usize,
        counted: bool,
    ) -> Result<()> {
        check_segments("limit_capacity", segments, routing.n_tokens)?;
        self.drop_beyond(routing, segments, capacity, counted);
        self.noted()
    }

    fn expert_ffn(&self, x: &Tensor, routing: &Routing, experts: &Experts<R>) -> Result<Tensor> {
        check("expert_ffn", "n_tokens", x.n_rows, routing.n_tokens)?;
        check("expert_ffn", "n_experts", experts.n_all, routing.n_experts)?;
        let d_model = experts.held.as_ref().map_or(x.n_cols, |held| held.d_model);
        check("expert_ffn", "d_model", d_model, x.n_cols)?;
        check_dtype("expert_ffn", self.config.dtype, x.dtype)?;
        let weighted = match &experts.held {
            Some(held) => self.run_experts(x, routing, held, experts.counter),
            None => Weighted {
                y: None,
                place: None,
                gate: None,
                top_k: 0,
                factor: 1.0,
            },
        };
        let content = Content::Weighted(Rc::new(weighted));
        self.tensor(content, x.dtype, (x.n_rows, x.n_padded, x.n_cols))
    }

    fn all_gather(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        self.gather_rows(x, n_rows)
    }

    fn all_gather_routing(&self, routing: &Routing, n_rows: &[usize]) -> Result<Routing> {
        self.gather_routing(routing, n_rows)
    }

    fn reduce_scatter(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        self.scatter_rows(x, n_rows)
    }

    fn pool(&self, x: &Tensor, cu_seqlens: &[usize], rule: Pooling) -> Result<Tensor> {
        check_segments("pool", cu_seqlens, x.n_rows)?;
        let n_seqs = cu_seqlens.len().saturating_sub(1);
        let n_padded = padded(n_seqs);
        let out = self.rows(n_padded, x.n_cols, DType::F32);
        let n_bytes = x.n_cols * size_of::<f32>();
        check_shared(&*self.driver, "pool", "d_model", (x.n_cols, n_bytes))?;
        let rows = self.summed(x);
        let rule = match rule {
            Pooling::Cls => 0_u32,
            Pooling::Mean => 1,
            Pooling::LastToken => 2,
        };
        self.launch(
            named!("pool", x.dtype),
            [n_padded, 1],
            x.n_cols * size_of::<f32>(),
            &words![
                Word::piece(&rows),
                self.starts(cu_seqlens, x.n_padded),
                rule,
                0_u32,
                x.n_cols,
                Word::piece(&out)
            ],
        );
        self.tensor(Content::Rows(out), DType::F32, (n_seqs, n_padded, x.n_cols))
    }

    fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        let content = match &x.content {
            Content::Weighted(weighted) => Content::Weighted(Rc::new(weighted.scaled(factor))),
            Content::Rows(rows) => {
                let out = self.rows(x.n_padded, x.n_cols, x.dtype);
                self.norm_rows(x, (Word::piece(rows), factor), Word::NULL, None, None, &out);
                Content::Rows(out)
            }
        };
        self.tensor(content, x.dtype, (x.n_rows, x.n_padded, x.n_cols))
    }

    fn to_host(&self, x: &Tensor) -> Result<Vec<f32>> {
        let rows = self.summed(x);
        let mut bytes = vec![0; x.n_rows * x.n_cols * x.dtype.size()];
        self.download(&rows, &mut bytes)?;
        Ok(widened(&bytes, x.dtype))
    }

    fn routing_to_host(&self, routing: &Routing) -> Result<HostRouting> {
        let n = routing.n_tokens * routing.top_k;
        let (mut expert_idx, mut gate_weight) = (vec![0; n], vec![0.0; n]);
        self.download(&routing.idx, bytemuck::cast_slice_mut(&mut expert_idx))?;
        self.download(&routing.gate, bytemuck::cast_slice_mut(&mut gate_weight))?;
        Ok(HostRouting {
            top_k: routing.top_k,
            expert_idx,
            gate_weight,
        })
    }

    fn stats(&self) -> DeviceStats {
        let costs = self.costs.borrow();
        let mut counts = vec![0_u64; costs.len()];
        // A device that has failed counts no more.
        let is_read = self
            .counters
            .read(bytemuck::cast_slice_mut(&mut counts))
            .is_ok();
        let products = counts.iter().zip(&*costs).map(|(n, cost)| n * cost);
        DeviceStats {
            expert_bytes: self.expert_bytes.get(),
            expert_multiply_adds: products.sum::<u64>() * u64::from(is_read),
            n_dropped: counts[0] * u64::from(is_read),
        }
    }
}
