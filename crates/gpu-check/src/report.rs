//! What was found, as JSON and as a table.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use moeshard_cuda::driver::Driver;
use moeshard_cuda::driver::cublaslt::CublasLt;
use moeshard_cuda::peak;
use serde::Serialize;

/// Everything that was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: &'static str,
    /// Seconds since 1970.
    time: u64,
    command: Vec<String>,
    device: String,
    compute_capability: String,
    n_multiprocessors: u32,
    memory_bytes: u64,
    /// Version of cuBLASLt, where dense layers run on it.
    cublaslt: Option<usize>,
    pub(crate) peak: Option<Peak>,
    /// Bytes per second that a rank gets from others, and seconds to meet them: ranks on this one GPU.
    pub(crate) exchanged_bytes: Option<f64>,
    pub(crate) meet_seconds: Option<f64>,
    pub(crate) suites: Vec<Suite>,
    rows: Vec<Row>,
}

/// Ceilings of the device, measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Peak {
    f32_flops: f64,
    mma_flops: f64,
    read_bytes: f64,
}

impl From<peak::Peak> for Peak {
    fn from(peak: peak::Peak) -> Self {
        Self {
            f32_flops: peak.f32_flops,
            mma_flops: peak.weights_flops,
            read_bytes: peak.read_bytes,
        }
    }
}

/// The conformance suite in one dtype.
#[derive(Debug, Serialize)]
pub(crate) struct Suite {
    pub(crate) dtype: String,
    pub(crate) n_cases: usize,
    /// The largest error, as a share of what is allowed.
    pub(crate) worst: f64,
    pub(crate) worst_case: String,
    pub(crate) failures: Vec<Failure>,
}

impl Suite {
    /// One that has not begun.
    pub(crate) fn new(dtype: &str) -> Self {
        Self {
            dtype: dtype.to_owned(),
            n_cases: 0,
            worst: 0.0,
            worst_case: String::new(),
            failures: Vec::new(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) case: String,
    pub(crate) reason: String,
}

/// One benchmark.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    flops_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_s: Option<f64>,
    /// Of the time of the exchanges alone, what another half's compute hides.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_exchanges: Option<f64>,
}

impl Row {
    pub(crate) fn new(name: String, elapsed: Duration) -> Self {
        Self {
            name,
            ms: 1e3 * elapsed.as_secs_f64(),
            flops_per_s: None,
            bytes_per_s: None,
            tokens_per_s: None,
            hidden_exchanges: None,
        }
    }

    fn rate(&self, n: f64) -> Option<f64> {
        (self.ms > 0.0).then(|| n / (1e-3 * self.ms))
    }

    /// With so many floating-point operations.
    pub(crate) fn flops(mut self, n: f64) -> Self {
        self.flops_per_s = self.rate(n);
        self
    }

    /// With so many bytes.
    pub(crate) fn bytes(mut self, n: f64) -> Self {
        self.bytes_per_s = self.rate(n);
        self
    }

    /// With so many tokens.
    pub(crate) fn tokens(mut self, n: f64) -> Self {
        self.tokens_per_s = self.rate(n);
        self
    }

    /// A pass in two halves, beside the same in one, and its exchanges alone.
    pub(crate) fn hides(mut self, whole: Duration, exchanges: Duration) -> Self {
        let saved = 1e3 * whole.as_secs_f64() - self.ms;
        let all = 1e3 * exchanges.as_secs_f64();
        self.hidden_exchanges = (all > 0.0).then(|| saved / all);
        self
    }
}

impl Report {
    pub(crate) fn new(driver: &impl Driver) -> Self {
        let properties = driver.properties();
        let (major, minor) = properties.capability;
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            time: time.map_or(0, |time| time.as_secs()),
            command: std::env::args().collect(),
            device: properties.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            n_multiprocessors: properties.n_multiprocessors,
            memory_bytes: properties.n_bytes,
            cublaslt: driver.cublaslt().map(CublasLt::version),
            peak: None,
            exchanged_bytes: None,
            meet_seconds: None,
            suites: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Appends a row, and shows it at once.
    pub(crate) fn row(&mut self, row: Row) {
        eprintln!("{}", row.line(self.peak));
        self.rows.push(row);
    }

    pub(crate) fn n_failed(&self) -> usize {
        self.suites.iter().map(|suite| suite.failures.len()).sum()
    }

    /// Writes gpu-check.json and gpu-check.md.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let files = [
            ("gpu-check.json", serde_json::to_string_pretty(self)?),
            ("gpu-check.md", self.markdown()),
        ];
        for (name, text) in files {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "## {}, compute capability {}{}\n\n`{}`\n\n",
            self.device,
            self.compute_capability,
            match self.cublaslt {
                Some(version) => format!(", dense layers on cuBLASLt {version}"),
                None => String::new(),
            },
            self.command.join(" ")
        );
        for suite in &self.suites {
            let Suite {
                dtype,
                n_cases,
                worst,
                worst_case,
                failures,
            } = suite;
            let n_failed = failures.len();
            let worst = match worst_case.as_str() {
                "" => String::new(),
                case => format!("; worst at {worst:.2} of what is allowed ({case})"),
            };
            let _ = writeln!(text, "- {dtype}: {n_cases} cases, {n_failed} failed{worst}");
            for failure in failures {
                let _ = writeln!(text, "  - {}: {}", failure.case, failure.reason);
            }
        }
        if let Some(peak) = self.peak {
            let _ = writeln!(
                text,
                "\nCeilings: {:.1} TFLOP/s in f32, {:.0} by `mma.sync`, reading {:.2} TB/s\n",
                peak.f32_flops / 1e12,
                peak.mma_flops / 1e12,
                peak.read_bytes / 1e12
            );
        }
        if !self.rows.is_empty() {
            text += "| work | ms | rate | of the ceiling |\n|---|---|---|---|\n";
        }
        for row in &self.rows {
            text += &row.line(self.peak);
            text.push('\n');
        }
        text
    }
}

impl Row {
    fn line(&self, peak: Option<Peak>) -> String {
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let (rate, share) = match (self.flops_per_s, self.bytes_per_s, self.tokens_per_s) {
            (Some(flops), ..) => (
                format!("{:.0} TFLOP/s", flops / 1e12),
                peak.map(|peak| percent(flops / peak.mma_flops)),
            ),
            (_, Some(bytes), _) => (format!("{:.1} GB/s", bytes / 1e9), None),
            (.., Some(tokens)) => {
                let hidden = self.hidden_exchanges.map(percent);
                let hidden = hidden.map(|share| format!(", {share} of the exchanges hidden"));
                let rate = format!("{tokens:.0} tokens/s{}", hidden.unwrap_or_default());
                (rate, None)
            }
            _ => (String::new(), None),
        };
        let share = share.unwrap_or_default();
        format!("| {} | {:.3} | {rate} | {share} |", self.name, self.ms)
    }
}
