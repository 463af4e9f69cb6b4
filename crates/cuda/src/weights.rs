//! Weights in a device's memory: rows of outputs, as checkpoints have them, in the device's dtype.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::device::{Activation, DeviceError, HostMatrix, MatrixLayout, Result};
use moeshard_tensor::dtype::DType;

use crate::driver::{Address, Driver};
use crate::gemm::{Gemm, Map};
use crate::memory::Heap;

/// Columns of a matrix are a multiple of this in 16 bits: sixteen bytes are copied at a time.
pub(crate) const COLS: usize = 8;

/// Memory that holds weights for as long as they are used.
pub(crate) struct Buffer<R: Driver> {
    heap: Rc<Heap<R>>,
    at: Address,
    n_bytes: usize,
}

impl<R: Driver> Buffer<R> {
    pub(crate) fn new(heap: &Rc<Heap<R>>, n_bytes: usize) -> Result<Self> {
        Ok(Self {
            heap: Rc::clone(heap),
            at: heap.driver.allocate(n_bytes)?,
            n_bytes,
        })
    }

    pub(crate) fn of(heap: &Rc<Heap<R>>, bytes: &[u8]) -> Result<Self> {
        let buffer = Self::new(heap, bytes.len())?;
        buffer.fill(0, bytes)?;
        Ok(buffer)
    }

    /// Zeroes.
    pub(crate) fn zeroed(heap: &Rc<Heap<R>>, n_bytes: usize) -> Result<Self> {
        let buffer = Self::new(heap, n_bytes)?;
        // SAFETY: the memory was just allocated with this size.
        unsafe { heap.driver.clear(buffer.at, n_bytes)? };
        Ok(buffer)
    }

