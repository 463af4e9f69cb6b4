//! cuBLASLt, where it is found: products of rows with one matrix in 16 bits, with bias and activation, or an
//! addend.
//!
//! It lays matrices out by columns, so that our rows are its columns: `out = x · wᵀ` is asked for as
//! `outᵀ = w · xᵀ`, with `w` transposed and `x` as it is.
//!
//! A product is a [`Launch`] of a kernel of the name that [`kernel`] gives, with the arguments `x`, `weight`,
//! `bias` (in the dtype of `x`), `plus`, `out`, `n_rows`, `n`, `k` and the activation.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr::{from_mut, from_ref, null_mut};

use cudarc::cublaslt::sys;
use moeshard_tensor::device::{Activation, DeviceError, Result};
use moeshard_tensor::dtype::DType;

use super::library::{Loaded, functions, set_up};
use super::{Address, Launch};

/// For people.
const WHAT: &str = "cuBLASLt";

/// Of an error.
const OP: &str = "cublaslt";

/// Memory that a product may use besides: what NVIDIA recommends for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// `CUBLAS_OP_T`
const TRANSPOSED: c_int = 1;

type Handle = *mut c_void;
/// A number, for enumerations that newer versions may add to.
type Status = c_int;

functions! {
    create: "cublasLtCreate" (*mut Handle) -> Status;
    destroy: "cublasLtDestroy" (Handle) -> Status;
    version: "cublasLtGetVersion" () -> usize;
    create_product: "cublasLtMatmulDescCreate" (*mut Handle, c_int, c_int) -> Status;
    destroy_product: "cublasLtMatmulDescDestroy" (Handle) -> Status;
    set_product: "cublasLtMatmulDescSetAttribute" (Handle, c_int, *const c_void, usize) -> Status;
    create_matrix: "cublasLtMatrixLayoutCreate" (*mut Handle, c_int, u64, u64, i64) -> Status;
    destroy_matrix: "cublasLtMatrixLayoutDestroy" (Handle) -> Status;
    create_preference: "cublasLtMatmulPreferenceCreate" (*mut Handle) -> Status;
    destroy_preference: "cublasLtMatmulPreferenceDestroy" (Handle) -> Status;
    set_preference: "cublasLtMatmulPreferenceSetAttribute" (Handle, c_int, *const c_void, usize) -> Status;
    choose: "cublasLtMatmulAlgoGetHeuristic" (
        Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Choice, *mut c_int
    ) -> Status;
    multiply: "cublasLtMatmul" (
        Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void,
        *const c_void, Handle, *mut c_void, Handle, *const Algorithm, *mut c_void, usize, *mut c_void
    ) -> Status;
}

/// `cublasLtMatmulAlgo_t`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Choice {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

/// The library, set up for one stream.
pub struct CublasLt {
    functions: Functions,
    handle: Handle,
    workspace: Address,
    /// `None` where the library has nothing for a product.
    plans: RefCell<HashMap<Dense, Option<Plan>>>,
    /// Keeps the functions where they are.
    _library: Option<Loaded>,
}

/// What the library has: its GELU is the approximation by tanh.
pub const ACTIVATIONS: [Activation; 3] =
    [Activation::Identity, Activation::Relu, Activation::GeluTanh];

/// The shape of a product: `out = activation(x · wᵀ + bias + plus)`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dense {
    /// Of everything but sums, which are f32.
    pub dtype: DType,
    /// Rows of `x` and `out`.
    pub n_rows: usize,
    /// Columns of `out`.
    pub n: usize,
    /// Columns of `x`.
    pub k: usize,
    /// Whether there is a bias.
    pub has_bias: bool,
    /// One of [`ACTIVATIONS`].
    pub activation: Activation,
    /// Whether there is an addend.
    pub has_plus: bool,
}

/// How the library computes a product.
struct Plan {
    product: Handle,
    weight: Handle,
    x: Handle,
    out: Handle,
    algorithm: Algorithm,
}

/// The name by which products are launched; `None` if the library is not used for the dtype.
pub fn kernel(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => None,
        DType::BF16 => Some("cublaslt_bf16"),
        DType::F16 => Some("cublaslt_f16"),
    }
}

impl CublasLt {
    /// Loads a file. The device's context is current; [`WORKSPACE_BYTES`] at `workspace` are the library's,
    /// for each stream.
    ///
    /// # Errors
    /// [`DeviceError::SetUp`] if it is no such library, or does not start.
    pub fn open(path: &Path, workspace: Address) -> Result<Self> {
        let library = Loaded::open(WHAT, path)?;
        // SAFETY: the file is called cuBLASLt's.
        let functions = unsafe { Functions::load(|name| library.find(name)) };
        let opened = functions.and_then(|functions| Self::start(functions, workspace));
        let mut opened = opened.map_err(|reason| set_up(WHAT, path, reason))?;
        opened._library = Some(library);
        Ok(opened)
    }

