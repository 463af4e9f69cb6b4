//! A device that times another one.
//!
//! [`Timed`] passes every operation on to the device that it wraps, and adds up how long each kind
//! took and how much work its shapes ask for. Tensors carry their shapes beside the wrapped
//! device's own, which may be opaque. Results are those of the wrapped device, bit for bit.

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, Instant};

use crate::checkpoint::HostTensor;
use crate::device::{
    Activation, AttentionShape, DenseFfn, Device, DeviceStats, EmbeddingRows, ExpertSlice,
    HostMatrix, LinearWeights, Norm, Pooling, Result, RouterRule, Routing,
};
use crate::dtype::DType;

/// A device that times another one. Loading is passed on untimed.
pub struct Timed<D> {
    device: D,
    dtype: DType,
    rank: usize,
    records: RefCell<Vec<Record>>,
}

/// One kind of operation: what it is called, and how wide its rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The method of [`Device`].
    pub name: &'static str,
    /// Widths that its rows pass through, followed by zeros: `[n_in, n_out, 0]` of a product.
    pub widths: [usize; 3],
    /// Of the weights that it multiplies; f32 if there are none.
    pub dtype: DType,
}

/// All calls of one kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The kind.
    pub operation: Operation,
    /// Number of calls.
    pub n_calls: u64,
    /// Time of all calls.
    pub elapsed: Duration,
    /// Work of all calls.
    pub work: Work,
}

/// The least that an operation has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Multiplications and additions of its products, a multiply-add being two. What it does
    /// element by element is not counted: there memory is the limit.
    pub flops: u64,
    /// Bytes of activations, weights and table rows if each is moved once.
    pub n_bytes: u64,
}

/// A device's rows beside their shape: activations, a matrix or a table.
#[derive(Debug)]
pub struct Shaped<T> {
    inner: T,
    n_rows: usize,
    n_cols: usize,
    dtype: DType,
}

/// A device's experts beside their sizes.
#[derive(Debug)]
pub struct ShapedExperts<E> {
    inner: E,
    /// `[n_experts]`: bytes of the matrices of each.
    n_bytes: Vec<u64>,
    d_model: usize,
    /// Hidden units of the widest slice.
    d_ff: usize,
}

impl<D: Device> Timed<D> {
    /// Times `device`, which is of this rank and keeps weights as `dtype`.
    pub fn new(device: D, dtype: DType, rank: usize) -> Self {
        Self {
            device,
            dtype,
            rank,
            records: RefCell::default(),
        }
    }

    /// The device that is timed.
    pub fn inner(&self) -> &D {
        &self.device
    }

    /// What was recorded since the last call, in the order in which the kinds came first.
    pub fn take(&self) -> Vec<Record> {
        self.records.take()
    }

    /// Runs and records an operation whose work is known beforehand.
    fn run<T>(
        &self,
        operation: Operation,
        work: Work,
        run: impl FnOnce(&D) -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let result = run(&self.device)?;
        self.record(operation, start.elapsed(), work);
        Ok(result)
    }

    fn record(&self, operation: Operation, elapsed: Duration, work: Work) {
        let mut records = self.records.borrow_mut();
        match records.iter_mut().find(|r| r.operation == operation) {
            Some(record) => {
                record.n_calls += 1;
                record.elapsed += elapsed;
                record.work += work;
            }
            None => records.push(Record {
                operation,
                n_calls: 1,
                elapsed,
                work,
            }),
        }
    }
}

impl Operation {
    /// One that multiplies no weights.
    fn plain<const N: usize>(name: &'static str, widths: [usize; N]) -> Self {
        Self::of(name, widths, DType::F32)
    }

    fn of<const N: usize>(name: &'static str, widths: [usize; N], dtype: DType) -> Self {
        let mut all = [0; 3];
        all[..N].copy_from_slice(&widths);
        Self {
            name,
            widths: all,
            dtype,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths.iter().filter(|&&width| width > 0);
        let widths: Vec<String> = widths.map(ToString::to_string).collect();
        f.write_str(self.name)?;
        match widths.is_empty() {
            true => Ok(()),
            false => write!(f, " {}", widths.join("→")),
        }
    }
}

impl Work {
    /// No products: bytes alone.
    fn moving(n_bytes: usize) -> Self {
        Self {
            flops: 0,
            n_bytes: n_bytes as u64,
        }
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.n_bytes += other.n_bytes;
    }
}

impl<T> Shaped<T> {
    /// Activations.
    fn rows(inner: T, n_rows: usize, n_cols: usize) -> Self {
        Self {
            inner,
            n_rows,
            n_cols,
            dtype: DType::F32,
        }
    }

