//! The driver's side of kernels, run: libraries that are opened and asked as NVIDIA's will be.

mod driver;
mod kernels;
mod machine;
mod products;

use std::sync::Arc;

use machine::Machine;

use crate::cuda::GpuOptions;
use crate::cuda::driver::Driver;
use crate::cuda::nvidia::{KernelReport, Places};
use crate::cuda::source::{NORM, Source};
use crate::error::KernelError;

/// Takes the first GPU with the kernels that these tests run.
fn open_with(
    places: &Places,
    sources: &[&'static Source],
) -> Result<(Arc<dyn Driver>, KernelReport), KernelError> {
    let (nvidia, report) = super::open(GpuOptions::default(), places, sources, &|_| ())?;
    Ok((Arc::new(nvidia), report))
}

fn open(machine: &Machine) -> Arc<dyn Driver> {
    open_with(&machine.lasting_places(), &[&NORM]).unwrap().0
}
