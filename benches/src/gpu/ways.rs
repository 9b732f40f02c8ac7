//! The engine at one shape, taken in several ways one after another: what each costs or gains.

use anyhow::Result;
use pagoda_kernels::cuda::suite::Figure;
use pagoda_kernels::cuda::{CudaOptions, GpuOptions};

use super::engine::{Engine, Load, Shape};
use super::part::{Task, prefixed};

/// A way to take the device.
struct Way {
    name: &'static str,
    gpu: fn(GpuOptions) -> GpuOptions,
    options: CudaOptions,
    /// Whether the emulation has it, too.
    is_emulated: bool,
}

const FAST: CudaOptions = CudaOptions { deterministic: false };

/// Those after the first are compared with it.
const WAYS: [Way; 4] = [
    Way { name: "as it is", gpu: |gpu| gpu, options: FAST, is_emulated: true },
    Way {
        name: "deterministic",
        gpu: |gpu| GpuOptions { own_products: true, ..gpu },
        options: CudaOptions { deterministic: true },
        is_emulated: true,
    },
    Way {
        name: "one by one",
        gpu: |gpu| GpuOptions { one_by_one: true, ..gpu },
        options: FAST,
        is_emulated: false,
    },
    Way {
        name: "own products",
        gpu: |gpu| GpuOptions { own_products: true, ..gpu },
        options: FAST,
        is_emulated: false,
    },
];

pub(super) fn run(task: &Task<'_>, shape: &Shape) -> Result<bool> {
    let load = Load::to_compare(task, shape);
    let mut first: Option<Vec<Figure>> = None;
    for way in WAYS.iter().filter(|way| way.is_emulated || !task.settings.is_emulated()) {
        if !(task.keeps_going)() {
            return Ok(false);
        }
        let device = task.settings.open_as(way.gpu)?.with_options(way.options);
        let say = |what, right| (task.say)(prefixed(what, &format!("{}: ", way.name)), right);
        let named = Task { say: &say, ..*task };
        let engine = Engine::start(&named, &device, &load)?;
        let measured = engine.measure(&named, &load, None)?;
        engine.end()?;
        let Some(measured) = measured else { return Ok(false) };
        let Some(first) = &first else {
            first = Some(measured);
            continue;
        };
        for (plain, other) in first.iter().zip(&measured) {
            let what = format!("{}: {} over as it is", plain.what, way.name);
            task.figure(Figure::one(what, "times", other.median / plain.median))?;
        }
    }
    Ok(true)
}