    /// The wrapped device's own.
    pub fn inner(&self) -> &T {
        &self.inner
    }

    fn n_bytes(&self) -> usize {
        self.n_rows * self.row_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.n_cols * self.dtype.size()
    }
}

/// `x · wᵀ`, `n_more` further tensors of the result's size being read.
fn product<T, M>(x: &Shaped<T>, w: &Shaped<M>, n_more: usize) -> Work {
    let out_bytes = x.n_rows * w.n_rows * DType::F32.size();
    Work {
        flops: 2 * (x.n_rows * w.n_rows * w.n_cols) as u64,
        n_bytes: (x.n_bytes() + w.n_bytes() + (1 + n_more) * out_bytes) as u64,
    }
}

/// The weights as the wrapped device has them.
fn inner<'a, M, V>(linear: &LinearWeights<'a, Shaped<M>, V>) -> LinearWeights<'a, M, V> {
    LinearWeights {
        weight: &linear.weight.inner,
        bias: linear.bias,
    }
}

impl<D: Device> Device for Timed<D> {
    type Tensor = Shaped<D::Tensor>;
    type Matrix = Shaped<D::Matrix>;
    type Vector = D::Vector;
    type Table = Shaped<D::Table>;
    type Experts = ShapedExperts<D::Experts>;
    type Routing = D::Routing;

    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Self::Matrix> {
        Ok(Shaped {
            inner: self.device.load_matrix(parts)?,
            n_rows: parts.iter().map(HostMatrix::n_out).sum(),
            n_cols: parts.first().map_or(0, HostMatrix::n_in),
            dtype: self.dtype,
        })
    }

    fn load_exact_matrix(&self, host: &HostMatrix<'_>) -> Result<Self::Matrix> {
        Ok(Shaped {
            inner: self.device.load_exact_matrix(host)?,
            n_rows: host.n_out(),
            n_cols: host.n_in(),
            dtype: DType::F32,
        })
    }

