//! What this machine can do at most, and how much of it `linear` gets.
//!
//! `kernels [--threads N] [--isa NAME] [--rounds N] [--quantization FORMAT]` prints one JSON object a
//! line: for bf16 and f32, or for the quantized format alone. Ceilings are
//! measured before and after, because neighbours on a shared machine move them; every line has the
//! share of CPU time that was stolen meanwhile and the load, so that a noisy run shows.

use std::time::Instant;

use anyhow::{Context, Result};
use pagoda_benches::machine::{CpuTimes, commit, load};
use pagoda_benches::settings::Settings;
use pagoda_kernels::batch::Batch;
use pagoda_kernels::cpu::ceilings::{self, ReadProbe};
use pagoda_kernels::cpu::isa::Isa;
use pagoda_kernels::cpu::{CpuDevice, CpuOptions};
use pagoda_kernels::device::{Device, Executor, Limits, Step};
use pagoda_kernels::dtype::{DType, HostTensor};
use pagoda_kernels::ops::{Activation, Embed, Epilogue, Linear, Ops, Stacking};
use pagoda_kernels::weight_format::WeightFormat;
use serde::Serialize;

/// Bytes that the read probe and a linear's weights span: far beyond any cache.
const SPAN: usize = 512 << 20;

/// Rows of a step.
const ROWS: [usize; 5] = [1, 4, 16, 64, 512];

/// The products of Qwen2.5-0.5B: name, N, K, whether columns are gate and up.
const SHAPES: [(&str, usize, usize, bool); 5] = [
    ("qkv", 1152, 896, false),
    ("attn_output", 896, 896, false),
    ("gate_up", 9728, 896, true),
    ("down", 896, 4864, false),
    ("head", 151_936, 896, false),
];

fn main() -> Result<()> {
    let settings = Settings::parse(7)?;
    let mut bench = Bench::new(settings)?;
    let before = bench.ceilings("before")?;
    let plain = [DType::Bf16, DType::F32].map(WeightFormat::from).to_vec();
    let formats = settings.quantization.map_or(plain, |quantization| vec![quantization.into()]);
    for format in formats {
        for shape in SHAPES {
            for rows in ROWS {
                bench.linear(shape, rows, format, &before)?;
            }
        }
    }
    bench.ceilings("after")?;
    Ok(())
}

/// Medians that shares refer to.
struct Ceilings {
    read: f64,
    f32_flops: f64,
    bf16_flops: Option<f64>,
    int8_ops: Option<f64>,
}

/// One line of output.
#[derive(Serialize)]
struct Line<'a> {
    what: &'a str,
    unit: &'a str,
    shape: Option<[usize; 3]>,
    format: Option<&'a str>,
    median: f64,
    min: f64,
    max: f64,
    rounds: usize,
    share_of_read: Option<f64>,
    share_of_peak: Option<f64>,
    isa: Isa,
    threads: usize,
    steal_percent: f64,
    load: f64,
    commit: &'a str,
}

struct Bench {
    settings: Settings,
    device: CpuDevice,
    commit: String,
    probe: ReadProbe,
}

/// Samples with their spread.
struct Samples(Vec<f64>);

impl Samples {
    fn take(rounds: usize, mut sample: impl FnMut() -> Result<f64>) -> Result<Self> {
        sample()?;
        let mut samples = (0..rounds).map(|_| sample()).collect::<Result<Vec<f64>>>()?;
        samples.sort_by(f64::total_cmp);
        Ok(Samples(samples))
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }
}

impl Bench {
    fn new(settings: Settings) -> Result<Self> {
        let device = CpuDevice::new(CpuOptions {
            threads: settings.threads,
            isa: Some(settings.isa),
            ..CpuOptions::default()
        })?;
        Ok(Bench { settings, device, commit: commit(), probe: ReadProbe::new(SPAN)? })
    }

    fn ceilings(&self, when: &str) -> Result<Ceilings> {
        let Settings { threads, isa, .. } = self.settings;
        let measure = |what: &str, unit: &str, sample: &dyn Fn() -> Option<f64>| {
            if sample().is_none() {
                return Ok(None);
            }
            let before = CpuTimes::now();
            let rounds = self.settings.rounds;
            let samples = Samples::take(rounds, || Ok(sample().unwrap_or(f64::NAN) / 1e9))?;
            let what = format!("{what} {when}");
            self.print(&before, &samples, Line { what: &what, unit, ..self.line() })?;
            Ok::<_, anyhow::Error>(Some(samples.median()))
        };
        measure("read, 1 thread,", "GB/s", &|| Some(self.probe.bytes_per_second(isa, 1)))?;
        let read = measure("read", "GB/s", &|| Some(self.probe.bytes_per_second(isa, threads)))?;
        let f32_flops = measure("f32", "GFLOP/s", &|| Some(ceilings::f32_flops(isa, threads)))?;
        let bf16_flops = measure("bf16", "GFLOP/s", &|| ceilings::bf16_flops(isa, threads))?;
        let int8_ops = measure("int8", "GOP/s", &|| ceilings::int8_ops(isa, threads))?;
        let (read, f32_flops) = (read.unwrap_or(f64::NAN), f32_flops.unwrap_or(f64::NAN));
        Ok(Ceilings { read, f32_flops, bf16_flops, int8_ops })
    }

