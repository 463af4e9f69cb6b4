//! Exchange with other ranks, through the host: what is noted runs, rows are copied to the host, the
//! collective exchanges them there, and they are copied back.

use std::rc::Rc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use moeshard_tensor::checks::check;
use moeshard_tensor::device::{Device, Result, Routing as HostRouting};
use moeshard_tensor::dtype::DType;
use moeshard_tensor::imposed::TakesRouting;

use crate::device::CudaDevice;
use crate::driver::Driver;
use crate::memory::Piece;
use crate::tensor::{Content, Routing, Tensor, padded};

impl<R: Driver> CudaDevice<R> {
    pub(super) fn gather_through_host(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        let counts: Vec<_> = n_rows.iter().map(|n| n * x.n_cols).collect();
        let mut all = vec![0.0; counts.iter().sum()];
        self.collective
            .all_gather(&self.to_host(x)?, &counts, &mut all)?;
        self.put_rows(&all, (n_rows.iter().sum(), x.n_cols), x.dtype)
    }

    pub(super) fn scatter_through_host(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        let counts: Vec<_> = n_rows.iter().map(|n| n * x.n_cols).collect();
        let mine = n_rows.get(self.collective.rank()).copied().unwrap_or(0);
        let mut own = vec![0.0; mine * x.n_cols];
        self.collective
            .reduce_scatter(&self.to_host(x)?, &counts, &mut own)?;
        self.put_rows(&own, (mine, x.n_cols), x.dtype)
    }

    pub(super) fn gather_routing_through_host(
        &self,
        routing: &Routing,
        n_rows: &[usize],
    ) -> Result<Routing> {
        let top_k = routing.top_k;
        let counts: Vec<_> = n_rows.iter().map(|n| n * top_k).collect();
        let mine = self.routing_to_host(routing)?;
        let n: usize = counts.iter().sum();
        let mut all = HostRouting {
            top_k,
            expert_idx: vec![0; n],
            gate_weight: vec![0.0; n],
        };
        // Gathering copies bits, so indices may travel as floats.
        let send = bytemuck::cast_slice(&mine.expert_idx);
        let recv = bytemuck::cast_slice_mut(&mut all.expert_idx);
        self.collective.all_gather(send, &counts, recv)?;
        self.collective
            .all_gather(&mine.gate_weight, &counts, &mut all.gate_weight)?;
        self.routing_from_host(&all, routing.n_experts)
    }

    /// A routing over `n_experts` experts, from the host.
    ///
    /// # Errors
    /// If it names an expert that there is not, or the device has failed.
    pub fn routing_from_host(&self, routing: &HostRouting, n_experts: usize) -> Result<Routing> {
        let op = "routing_from_host";
        let kept = routing
            .expert_idx
            .iter()
            .filter(|&&e| e != HostRouting::DROPPED);
        let largest = kept.max().map_or(0, |&e| e as usize + 1);
        check(op, "n_experts", n_experts, largest.max(n_experts))?;
        let (n_tokens, top_k) = (routing.n_tokens(), routing.top_k);
        check(
            op,
            "gates",
            routing.expert_idx.len(),
            routing.gate_weight.len(),
        )?;
        let n_padded = padded(n_tokens);
        let (mut idx, mut gate) = (routing.expert_idx.clone(), routing.gate_weight.clone());
        // Tokens that are not there go nowhere.
        idx.resize(n_padded * top_k, HostRouting::DROPPED);
        gate.resize(n_padded * top_k, 0.0);
        Ok(Routing {
            idx: self.uploaded(bytemuck::cast_slice(&idx))?,
            gate: self.uploaded(bytemuck::cast_slice(&gate))?,
            n_tokens,
            n_padded,
            top_k,
            n_experts,
        })
    }

    /// Rows of `n_cols` in the device's dtype, from the host.
    ///
    /// # Errors
    /// If they are not whole rows, or the device has failed.
    pub fn rows_from_host(&self, numbers: &[f32], n_cols: usize) -> Result<Tensor> {
        let n_rows = numbers.len().checked_div(n_cols).unwrap_or(0);
        check("rows_from_host", "numbers", n_rows * n_cols, numbers.len())?;
        self.put_rows(numbers, (n_rows, n_cols), self.config.dtype)
    }

    fn put_rows(
        &self,
        numbers: &[f32],
        (n_rows, n_cols): (usize, usize),
        dtype: DType,
    ) -> Result<Tensor> {
        let n_padded = padded(n_rows);
        let mut rows = numbers.to_vec();
        // Rows that are not there: no garbage that might be no number.
        rows.resize(n_padded * n_cols, 0.0);
        let bytes = match dtype {
            DType::F32 => bytemuck::cast_slice(&rows).to_vec(),
            DType::BF16 => {
                let mut halves = vec![bf16::ZERO; rows.len()];
                halves.convert_from_f32_slice(&rows);
                bytemuck::cast_slice(&halves).to_vec()
            }
            DType::F16 => {
                let mut halves = vec![f16::ZERO; rows.len()];
                halves.convert_from_f32_slice(&rows);
                bytemuck::cast_slice(&halves).to_vec()
            }
        };
        let content = Content::Rows(self.uploaded(&bytes)?);
        self.tensor(content, dtype, (n_rows, n_padded, n_cols))
    }

    /// A piece with these bytes. What was noted has run: the piece may have been in use until then.
    fn uploaded(&self, bytes: &[u8]) -> Result<Rc<Piece>> {
        let piece = Rc::new(self.piece(bytes.len()));
        let mut pass = self.pass.borrow_mut();
        pass.run()?;
        pass.make_room()?;
        // SAFETY: the piece is as large, and there is room for all pieces.
        unsafe { self.driver.upload(bytes, pass.address(&piece))? };
        Ok(piece)
    }
}

impl<R: Driver> TakesRouting for CudaDevice<R> {
    fn routing_from_host(&self, routing: &HostRouting, n_experts: usize) -> Result<Routing> {
        CudaDevice::routing_from_host(self, routing, n_experts)
    }

    fn routing_again(&self, routing: &Routing) -> Routing {
        Routing {
            idx: Rc::clone(&routing.idx),
            gate: Rc::clone(&routing.gate),
            ..*routing
        }
    }
}