    fn load_vector(&self, parts: &[HostTensor<'_>]) -> Result<Self::Vector> {
        self.device.load_vector(parts)
    }

    fn load_table(&self, host: &HostTensor<'_>) -> Result<Self::Table> {
        Ok(table(self.device.load_table(host)?, host, self.dtype))
    }

    fn load_exact_table(&self, host: &HostTensor<'_>) -> Result<Self::Table> {
        Ok(table(self.device.load_exact_table(host)?, host, DType::F32))
    }

    fn load_experts(
        &self,
        n_experts: usize,
        slices: Vec<ExpertSlice<'_>>,
        activation: Activation,
    ) -> Result<Self::Experts> {
        let mut n_bytes = vec![0; n_experts];
        let d_model = slices.first().map_or(0, |slice| slice.w_in.n_in());
        let d_ff = slices.iter().map(|slice| slice.w_in.n_out()).max();
        for slice in &slices {
            // The device refuses an expert that the layer does not have.
            if let Some(n_bytes) = n_bytes.get_mut(slice.expert_idx) {
                let matrices = [&slice.w_in, &slice.w_out];
                let n_elements: usize = matrices.map(|m| m.n_in() * m.n_out()).iter().sum();
                *n_bytes += (n_elements * self.dtype.size()) as u64;
            }
        }
        Ok(ShapedExperts {
            inner: self.device.load_experts(n_experts, slices, activation)?,
            n_bytes,
            d_model,
            d_ff: d_ff.unwrap_or(0),
        })
    }

    fn embed(
        &self,
        rows: &[EmbeddingRows<'_, Self::Table>],
        norm: Option<&Norm<Self::Vector>>,
    ) -> Result<Self::Tensor> {
        let first = rows.first();
        let (n_rows, n_cols) = first.map_or((0, 0), |r| (r.row_idx.len(), r.table.n_cols));
        let out_bytes = n_rows * n_cols * DType::F32.size();
        let table_bytes = rows.iter().map(|r| r.row_idx.len() * r.table.row_bytes());
        let work = Work::moving(table_bytes.sum::<usize>() + out_bytes);
        let rows: Vec<_> = rows
            .iter()
            .map(|r| EmbeddingRows {
                table: &r.table.inner,
                row_idx: r.row_idx,
                scale: r.scale,
            })
            .collect();
        let out = self.run(Operation::plain("embed", []), work, |d| {
            d.embed(&rows, norm)
        })?;
        Ok(Shaped::rows(out, n_rows, n_cols))
    }

    fn norm(&self, x: &Self::Tensor, norm: &Norm<Self::Vector>) -> Result<Self::Tensor> {
        let work = Work::moving(2 * x.n_bytes());
        let out = self.run(Operation::plain("norm", []), work, |d| {
            d.norm(&x.inner, norm)
        })?;
        Ok(Shaped::rows(out, x.n_rows, x.n_cols))
    }

    fn linear(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        activation: Activation,
        residual: Option<&Self::Tensor>,
        norm: Option<&Norm<Self::Vector>>,
    ) -> Result<Self::Tensor> {
        let operation = Operation::of("linear", [w.n_cols, w.n_rows], w.dtype);
        let work = product(x, w, usize::from(residual.is_some()));
        let out = self.run(operation, work, |d| {
            let residual = residual.map(|r| &r.inner);
            d.linear(&x.inner, &w.inner, bias, activation, residual, norm)
        })?;
        Ok(Shaped::rows(out, x.n_rows, w.n_rows))
    }

    fn ffn(
        &self,
        x: &Self::Tensor,
        ffn: &DenseFfn<'_, Self::Matrix, Self::Vector>,
        residual: &Self::Tensor,
        norm: Option<&Norm<Self::Vector>>,
    ) -> Result<Self::Tensor> {
        let (w_in, w_out) = (ffn.up.weight, ffn.down.weight);
        let widths = [w_in.n_cols, w_in.n_rows, w_out.n_rows];
        let layers = [Some(&ffn.up), ffn.gate.as_ref(), Some(&ffn.down)];
        let layers = layers.into_iter().flatten().map(|layer| layer.weight);
        // Hidden units need not leave the device.
        let n_bytes = 3 * x.n_bytes() + layers.clone().map(Shaped::n_bytes).sum::<usize>();
        let n_weights: usize = layers.map(|w| w.n_rows * w.n_cols).sum();
        let work = Work {
            flops: 2 * (x.n_rows * n_weights) as u64,
            n_bytes: n_bytes as u64,
        };
        let out = self.run(Operation::of("ffn", widths, w_in.dtype), work, |d| {
            let ffn = DenseFfn {
                up: inner(&ffn.up),
                gate: ffn.gate.as_ref().map(inner),
                activation: ffn.activation,
                down: inner(&ffn.down),
            };
            d.ffn(&x.inner, &ffn, &residual.inner, norm)
        })?;
        Ok(Shaped::rows(out, x.n_rows, w_out.n_rows))
    }

    fn add(
        &self,
        x: &mut Self::Tensor,
        residual: &Self::Tensor,
        bias: Option<&Self::Vector>,
        norm: Option<&Norm<Self::Vector>>,
    ) -> Result<()> {
        let work = Work::moving(3 * x.n_bytes());
        self.run(Operation::plain("add", []), work, |d| {
            d.add(&mut x.inner, &residual.inner, bias, norm)
        })
    }

    fn attention(
        &self,
        qkv: &mut Self::Tensor,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
        bias: Option<&Self::Vector>,
    ) -> Result<Self::Tensor> {
        let width = shape.n_heads * shape.head_dim;
        // The device refuses offsets that fall.
        let lengths = cu_seqlens.windows(2).map(|w| w[1].saturating_sub(w[0]));
        let n_scores: usize = lengths.map(|n| n * n).sum();
        let work = Work {
            flops: 4 * (n_scores * width) as u64,
            n_bytes: (qkv.n_bytes() + qkv.n_rows * width * DType::F32.size()) as u64,
        };
        let inner = &mut qkv.inner;
        let out = self.run(Operation::plain("attention", []), work, |d| {
            d.attention(inner, cu_seqlens, shape, bias)
        })?;
        Ok(Shaped::rows(out, qkv.n_rows, width))
    }

    fn route(
        &self,
        x: &Self::Tensor,
        router: &Self::Matrix,
        rule: RouterRule,
    ) -> Result<Self::Routing> {
        let operation = Operation::of("route", [router.n_cols, router.n_rows], router.dtype);
        self.run(operation, product(x, router, 0), |d| {
            d.route(&x.inner, &router.inner, rule)
        })
    }

    fn recycle(&self, routing: Self::Routing) {
        self.device.recycle(routing);
    }

    fn limit_capacity(
        &self,
        routing: &mut Self::Routing,
        segments: &[usize],
        capacity: usize,
        counted: bool,
    ) -> Result<()> {
        let operation = Operation::plain("limit_capacity", []);
        self.run(operation, Work::default(), |d| {
            d.limit_capacity(routing, segments, capacity, counted)
        })
    }

    /// Its work depends on the routing: products are those that the device has counted, weights
    /// those of the experts that have a token.
    fn expert_ffn(
        &self,
        x: &Self::Tensor,
        routing: &Self::Routing,
        experts: &Self::Experts,
    ) -> Result<Self::Tensor> {
        let before = self.device.stats().expert_multiply_adds;
        let start = Instant::now();
        let out = self.device.expert_ffn(&x.inner, routing, &experts.inner)?;
        let elapsed = start.elapsed();
        let n_multiply_adds = self.device.stats().expert_multiply_adds - before;
        let routing = self.device.routing_to_host(routing)?;
        let work = Work {
            flops: 2 * n_multiply_adds,
            n_bytes: 2 * x.n_bytes() as u64 + experts.bytes_used(&routing),
        };
        let widths = [experts.d_model, experts.d_ff, experts.d_model];
        self.record(
            Operation::of("expert_ffn", widths, self.dtype),
            elapsed,
            work,
        );
        Ok(Shaped::rows(out, x.n_rows, x.n_cols))
    }

    fn all_gather(&self, x: &Self::Tensor, n_rows: &[usize]) -> Result<Self::Tensor> {
        let n_all = n_rows.iter().sum();
        let work = Work::moving(n_all * x.row_bytes());
        let out = self.run(Operation::plain("all_gather", []), work, |d| {
            d.all_gather(&x.inner, n_rows)
        })?;
        Ok(Shaped::rows(out, n_all, x.n_cols))
    }

    fn all_gather_routing(
        &self,
        routing: &Self::Routing,
        n_rows: &[usize],
    ) -> Result<Self::Routing> {
        let operation = Operation::plain("all_gather_routing", []);
        self.run(operation, Work::default(), |d| {
            d.all_gather_routing(routing, n_rows)
        })
    }

    fn reduce_scatter(&self, x: &Self::Tensor, n_rows: &[usize]) -> Result<Self::Tensor> {
        let operation = Operation::plain("reduce_scatter", []);
        let out = self.run(operation, Work::moving(x.n_bytes()), |d| {
            d.reduce_scatter(&x.inner, n_rows)
        })?;
        let mine = n_rows.get(self.rank).copied().unwrap_or(0);
        Ok(Shaped::rows(out, mine, x.n_cols))
    }

    fn pool(&self, x: &Self::Tensor, cu_seqlens: &[usize], rule: Pooling) -> Result<Self::Tensor> {
        let n_seqs = cu_seqlens.len().saturating_sub(1);
        let work = Work::moving(x.n_bytes() + n_seqs * x.row_bytes());
        let out = self.run(Operation::plain("pool", []), work, |d| {
            d.pool(&x.inner, cu_seqlens, rule)
        })?;
        Ok(Shaped::rows(out, n_seqs, x.n_cols))
    }

    fn scale(&self, x: &Self::Tensor, factor: f32) -> Result<Self::Tensor> {
        let work = Work::moving(2 * x.n_bytes());
        let out = self.run(Operation::plain("scale", []), work, |d| {
            d.scale(&x.inner, factor)
        })?;
        Ok(Shaped::rows(out, x.n_rows, x.n_cols))
    }

    fn to_host(&self, x: &Self::Tensor) -> Result<Vec<f32>> {
        let work = Work::moving(2 * x.n_bytes());
        self.run(Operation::plain("to_host", []), work, |d| {
            d.to_host(&x.inner)
        })
    }

    fn routing_to_host(&self, routing: &Self::Routing) -> Result<Routing> {
        self.device.routing_to_host(routing)
    }

    fn stats(&self) -> DeviceStats {
        self.device.stats()
    }
}

fn table<T>(inner: T, host: &HostTensor<'_>, dtype: DType) -> Shaped<T> {
    Shaped {
        inner,
        n_rows: host.shape.first().copied().unwrap_or(0),
        n_cols: host.shape.get(1).copied().unwrap_or(0),
        dtype,
    }
}

impl<E> ShapedExperts<E> {
    /// Bytes of the experts that have a token.
    fn bytes_used(&self, routing: &Routing) -> u64 {
        let mut is_used = vec![false; self.n_bytes.len()];
        for &expert_idx in &routing.expert_idx {
            if let Some(used) = is_used.get_mut(expert_idx as usize) {
                *used = true;
            }
        }
        let used = is_used.iter().zip(&self.n_bytes).filter(|(used, _)| **used);
        used.map(|(_, n_bytes)| n_bytes).sum()
    }
}