    /// The library that stands in for it on the CPU.
    ///
    /// # Errors
    /// [`DeviceError::SetUp`] if it does not start.
    #[cfg(feature = "emulated")]
    pub fn emulated(workspace: Address) -> Result<Self> {
        // SAFETY: they have the signatures of cuBLASLt's.
        let functions = unsafe { Functions::load(moeshard_emulation::cublaslt_function) };
        functions
            .and_then(|functions| Self::start(functions, workspace))
            .map_err(DeviceError::SetUp)
    }

    fn start(functions: Functions, workspace: Address) -> std::result::Result<Self, String> {
        let mut handle = null_mut();
        // SAFETY: the handle is written there.
        let status = unsafe { (functions.create)(&raw mut handle) };
        match status {
            0 => Ok(Self {
                functions,
                handle,
                workspace,
                plans: RefCell::default(),
                _library: None,
            }),
            _ => Err(format!("it does not start: {}", reason(status))),
        }
    }

    /// Its version, such as 130100 for 13.1.
    pub fn version(&self) -> usize {
        // SAFETY: it takes nothing.
        unsafe { (self.functions.version)() }
    }

    /// Whether it has something for such a product. `bias` is one of those that it will be asked to add, or
    /// zero.
    pub fn takes(&self, dense: &Dense, bias: Address) -> bool {
        let mut plans = self.plans.borrow_mut();
        let plan = plans
            .entry(*dense)
            .or_insert_with(|| self.plan(dense, bias).ok());
        plan.is_some()
    }

    /// Has a product computed on `stream`, if the launch is of one.
    ///
    /// # Safety
    /// As for [`Driver::launch`](super::Driver::launch).
    pub unsafe fn launch(&self, launch: &Launch, stream: *mut c_void) -> Option<Result<()>> {
        let dtype = [DType::BF16, DType::F16]
            .into_iter()
            .find(|&dtype| kernel(dtype) == Some(launch.kernel))?;
        let [x, weight, bias, plus, out, n_rows, n, k, activation, ..] = launch.args;
        let activation = ACTIVATIONS
            .into_iter()
            .find(|&known| known as u64 == activation)?;
        let dense = Dense {
            dtype,
            n_rows: n_rows as usize,
            n: n as usize,
            k: k as usize,
            has_bias: bias != 0,
            activation,
            has_plus: plus != 0,
        };
        let plans = self.plans.borrow();
        let Some(Some(plan)) = plans.get(&dense) else {
            return Some(Err(failed(
                "it was not asked whether it takes this product".into(),
            )));
        };
        let (alpha, beta) = (1.0_f32, if dense.has_plus { 1.0_f32 } else { 0.0 });
        let addend = if dense.has_plus { plus } else { out };
        // Streams must not write to each other's.
        let workspace = self.workspace + (launch.stream * WORKSPACE_BYTES) as u64;
        // SAFETY: handles are the plan's; the caller's promise for what addresses name.
        let status = unsafe {
            if dense.has_bias {
                self.set_bias(plan.product, bias);
            }
            (self.functions.multiply)(
                self.handle,
                plan.product,
                from_ref(&alpha).cast(),
                weight as *const c_void,
                plan.weight,
                x as *const c_void,
                plan.x,
                from_ref(&beta).cast(),
                addend as *const c_void,
                plan.out,
                out as *mut c_void,
                plan.out,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream,
            )
        };
        Some(check(status))
    }

    fn plan(&self, dense: &Dense, bias: Address) -> Result<Plan> {
        let f = &self.functions;
        let (n_rows, n, k) = (dense.n_rows as u64, dense.n as u64, dense.k as u64);
        let mut plan = Plan {
            product: null_mut(),
            weight: null_mut(),
            x: null_mut(),
            out: null_mut(),
            algorithm: Algorithm::default(),
        };
        let dtype = match dense.dtype {
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        } as c_int;
        // SAFETY: each handle is written before it is used; sizes are those of what is handed over.
        let planned = unsafe {
            let matrix = |to: &mut Handle, rows: u64, cols: u64| {
                check((f.create_matrix)(
                    from_mut(to),
                    dtype,
                    rows,
                    cols,
                    rows as i64,
                ))
            };
            check((f.create_product)(
                &raw mut plan.product,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F as c_int,
                sys::cudaDataType_t::CUDA_R_32F as c_int,
            ))
            .and_then(|()| matrix(&mut plan.weight, k, n))
            .and_then(|()| matrix(&mut plan.x, k, n_rows))
            .and_then(|()| matrix(&mut plan.out, n, n_rows))
            .and_then(|()| self.describe(plan.product, dense, bias))
            .and_then(|()| self.algorithm(&plan))
        };
        match planned {
            Ok(algorithm) => Ok(Plan { algorithm, ..plan }),
            Err(error) => {
                self.discard(&plan);
                Err(error)
            }
        }
    }

