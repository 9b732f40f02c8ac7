//! cuBLASLt through cudarc: products of many rows by NVIDIA's own kernels.
//!
//! Found at run time like the driver; nothing needs it. Matrices are told to it as columns: a weight
//! `[n, k]` by rows is `[k, n]` by columns and enters transposed, and a result `[rows, n]` by rows is
//! `[n, rows]` by columns. Descriptors and algorithms are made once for a shape and a range of rows.

use std::ffi::{CStr, c_void};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::cublaslt::sys;

use super::api::{Context, Handle, Refused, Stream, enter};
use super::library::{Calls, Library, calls};
use super::places::Places;
use crate::cuda::product_library::{LibraryOperands, LibraryShape, ProductLibrary, Refusal, Way};
use crate::error::KernelError;

use sys::cublasLtMatmulDescAttributes_t as Attribute;

/// The library's functions that are called.
pub(super) const CALLS: Calls = calls!(
    sys: cublasLtCreate, cublasLtDestroy, cublasLtGetVersion, cublasLtGetStatusString,
    cublasLtMatmulDescCreate, cublasLtMatmulDescDestroy, cublasLtMatmulDescSetAttribute,
    cublasLtMatrixLayoutCreate, cublasLtMatrixLayoutDestroy, cublasLtMatrixLayoutSetAttribute,
    cublasLtMatmulPreferenceCreate, cublasLtMatmulPreferenceDestroy,
    cublasLtMatmulPreferenceSetAttribute, cublasLtMatmulAlgoGetHeuristic, cublasLtMatmulAlgoCheck,
    cublasLtMatmul,
);

/// Names of the library, newest first: with the majors of CUDA they belong to.
const NAMES: [(u32, &str); 2] = [(13, "libcublasLt.so.13"), (12, "libcublasLt.so.12")];

/// The library: it has all functions that are called.
#[derive(Clone, Debug)]
pub(crate) struct CublasLt {
    /// Its file.
    pub(crate) file: PathBuf,
    /// 130001 is 13.0.1.
    pub(crate) version: usize,
}

impl CublasLt {
    /// Finds the library. One of a newer major version of CUDA than the driver's would not run.
    pub(crate) fn find(places: &Places, major_max: Option<u32>) -> Result<Self, String> {
        let usable = |major: u32| major_max.is_none_or(|max| major <= max);
        let names: Vec<&str> =
            NAMES.iter().filter(|(major, _)| usable(*major)).map(|(_, name)| *name).collect();
        let library = Library::find(&names, places)?;
        library.allow(&CALLS)?;
        let file = library.file_of(library.symbol("cublasLtCreate")?);
        // SAFETY: asks for nothing.
        let version = unsafe { sys::cublasLtGetVersion() };
        Ok(CublasLt { file, version })
    }

    /// Major, minor and patch.
    pub(crate) fn version_name(&self) -> String {
        let version = self.version;
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }
}

/// The library at work on a stream.
pub(crate) struct Blas {
    library: CublasLt,
    handle: Handle<sys::cublasLtContext>,
    context: Context,
    stream: Stream,
    ways: Mutex<Ways>,
}

/// Ways, and the descriptors that they share.
#[derive(Default)]
struct Ways {
    plans: Vec<Plan>,
    ways: Vec<KnownWay>,
}

/// How a way is to be taken.
#[derive(Clone, Copy)]
struct KnownWay {
    plan: usize,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace_bytes: usize,
}

/// Descriptors of a shape: the product, the weight as A, x as B, the result as C and D.
struct Plan {
    adds: bool,
    has_bias: bool,
    product: Handle<sys::cublasLtMatmulDescOpaque_t>,
    weight: Layout,
    x: Layout,
    out: Layout,
}

/// A matrix by columns.
struct Layout(Handle<sys::cublasLtMatrixLayoutOpaque_t>);

impl std::fmt::Debug for Blas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blas").field("library", &self.library).finish_non_exhaustive()
    }
}

impl Blas {
    /// Puts the library to work on a stream of a context, both of which live longer. Its refusal is no
    /// fault of the device, which works on without.
    pub(crate) fn new(
        library: CublasLt,
        context: Context,
        stream: Stream,
    ) -> Result<Self, KernelError> {
        enter(context)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is current; writes one handle, given back on drop.
        let status = unsafe { sys::cublasLtCreate(&raw mut handle) };
        check("cublasLtCreate", status)?;
        Ok(Blas { library, handle: Handle(handle), context, stream, ways: Mutex::default() })
    }

    fn enter(&self) -> Result<(), Refusal> {
        let refused = |error: Refused| Refusal { words: error.to_string(), started_nothing: true };
        enter(self.context).map_err(refused)
    }

