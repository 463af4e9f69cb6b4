//! What a bench found, as JSON and for people.

use std::io::{self, Write};
use std::time::Duration;

use moeshard_cuda::peak as gpu_peak;
use moeshard_tensor::cpu::{CpuDevice, peak};
use moeshard_tensor::dtype::DType;
use serde::Serialize;

use super::args::Shape;
use super::measure::{Measure, Measured, median};
use crate::display::{Table, count};

/// Everything that a bench found, with what it was run on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Of this program.
    version: &'static str,
    model: String,
    #[serde(flatten)]
    machine: Machine,
    peak: Peak,
    shapes: Vec<ShapeReport>,
}

/// What a model was run on.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    /// Of the CPU or the GPU.
    pub(super) processor: Option<String>,
    /// How weights are kept.
    #[serde(serialize_with = "as_text")]
    pub(super) dtype: DType,
    pub(super) kernels: String,
    /// `None` on a GPU.
    pub(super) n_threads: Option<usize>,
}

/// What the device could do at most.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Peak {
    /// Of products with weights in f32: those of attention and of the router.
    f32_gflop_per_s: f64,
    /// Of products with weights as they are kept.
    weights_gflop_per_s: f64,
    /// Reading memory.
    read_gb_per_s: f64,
}

/// One shape.
#[derive(Debug, Serialize)]
struct ShapeReport {
    batch: usize,
    length: usize,
    n_rounds: usize,
    tokens_per_s: f64,
    /// Median of the rounds.
    forward_ms: f64,
    fastest_ms: f64,
    gflop_per_s: f64,
    /// The slowest first.
    operations: Vec<OperationReport>,
    /// Outside of the operations.
    rest_ms: f64,
}

/// One kind of operation in one forward pass.
#[derive(Debug, Serialize)]
struct OperationReport {
    operation: String,
    n_calls: u64,
    /// Median of the rounds.
    ms: f64,
    /// Of the forward pass.
    percent: f64,
    /// `None` without products.
    gflop_per_s: Option<f64>,
    percent_of_peak: Option<f64>,
    /// If every number is moved once.
    gb_per_s: f64,
    /// Above 100 where they come from a cache.
    percent_of_bandwidth: f64,
}

impl Peak {
    /// Measures a device that keeps weights as `dtype`, for about a second.
    pub(super) fn measure(device: &CpuDevice, dtype: DType) -> Self {
        let f32_gflop_per_s = giga(peak::flops_per_second(device, DType::F32, peak::DURATION));
        Self {
            f32_gflop_per_s,
            weights_gflop_per_s: match dtype {
                DType::F32 => f32_gflop_per_s,
                _ => giga(peak::flops_per_second(device, dtype, peak::DURATION)),
            },
            read_gb_per_s: giga(peak::read_bytes_per_second(device)),
        }
    }

    /// What was measured of a GPU.
    pub(super) fn of_gpu(peak: gpu_peak::Peak) -> Self {
        Self {
            f32_gflop_per_s: giga(peak.f32_flops),
            weights_gflop_per_s: giga(peak.weights_flops),
            read_gb_per_s: giga(peak.read_bytes),
        }
    }

    /// The higher of each.
    pub(super) fn or_higher(&self, other: &Self) -> Self {
        Self {
            f32_gflop_per_s: self.f32_gflop_per_s.max(other.f32_gflop_per_s),
            weights_gflop_per_s: self.weights_gflop_per_s.max(other.weights_gflop_per_s),
            read_gb_per_s: self.read_gb_per_s.max(other.read_gb_per_s),
        }
    }

    fn gflop_per_s(&self, dtype: DType) -> f64 {
        match dtype {
            DType::F32 => self.f32_gflop_per_s,
            _ => self.weights_gflop_per_s,
        }
    }
}

impl Report {
    /// A report of what was measured of each shape.
    pub(super) fn new(
        model: String,
        machine: Machine,
        peak: Peak,
        shapes: &[Shape],
        measured: &[Measured],
    ) -> Self {
        let mut report = Self {
            version: env!("CARGO_PKG_VERSION"),
            model,
            machine,
            peak,
            shapes: Vec::new(),
        };
        for (&shape, measured) in shapes.iter().zip(measured) {
            report.add(shape, measured);
        }
        report
    }