    /// One shape at one number of rows: a step of enough products to span [`SPAN`] bytes (at most
    /// 24, as many as the model has layers), each with its own weight.
    fn linear(
        &mut self,
        (name, n, k, glu): (&str, usize, usize, bool),
        rows: usize,
        format: WeightFormat,
        ceilings: &Ceilings,
    ) -> Result<()> {
        let bytes = n * format.row_bytes(k);
        // Many rows are bound by arithmetic: a few weights do.
        let copies = (SPAN / bytes).clamp(1, if rows < 64 { 24 } else { 4 });
        let mut executor = self.executor((n, k, glu), (rows, copies), format)?;
        let mut step = Some(Self::step(rows));
        let before = CpuTimes::now();
        let samples = Samples::take(self.settings.rounds, || {
            let start = Instant::now();
            executor.launch(step.take().context("the step is lent")?)?;
            step = Some(executor.finish()?);
            Ok(start.elapsed().as_secs_f64() * 1e6 / copies as f64)
        })?;
        let seconds = samples.median() / 1e6;
        let flops = 2.0 * (rows * n * k) as f64 / seconds / 1e9;
        let peak = match format {
            WeightFormat::Plain(DType::Bf16) => ceilings.bf16_flops.unwrap_or(ceilings.f32_flops),
            WeightFormat::Quantized(quantization) if quantization.quantizes_rows() => {
                ceilings.int8_ops.unwrap_or(ceilings.f32_flops)
            }
            _ => ceilings.f32_flops,
        };
        let line = Line {
            what: name,
            unit: "us",
            shape: Some([rows, n, k]),
            format: Some(format.name()),
            share_of_read: Some(bytes as f64 / seconds / 1e9 / ceilings.read),
            share_of_peak: Some(flops / peak),
            ..self.line()
        };
        self.print(&before, &samples, line)
    }

    fn executor(
        &self,
        (n, k, glu): (usize, usize, bool),
        (rows, copies): (usize, usize),
        format: WeightFormat,
    ) -> Result<<CpuDevice as Device>::Executor> {
        let x = self.device.tensor(rows, k)?;
        let out = self.device.tensor(rows, if glu { n / 2 } else { n })?;
        let mut program = self.device.program();
        let few = self.pack(16, k, format)?;
        program.embed(Embed { table: few, scale: 1.0, x: x.clone() });
        let epilogue = if glu { Epilogue::Glu(Activation::Silu) } else { Epilogue::Store };
        for _ in 0..copies {
            let weight = self.pack(n, k, format)?;
            let (x, out) = (x.clone(), out.clone());
            program.linear(Linear { x, weight, bias: None, out, epilogue });
        }
        let limits = Limits {
            max_tokens: rows,
            max_seqs: 1,
            max_logits_rows: 1,
            vocab: 16,
            max_model_len: rows,
            max_top: 0,
        };
        Ok(self.device.executor(program, limits)?)
    }

    fn pack(
        &self,
        n: usize,
        k: usize,
        format: WeightFormat,
    ) -> Result<pagoda_kernels::device::Weight<CpuDevice>> {
        let (stored, bytes): (_, Vec<u8>) = match format {
            WeightFormat::Plain(DType::F32) => {
                (DType::F32, (0..n * k).flat_map(|i| value(i).to_le_bytes()).collect())
            }
            _ => {
                let upper = |i| ((value(i).to_bits() >> 16) as u16).to_le_bytes();
                (DType::Bf16, (0..n * k).flat_map(upper).collect())
            }
        };
        let host = HostTensor::new(stored, n, k, &bytes).context("a weight of a wrong size")?;
        Ok(self.device.pack(&[host], Stacking::Stack, format)?)
    }

    fn step(rows: usize) -> Step {
        let mut batch = Batch::new(0);
        batch.clear();
        batch.ids = (0..rows as u32).map(|row| row % 16).collect();
        batch.positions = (0..rows as u32).collect();
        batch.query_start.push(rows as u32);
        batch.kv_len.push(rows as u32);
        batch.seq_slot.push(0);
        Step { batch, ..Step::default() }
    }

    fn line(&self) -> Line<'_> {
        Line {
            what: "",
            unit: "",
            shape: None,
            format: None,
            median: 0.0,
            min: 0.0,
            max: 0.0,
            rounds: self.settings.rounds,
            share_of_read: None,
            share_of_peak: None,
            isa: self.settings.isa,
            threads: self.settings.threads,
            steal_percent: 0.0,
            load: load(),
            commit: &self.commit,
        }
    }

    #[expect(clippy::print_stdout, reason = "the result of this program")]
    fn print(&self, before: &CpuTimes, samples: &Samples, line: Line<'_>) -> Result<()> {
        let line = Line {
            median: samples.median(),
            min: samples.0[0],
            max: samples.0[samples.0.len() - 1],
            steal_percent: CpuTimes::now().steal_percent_since(before),
            ..line
        };
        println!("{}", serde_json::to_string(&line)?);
        Ok(())
    }
}

/// Weights that are neither zero nor denormal.
fn value(index: usize) -> f32 {
    (index % 251) as f32 / 4096.0 - 0.03
}