    fn known(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Algorithms for the most rows of a plan, by the library's own guess.
    fn algorithms(
        &self,
        plan: &Plan,
        workspace_bytes: usize,
        most: usize,
    ) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>, Refusal> {
        let preference = Preference::new(workspace_bytes)?;
        // SAFETY: all zeros are a value of this struct of numbers.
        let none: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut found = vec![none; most];
        let mut count = 0;
        // SAFETY: descriptors of ours, and room for as many results as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle.0,
                plan.product.0,
                plan.weight.0.0,
                plan.x.0.0,
                plan.out.0.0,
                plan.out.0.0,
                preference.0.0,
                most as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        check("cublasLtMatmulAlgoGetHeuristic", status)?;
        found.truncate(usize::try_from(count).unwrap_or(0));
        found.retain(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(found)
    }

    /// Bytes of workspace that an algorithm takes for a plan's rows; `None`: it does not compute them.
    fn workspace_of(&self, plan: &Plan, algorithm: &sys::cublasLtMatmulAlgo_t) -> Option<usize> {
        // SAFETY: all zeros are a value of this struct of numbers.
        let mut result: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        // SAFETY: descriptors of ours; writes one result.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle.0,
                plan.product.0,
                plan.weight.0.0,
                plan.x.0.0,
                plan.out.0.0,
                plan.out.0.0,
                algorithm,
                &raw mut result,
            )
        };
        (status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(result.workspaceSize)
    }
}

impl ProductLibrary for Blas {
    fn name(&self) -> String {
        format!("cublaslt{}", self.library.version)
    }

    fn ways(
        &self,
        shape: LibraryShape,
        rows: RangeInclusive<u32>,
        workspace_bytes: usize,
        most: usize,
    ) -> Result<Vec<Way>, Refusal> {
        self.enter()?;
        let plan = Plan::new(shape, *rows.end())?;
        let mut usable = Vec::new();
        for found in self.algorithms(&plan, workspace_bytes, most)? {
            let mut workspace = found.workspaceSize;
            // An algorithm is known for the most rows, and has to compute the fewest too.
            plan.set_rows(*rows.start())?;
            match self.workspace_of(&plan, &found.algo) {
                Some(bytes) => workspace = workspace.max(bytes),
                None => continue,
            }
            if workspace <= workspace_bytes {
                usable.push(found.algo);
            }
        }
        let mut known = self.known();
        let index = known.plans.len();
        known.plans.push(plan);
        let ways = usable.into_iter().map(|algorithm| {
            known.ways.push(KnownWay { plan: index, algorithm, workspace_bytes });
            Way(known.ways.len() as u32 - 1)
        });
        Ok(ways.collect())
    }

    fn identity(&self, Way(way): Way) -> Vec<u64> {
        let known = self.known();
        known.ways.get(way as usize).map_or_else(Vec::new, |way| way.algorithm.data.to_vec())
    }

    unsafe fn multiply(&self, Way(way): Way, operands: &LibraryOperands) -> Result<(), Refusal> {
        self.enter()?;
        let known = self.known();
        let nobodys =
            || Refusal { words: format!("nobody knows way {way}"), started_nothing: true };
        let KnownWay { plan, algorithm, workspace_bytes } =
            *known.ways.get(way as usize).ok_or_else(nobodys)?;
        let plan = known.plans.get(plan).ok_or_else(nobodys)?;
        plan.set_rows(operands.rows)?;
        if plan.has_bias {
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &operands.bias.0)?;
        }
        let (alpha, beta) = (1.0f32, if plan.adds { 1.0f32 } else { 0.0 });
        let at = |pointer: u64| std::ptr::without_provenance::<c_void>(pointer as usize);
        // SAFETY: descriptors of ours; matrices and workspace as they say, by the caller's promise.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle.0,
                plan.product.0,
                (&raw const alpha).cast(),
                at(operands.weight.0),
                plan.weight.0.0,
                at(operands.x.0),
                plan.x.0.0,
                (&raw const beta).cast(),
                at(operands.out.0),
                plan.out.0.0,
                at(operands.out.0).cast_mut(),
                plan.out.0.0,
                &raw const algorithm,
                at(operands.workspace.0).cast_mut(),
                workspace_bytes,
                self.stream.0.cast(),
            )
        };
        check("cublasLtMatmul", status)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if enter(self.context).is_ok() {
            // SAFETY: ours, and nothing runs any more.
            let _ = unsafe { sys::cublasLtDestroy(self.handle.0) };
        }
    }
}

