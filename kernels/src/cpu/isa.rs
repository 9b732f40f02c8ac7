//! Which instruction set the kernels use: found at run time, or forced.
//!
//! The choice is part of the numerics (bits may differ between instruction sets), never of a step:
//! a device keeps the one it was made with.

use crate::cpu::simd::{Emulated512, Portable, Simd};
use crate::error::KernelError;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isa {
    /// What every machine of the architecture has. Multiplies and adds round separately.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL with BF16 and VNNI.
    Avx512,
    /// The AVX-512 kernels on plain arrays, bit for bit. Slow: lets machines without AVX-512 test
    /// them. Never chosen by [`Isa::detect`].
    Emulated512,
}

/// Code that is generic over lanes and runs under one instruction set's compiler features.
pub(crate) trait Kernel {
    /// What the code gives.
    type Output;

    /// The code. Must be `#[inline(always)]`, as must all that it calls with lanes in hand:
    /// otherwise the lanes' instructions are calls.
    fn run<S: Simd>(self) -> Self::Output;
}

impl Isa {
    /// The widest instruction set of this machine.
    pub fn detect() -> Isa {
        [Isa::Avx512, Isa::Avx2].into_iter().find(|isa| isa.is_present()).unwrap_or(Isa::Portable)
    }

    /// All that this machine can run, the emulated one included.
    pub fn available() -> impl Iterator<Item = Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Emulated512]
            .into_iter()
            .filter(|isa| isa.is_present())
    }

    /// `self`, or an error when this machine lacks it.
    pub fn checked(self) -> Result<Isa, KernelError> {
        if self.is_present() {
            return Ok(self);
        }
        Err(KernelError::Unsupported(format!(
            "this machine lacks the instruction set {}; the widest it has is {}",
            self.name(),
            Isa::detect().name()
        )))
    }

    /// Lower-case name, for summaries and block keys.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Emulated512 => "emulated512",
        }
    }

    /// Whether a bf16 linear dots pairs of bf16 (see [`Simd::DOTS_PAIRS`]).
    pub(crate) fn dots_pairs(self) -> bool {
        matches!(self, Isa::Avx512 | Isa::Emulated512)
    }

    #[cfg(target_arch = "x86_64")]
    fn is_present(self) -> bool {
        match self {
            Isa::Portable | Isa::Emulated512 => true,
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Isa::Avx512 => {
                Isa::Avx2.is_present()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_present(self) -> bool {
        matches!(self, Isa::Portable | Isa::Emulated512)
    }

    /// Runs `kernel` with this instruction set's lanes.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Portable => kernel.run::<Portable>(),
            Isa::Emulated512 => kernel.run::<Emulated512>(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a device checks its instruction set once, when it is made.
            Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => unreachable!("checked when the device was made"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Kernel;
    use crate::cpu::simd::{Avx2, Avx512};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }

    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c"
    )]
    pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detection_is_available_and_a_missing_set_is_refused() {
        assert!(Isa::available().any(|isa| isa == Isa::detect()));
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Emulated512] {
            let present = Isa::available().any(|other| other == isa);
            assert_eq!(isa.checked().is_ok(), present);
        }
    }
}