    pub(crate) fn at(&self) -> Address {
        self.at
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Copies bytes to some place in it.
    pub(crate) fn fill(&self, first: usize, bytes: &[u8]) -> Result<()> {
        assert!(
            first + bytes.len() <= self.n_bytes,
            "beyond the end of a buffer"
        );
        // SAFETY: the memory is as large.
        unsafe { self.heap.driver.upload(bytes, self.at + first as u64) }
    }

    pub(crate) fn read(&self, to: &mut [u8]) -> Result<()> {
        assert!(to.len() <= self.n_bytes, "beyond the end of a buffer");
        // SAFETY: the memory is as large.
        unsafe { self.heap.driver.download(self.at, to) }
    }
}

impl<R: Driver> Drop for Buffer<R> {
    fn drop(&mut self) {
        self.heap.released.borrow_mut().push(self.at);
    }
}

/// `[n_out, n_in]`
pub struct Matrix<R: Driver> {
    pub(crate) buffer: Buffer<R>,
    pub(crate) map: Map<R>,
    pub(crate) dtype: DType,
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
}

impl<R: Driver> Matrix<R> {
    pub(crate) fn load(
        heap: &Rc<Heap<R>>,
        gemm: Gemm,
        dtype: DType,
        parts: &[HostMatrix<'_>],
    ) -> Result<Self> {
        let n_in = parts.first().map_or(0, HostMatrix::n_in);
        check_width("load_matrix", dtype, n_in)?;
        let n_out = parts.iter().map(HostMatrix::n_out).sum();
        let buffer = Buffer::new(heap, n_out * n_in * dtype.size())?;
        let mut first = 0;
        for (part_idx, part) in parts.iter().enumerate() {
            let bytes = encode(part, dtype, (part.n_out(), n_in), part_idx)?;
            buffer.fill(first, &bytes)?;
            first += bytes.len();
        }
        Ok(Self {
            map: Map::new(heap, gemm, &buffer, dtype, [n_out, n_in])?,
            buffer,
            dtype,
            n_out,
            n_in,
        })
    }
}

/// f32, on the device and, where something is to be derived from it, on the host.
pub struct Vector<R: Driver> {
    pub(crate) buffer: Buffer<R>,
    pub(crate) host: Vec<f32>,
    /// The same in the device's dtype, for the library, if there is one and the dtype holds it exactly.
    in_dtype: Option<Buffer<R>>,
    /// T5's biases of each head by distance, made when they are first needed: the largest distance, and the
    /// table.
    pub(crate) by_distance: RefCell<Vec<(usize, Buffer<R>)>>,
}

impl<R: Driver> Vector<R> {
    pub(crate) fn load(heap: &Rc<Heap<R>>, dtype: DType, parts: &[HostTensor<'_>]) -> Result<Self> {
        let mut host = Vec::new();
        for (part_idx, part) in parts.iter().enumerate() {
            check_finite(part, DType::F32, part_idx)?;
            host.extend(part.to_f32());
        }
        let is_wanted = heap.driver.cublaslt().is_some() && dtype != DType::F32;
        let bytes = is_wanted.then(|| rounded(&host, dtype, 0));
        let bytes = bytes
            .and_then(Result::ok)
            .filter(|bytes| widened(bytes, dtype) == host);
        Ok(Self {
            buffer: Buffer::of(heap, bytemuck::cast_slice(&host))?,
            in_dtype: bytes.map(|bytes| Buffer::of(heap, &bytes)).transpose()?,
            host,
            by_distance: RefCell::default(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.host.len()
    }

    /// Where the library finds it, if it can be told of it.
    pub(crate) fn in_dtype(&self) -> Option<Address> {
        self.in_dtype.as_ref().map(Buffer::at)
    }
}

/// `[n_rows, n_cols]`
pub struct Table<R: Driver> {
    pub(crate) buffer: Buffer<R>,
    pub(crate) dtype: DType,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
}

impl<R: Driver> Table<R> {
    pub(crate) fn load(heap: &Rc<Heap<R>>, dtype: DType, host: &HostTensor<'_>) -> Result<Self> {
        let [n_rows, n_cols] = host.shape[..] else {
            return Err(DeviceError::Shape {
                op: "load_table",
                dim: "axes",
                expected: 2,
                got: host.shape.len(),
            });
        };
        check_finite(host, dtype, 0)?;
        let bytes = match host.dtype == dtype {
            true => Cow::Borrowed(&*host.data),
            false => Cow::Owned(rounded(&host.to_f32(), dtype, 0)?),
        };
        Ok(Self {
            buffer: Buffer::of(heap, &bytes)?,
            dtype,
            n_rows,
            n_cols,
        })
    }
}

/// A rank's slices of the experts of a layer: those from `first` to `first + n_experts`.
pub struct Experts<R: Driver> {
    /// `None` if there is no expert here.
    pub(crate) held: Option<HeldExperts<R>>,
    pub(crate) n_all: usize,
    /// Which of the device's counters counts their assignments.
    pub(crate) counter: usize,
}

/// All of the same width, `f` hidden units.
pub(crate) struct HeldExperts<R: Driver> {
    pub(crate) first: usize,
    pub(crate) n_experts: usize,
    pub(crate) d_model: usize,
    /// Hidden units, without padding.
    pub(crate) n_hidden: usize,
    /// Hidden units, a multiple of [`COLS`]: those added have no weights, and stay zero.
    pub(crate) f: usize,
    pub(crate) activation: Activation,
    /// `[n_experts, f, d_model]`
    pub(crate) w_in: Buffer<R>,
    pub(crate) map_in: Map<R>,
    /// f32 `[n_experts, f]`
    pub(crate) b_in: Option<Buffer<R>>,
    /// `[n_experts, d_model, f]`
    pub(crate) w_out: Buffer<R>,
    pub(crate) map_out: Map<R>,
    /// f32 `[n_experts, d_model]`
    pub(crate) b_out: Option<Buffer<R>>,
}

/// Sixteen bytes at a time are read from rows.
pub(crate) fn check_width(op: &'static str, dtype: DType, n_cols: usize) -> Result<()> {
    if dtype == DType::F32 || n_cols.is_multiple_of(COLS) {
        return Ok(());
    }
    Err(DeviceError::SetUp(format!(
        "{op}: in {dtype} the GPU needs rows whose width is a multiple of {COLS}, found {n_cols}; float32 takes any"
    )))
}

fn check_finite(tensor: &HostTensor<'_>, dtype: DType, part_idx: usize) -> Result<()> {
    match tensor.first_non_finite() {
        Some(at) => Err(DeviceError::NotFinite {
            part_idx,
            element_idx: Some(at),
            dtype,
        }),
        None => Ok(()),
    }
}

/// A matrix's bytes as rows of outputs, zeroes beyond its own shape.
pub(crate) fn encode<'a>(
    matrix: &'a HostMatrix<'_>,
    dtype: DType,
    (n_rows, n_cols): (usize, usize),
    part_idx: usize,
) -> Result<Cow<'a, [u8]>> {
    let HostMatrix { tensor, layout } = matrix;
    let (n_out, n_in) = (matrix.n_out(), matrix.n_in());
    check_finite(tensor, dtype, part_idx)?;
    let is_whole = (n_rows, n_cols) == (n_out, n_in);
    if is_whole && tensor.dtype == dtype && *layout == MatrixLayout::OutIn {
        return Ok(Cow::Borrowed(&tensor.data));
    }
    let numbers = tensor.to_f32();
    if is_whole && *layout == MatrixLayout::OutIn {
        return Ok(Cow::Owned(rounded(&numbers, dtype, part_idx)?));
    }
    let mut rows = vec![0.0; n_rows * n_cols];
    for out in 0..n_out {
        let row = &mut rows[out * n_cols..][..n_in];
        match layout {
            MatrixLayout::OutIn => row.copy_from_slice(&numbers[out * n_in..][..n_in]),
            MatrixLayout::InOut => {
                let column = numbers[out..].iter().step_by(n_out);
                row.iter_mut().zip(column).for_each(|(to, &x)| *to = x);
            }
        }
    }
    Ok(Cow::Owned(rounded(&rows, dtype, part_idx)?))
}

/// Numbers in a dtype; an error if one is too large for it.
fn rounded(numbers: &[f32], dtype: DType, part_idx: usize) -> Result<Vec<u8>> {
    let too_large = || DeviceError::NotFinite {
        part_idx,
        element_idx: None,
        dtype,
    };
    match dtype {
        DType::F32 => Ok(bytemuck::cast_slice(numbers).to_vec()),
        DType::BF16 => {
            let mut halves = vec![bf16::ZERO; numbers.len()];
            halves.convert_from_f32_slice(numbers);
            let is_finite = halves.iter().all(|x| x.is_finite());
            is_finite
                .then(|| bytemuck::cast_slice(&halves).to_vec())
                .ok_or_else(too_large)
        }
        DType::F16 => {
            let mut halves = vec![f16::ZERO; numbers.len()];
            halves.convert_from_f32_slice(numbers);
            let is_finite = halves.iter().all(|x| x.is_finite());
            is_finite
                .then(|| bytemuck::cast_slice(&halves).to_vec())
                .ok_or_else(too_large)
        }
    }
}

/// Bytes of activations as f32.
pub(crate) fn widened(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let tensor = HostTensor {
        dtype,
        shape: vec![bytes.len() / dtype.size()],
        data: Cow::Borrowed(bytes),
    };
    tensor.to_f32()
}