    /// Appends a shape.
    fn add(&mut self, shape: Shape, measured: &Measured) {
        let forward = median(&measured.forwards);
        let report = |measure| OperationReport::new(measure, forward, &self.peak);
        let mut operations: Vec<_> = measured.operations.iter().map(report).collect();
        operations.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        let in_operations: f64 = operations.iter().map(|operation| operation.ms).sum();
        let flops = measured.operations.iter().map(|m| m.record.work.flops);
        let n_tokens = (shape.batch * shape.length) as f64;
        self.shapes.push(ShapeReport {
            batch: shape.batch,
            length: shape.length,
            n_rounds: measured.forwards.len(),
            tokens_per_s: n_tokens / seconds(forward),
            forward_ms: ms(forward),
            fastest_ms: measured.forwards.iter().min().copied().map_or(0.0, ms),
            gflop_per_s: giga(flops.sum::<u64>() as f64 / seconds(forward)),
            operations,
            rest_ms: (ms(forward) - in_operations).max(0.0),
        });
    }

    /// Writes tables.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Peak {
            f32_gflop_per_s,
            weights_gflop_per_s,
            read_gb_per_s,
        } = self.peak;
        let Machine {
            processor,
            dtype,
            kernels,
            n_threads,
        } = &self.machine;
        let on = match (n_threads, processor) {
            (Some(n), _) => threads(*n),
            (None, Some(name)) => name.clone(),
            (None, None) => "an unknown device".to_owned(),
        };
        writeln!(out, "{}: {dtype} on {on}, {kernels} kernels", self.model)?;
        write!(out, "peak: {f32_gflop_per_s:.0} GFLOP/s in float32, ")?;
        if *dtype != DType::F32 {
            write!(out, "{weights_gflop_per_s:.0} in {dtype}, ")?;
        }
        writeln!(out, "{read_gb_per_s:.1} GB/s from memory")?;
        self.shapes.iter().try_for_each(|shape| shape.write(out))
    }
}

impl ShapeReport {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "\n{} × {}: {} tokens/s, {:.3} ms a forward pass (median of {}, fastest {:.3}), {:.0} GFLOP/s",
            self.batch,
            self.length,
            count(self.tokens_per_s as u64),
            self.forward_ms,
            self.n_rounds,
            self.fastest_ms,
            self.gflop_per_s,
        )?;
        let mut table = Table::new([
            "operation",
            "calls",
            "ms",
            "share",
            "GFLOP/s",
            "of peak",
            "GB/s",
            "of memory",
        ]);
        for operation in &self.operations {
            table.row(operation.cells());
        }
        let rest = percent(100.0 * self.rest_ms / self.forward_ms);
        table.row([
            "rest".into(),
            String::new(),
            format!("{:.3}", self.rest_ms),
            rest,
        ]);
        table.write(out)
    }
}

impl OperationReport {
    fn new(measure: &Measure, forward: Duration, peak: &Peak) -> Self {
        let record = &measure.record;
        let elapsed = median(&measure.elapsed);
        let flops = record.work.flops;
        let gflop_per_s = (flops > 0).then(|| giga(flops as f64 / seconds(elapsed)));
        let of_peak = |rate| 100.0 * rate / peak.gflop_per_s(record.operation.dtype);
        let gb_per_s = giga(record.work.n_bytes as f64 / seconds(elapsed));
        Self {
            operation: record.operation.to_string(),
            n_calls: record.n_calls,
            ms: ms(elapsed),
            percent: 100.0 * seconds(elapsed) / seconds(forward),
            gflop_per_s,
            percent_of_peak: gflop_per_s.map(of_peak),
            gb_per_s,
            percent_of_bandwidth: 100.0 * gb_per_s / peak.read_gb_per_s,
        }
    }

    fn cells(&self) -> [String; 8] {
        [
            self.operation.clone(),
            self.n_calls.to_string(),
            format!("{:.3}", self.ms),
            percent(self.percent),
            self.gflop_per_s
                .map_or(String::new(), |x| format!("{x:.1}")),
            self.percent_of_peak.map_or(String::new(), percent),
            format!("{:.1}", self.gb_per_s),
            percent(self.percent_of_bandwidth),
        ]
    }
}

fn as_text<S: serde::Serializer>(dtype: &DType, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(dtype)
}

fn threads(n: usize) -> String {
    match n {
        1 => "1 thread".to_owned(),
        n => format!("{n} threads"),
    }
}

fn percent(x: f64) -> String {
    format!("{x:.1} %")
}

fn giga(x: f64) -> f64 {
    x / 1e9
}

fn ms(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// Never zero, which rates are divided by.
fn seconds(time: Duration) -> f64 {
    time.max(Duration::from_nanos(1)).as_secs_f64()
}
