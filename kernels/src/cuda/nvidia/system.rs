//! What the driver says of this machine: its version, and its GPUs.
//!
//! Opening the driver takes no GPU's memory. Every reason not to use a GPU is told in words that a
//! person can act on.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;

use super::api::{CALLS, Refused, check, sys};
use super::arch::CAPABILITY_MIN;
use super::library::{Calls, Library};
use super::places::Places;
use crate::error::KernelError;

use sys::CUdevice_attribute as Attribute;

/// The driver, ready to be asked: it has all functions that are called.
#[derive(Clone)]
pub(crate) struct System {
    /// Its library.
    pub(crate) file: PathBuf,
    /// The CUDA version that it knows: 13000 is 13.0.
    pub(crate) version: u32,
    num_gpus: usize,
}

/// A GPU, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number in `--device cuda:N`.
    pub index: usize,
    /// Its product name.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// SMs.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block may have.
    pub shared_bytes_max: usize,
}

impl Gpu {
    /// Refuses a card that is too old.
    pub fn check(&self) -> Result<(), KernelError> {
        if self.capability >= CAPABILITY_MIN {
            return Ok(());
        }
        let ((major, minor), (least, _)) = (self.capability, CAPABILITY_MIN);
        Err(KernelError::Unsupported(format!(
            "{} has compute capability {major}.{minor}; the kernels need {least}.0 (Ampere) or newer",
            self.name
        )))
    }
}

/// The oldest driver whose functions suffice.
const VERSION_MIN: u32 = 12040;

impl System {
    /// Opens the driver.
    pub(crate) fn open(places: &Places) -> Result<Self, KernelError> {
        let refused = KernelError::Unsupported;
        let library = Library::find(&["libcuda.so.1"], places)
            .map_err(|why| refused(format!("no NVIDIA driver: {why}")))?;
        let symbol = library.symbol("cuDriverGetVersion").map_err(refused)?;
        let file = library.file_of(symbol);
        let version = version(&library)?;
        if version < VERSION_MIN {
            return Err(refused(format!(
                "the NVIDIA driver in {} is too old: it knows CUDA {}, and {} or newer is needed",
                file.display(),
                version_name(version),
                version_name(VERSION_MIN)
            )));
        }
        library.allow(&CALLS).map_err(refused)?;
        // SAFETY: no flags exist.
        let code = unsafe { sys::cuInit(0) };
        if code == sys::CUresult::CUDA_ERROR_NO_DEVICE {
            return Err(refused(format!(
                "the NVIDIA driver ({}) sees no GPU: check nvidia-smi, CUDA_VISIBLE_DEVICES, and \
                 whether a container was given one",
                file.display()
            )));
        }
        check("cuInit", code).map_err(|error| refused(with_advice(error)))?;
        let mut count = 0;
        // SAFETY: writes one number.
        let code = unsafe { sys::cuDeviceGetCount(&raw mut count) };
        check("cuDeviceGetCount", code).map_err(Refused::at_start)?;
        let num_gpus = usize::try_from(count).unwrap_or(0);
        if num_gpus == 0 {
            return Err(refused(
                "the NVIDIA driver sees no GPU: check CUDA_VISIBLE_DEVICES".into(),
            ));
        }
        Ok(System { file, version, num_gpus })
    }

    /// The driver's number of a GPU.
    pub(crate) fn device(&self, index: usize) -> Result<sys::CUdevice, KernelError> {
        if index >= self.num_gpus {
            return Err(KernelError::Unsupported(format!(
                "there is no GPU {index}; this process sees {}: 0 to {}",
                self.num_gpus,
                self.num_gpus - 1
            )));
        }
        let mut device = 0;
        // SAFETY: writes one number.
        let code = unsafe { sys::cuDeviceGet(&raw mut device, index as i32) };
        check("cuDeviceGet", code).map_err(Refused::at_start)?;
        Ok(device)
    }

    /// Describes a GPU.
    pub(crate) fn gpu(&self, index: usize) -> Result<Gpu, KernelError> {
        let device = self.device(index)?;
        let mut name = [0 as c_char; 256];
        // SAFETY: writes a string that ends with a zero within the length given, less one.
        let code = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 255, device) };
        check("cuDeviceGetName", code).map_err(Refused::at_start)?;
        // SAFETY: the last byte is zero whatever the driver wrote.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let mut memory = 0;
        // SAFETY: writes one word.
        let code = unsafe { sys::cuDeviceTotalMem_v2(&raw mut memory, device) };
        check("cuDeviceTotalMem", code).map_err(Refused::at_start)?;
        let attribute = |attribute| attribute_of(device, attribute);
        Ok(Gpu {
            index,
            name,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            memory_bytes: memory as u64,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes_max: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )? as usize,
        })
    }

    /// Describes all GPUs.
    pub(crate) fn gpus(&self) -> Result<Vec<Gpu>, KernelError> {
        (0..self.num_gpus).map(|index| self.gpu(index)).collect()
    }
}

fn attribute_of(device: sys::CUdevice, attribute: Attribute) -> Result<u32, KernelError> {
    let mut value = 0;
    // SAFETY: writes one number.
    let code = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) };
    check("cuDeviceGetAttribute", code).map_err(Refused::at_start)?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// Asked before anything else is looked up: an old driver lacks functions.
fn version(library: &Library) -> Result<u32, KernelError> {
    let alone = Calls { functions: &["cuDriverGetVersion"], ..CALLS };
    library.allow(&alone).map_err(KernelError::Unsupported)?;
    let mut version = 0;
    // SAFETY: writes one number; needs no initialised driver.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    if code != sys::CUresult::CUDA_SUCCESS {
        let reason = format!("the NVIDIA driver does not tell its version (error {})", code as u32);
        return Err(KernelError::Unsupported(reason));
    }
    Ok(u32::try_from(version).unwrap_or(0))
}

/// `13.0` for 13000.
pub(crate) fn version_name(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// What to do about errors of a driver that does not start.
fn with_advice(error: Refused) -> String {
    let advice = match error.code as u32 {
        802 => "is nvidia-fabricmanager running?",
        803 => "the driver's library and its kernel module differ: reboot, or reload the module",
        804 => "remove the CUDA compatibility package, or update the driver",
        999 => "check dmesg, and that /dev/nvidia-uvm exists (nvidia-modprobe -u)",
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}