/// `CUBLAS_OP_T`: cudarc has it in its module for cuBLAS alone.
const TRANSPOSED: i32 = 1;

impl Plan {
    /// For up to `rows` rows.
    fn new(shape: LibraryShape, rows: u32) -> Result<Self, Refusal> {
        let LibraryShape { n, k, adds, has_bias } = shape;
        let (bf16, f32) = (sys::cudaDataType::CUDA_R_16BF, sys::cudaDataType::CUDA_R_32F);
        // First, since they go by themselves when what follows is refused.
        let weight = Layout::new(bf16, (k, n), k)?;
        let x = Layout::new(bf16, (k, rows), k)?;
        let out = Layout::new(f32, (n, rows), n)?;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let mut product = std::ptr::null_mut();
        // SAFETY: writes one handle, given back on drop.
        let status = unsafe { sys::cublasLtMatmulDescCreate(&raw mut product, compute, f32) };
        check("cublasLtMatmulDescCreate", status)?;
        let plan = Plan { adds, has_bias, product: Handle(product), weight, x, out };
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if has_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(f32 as i32))?;
        }
        Ok(plan)
    }

    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<(), Refusal> {
        let value: *const T = value;
        // SAFETY: a descriptor of ours, and a value whose size goes with it.
        let status = unsafe {
            sys::cublasLtMatmulDescSetAttribute(
                self.product.0,
                attribute,
                value.cast(),
                size_of::<T>(),
            )
        };
        check("cublasLtMatmulDescSetAttribute", status)
    }

    fn set_rows(&self, rows: u32) -> Result<(), Refusal> {
        self.x.set_columns(rows)?;
        self.out.set_columns(rows)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: ours.
        let _ = unsafe { sys::cublasLtMatmulDescDestroy(self.product.0) };
    }
}

impl Layout {
    fn new(
        format: sys::cudaDataType,
        (rows, columns): (u32, u32),
        stride: u32,
    ) -> Result<Self, Refusal> {
        let mut layout = std::ptr::null_mut();
        // SAFETY: writes one handle, given back on drop.
        let status = unsafe {
            sys::cublasLtMatrixLayoutCreate(
                &raw mut layout,
                format,
                rows.into(),
                columns.into(),
                stride.into(),
            )
        };
        check("cublasLtMatrixLayoutCreate", status)?;
        Ok(Layout(Handle(layout)))
    }

    fn set_columns(&self, columns: u32) -> Result<(), Refusal> {
        let columns = u64::from(columns);
        let attribute = sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS;
        // SAFETY: a layout of ours, and a value whose size goes with it.
        let status = unsafe {
            sys::cublasLtMatrixLayoutSetAttribute(
                self.0.0,
                attribute,
                (&raw const columns).cast(),
                size_of::<u64>(),
            )
        };
        check("cublasLtMatrixLayoutSetAttribute", status)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: ours.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0.0) };
    }
}

/// What an algorithm may take.
struct Preference(Handle<sys::cublasLtMatmulPreferenceOpaque_t>);

impl Preference {
    fn new(workspace_bytes: usize) -> Result<Self, Refusal> {
        let mut preference = std::ptr::null_mut();
        // SAFETY: writes one handle, given back on drop.
        let status = unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut preference) };
        check("cublasLtMatmulPreferenceCreate", status)?;
        let preference = Preference(Handle(preference));
        use sys::cublasLtMatmulPreferenceAttributes_t as Bound;
        let bytes = workspace_bytes as u64;
        // SAFETY: a preference of ours, and a value whose size goes with it.
        let status = unsafe {
            sys::cublasLtMatmulPreferenceSetAttribute(
                preference.0.0,
                Bound::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of::<u64>(),
            )
        };
        check("cublasLtMatmulPreferenceSetAttribute", status)?;
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: ours.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0.0) };
    }
}

fn check(call: &'static str, status: sys::cublasStatus_t) -> Result<(), Refusal> {
    if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    // SAFETY: gives a constant string for every number.
    let text = unsafe { sys::cublasLtGetStatusString(status) };
    let words = if text.is_null() {
        "unknown".to_owned()
    } else {
        // SAFETY: not null, and ends with a zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    use sys::cublasStatus_t as Status;
    // Found out before anything is started. Other errors may come in the middle of a product.
    let started_nothing = matches!(
        status,
        Status::CUBLAS_STATUS_NOT_SUPPORTED
            | Status::CUBLAS_STATUS_INVALID_VALUE
            | Status::CUBLAS_STATUS_ARCH_MISMATCH
    );
    let words = format!("{call} failed with {words} ({})", status as u32);
    Err(Refusal { words, started_nothing })
}