    /// # Safety
    /// The product is one.
    unsafe fn describe(&self, product: Handle, dense: &Dense, bias: Address) -> Result<()> {
        use sys::cublasLtEpilogue_t as Epilogue;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let set = |attribute: Attribute, value: c_int| {
            let value = from_ref(&value).cast();
            // SAFETY: the caller's promise; these attributes are numbers of four bytes.
            let status =
                unsafe { (self.functions.set_product)(product, attribute as c_int, value, 4) };
            check(status)
        };
        let epilogue = match (dense.has_bias, dense.activation) {
            (false, Activation::Relu) => Epilogue::CUBLASLT_EPILOGUE_RELU,
            (true, Activation::Relu) => Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
            (false, Activation::GeluTanh) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (true, Activation::GeluTanh) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
            (false, _) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (true, _) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
        };
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue as c_int)?;
        if dense.has_bias {
            // SAFETY: the caller's promise.
            unsafe { self.set_bias(product, bias) };
        }
        Ok(())
    }

    /// # Safety
    /// The product is one.
    unsafe fn set_bias(&self, product: Handle, bias: Address) {
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        let value = from_ref(&bias).cast();
        // SAFETY: the caller's promise. It only writes to the description, and cannot fail where the product
        // could be described.
        let status = unsafe {
            (self.functions.set_product)(product, attribute as c_int, value, size_of::<Address>())
        };
        debug_assert_eq!(status, 0);
    }

    /// What the library thinks is fastest.
    ///
    /// # Safety
    /// The plan's handles are what they are called.
    unsafe fn algorithm(&self, plan: &Plan) -> Result<Algorithm> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let f = &self.functions;
        let (mut preference, mut choice, mut n_choices) = (null_mut(), Choice::default(), 0);
        // SAFETY: the caller's promise; the preference is made first, and there is room for one choice.
        let status = unsafe {
            check((f.create_preference)(&raw mut preference))?;
            let most = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as c_int;
            let value = from_ref(&WORKSPACE_BYTES).cast();
            let set = (f.set_preference)(preference, most, value, size_of::<usize>());
            let status = match set {
                0 => (f.choose)(
                    self.handle,
                    plan.product,
                    plan.weight,
                    plan.x,
                    plan.out,
                    plan.out,
                    preference,
                    1,
                    &raw mut choice,
                    &raw mut n_choices,
                ),
                status => status,
            };
            (f.destroy_preference)(preference);
            status
        };
        check(status)?;
        check(choice.state)?;
        match n_choices {
            0 => Err(failed("it has no algorithm".to_owned())),
            _ => Ok(choice.algorithm),
        }
    }

    fn discard(&self, plan: &Plan) {
        let f = &self.functions;
        // SAFETY: handles were made by the library or are null, and are not used any more. Errors of what goes
        // away have no one to go to.
        unsafe {
            for matrix in [plan.weight, plan.x, plan.out] {
                if !matrix.is_null() {
                    (f.destroy_matrix)(matrix);
                }
            }
            if !plan.product.is_null() {
                (f.destroy_product)(plan.product);
            }
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        let plans = std::mem::take(self.plans.get_mut());
        plans.values().flatten().for_each(|plan| self.discard(plan));
        // SAFETY: the handle was made by the library and is not used any more.
        unsafe { (self.functions.destroy)(self.handle) };
    }
}

fn check(status: Status) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(failed(reason(status))),
    }
}

fn failed(reason: String) -> DeviceError {
    DeviceError::Failed { op: OP, reason }
}

/// `cublasStatus_t`, for people.
fn reason(status: Status) -> String {
    let name = match status {
        1 => "not initialized",
        3 => "allocation failed",
        7 => "invalid value",
        8 => "architecture mismatch",
        13 => "execution failed",
        14 => "internal error",
        15 => "not supported",
        _ => return format!("status {status}"),
    };
    format!("{name} (status {status})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_library_is_named() {
        let error = CublasLt::open(Path::new("/proc/version"), 0).err();
        let error = error.expect("no library").to_string();
        assert!(error.contains("cuBLASLt, /proc/version: "), "{error}");
        // One that has other functions.
        let error = CublasLt::open(Path::new("libc.so.6"), 0).err();
        let error = error.expect("another library").to_string();
        assert!(error.ends_with("it has no cublasLtCreate"), "{error}");
    }
}
