//! cuBLASLt: matrix products by an algorithm of the caller's choice.

use super::{Matrix, Product};
use crate::ops::product_algorithms::{ElementType, OperandLayout, ProductAlgorithm, ProductKey};
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda_backend::cudarc::cublaslt::{result as lt, result::CublasError, sys};
use candle_core::{DType, Result as CandleResult, bail};
use std::ffi::{c_int, c_void};
use std::ptr::{from_mut, from_ref, null_mut};
use std::sync::OnceLock;
use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;

/// The largest workspace that an algorithm may ask for, in bytes: what NVIDIA advises for Hopper.
pub(super) const MOST_WORKSPACE: usize = 32 << 20;

/// Algorithms that cuBLASLt is asked for.
const MOST_CANDIDATES: usize = 8;

/// Addresses are multiples of this at most, as far as algorithms care.
const MOST_ALIGNMENT: u64 = 256;

const SUMS: sys::cublasComputeType_t = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
const FACTORS: sys::cudaDataType = sys::cudaDataType::CUDA_R_32F;

pub(super) fn version() -> String {
    // SAFETY: it has no conditions.
    let version = unsafe { sys::cublasLtGetVersion() };
    format!("cuBLASLt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// The library's handle for the device whose context was current when it was first asked for: a process has one device.
fn handle() -> Result<sys::cublasLtHandle_t, CublasError> {
    // An address, because a pointer cannot be shared between threads; the library allows any thread to use it.
    static HANDLE: OnceLock<Result<usize, CublasError>> = OnceLock::new();
    HANDLE
        .get_or_init(|| lt::create_handle().map(|handle| handle as usize))
        .map(|handle| handle as sys::cublasLtHandle_t)
}

/// What an algorithm for `product` is chosen by.
pub(super) fn key(product: &Product) -> CandleResult<ProductKey> {
    let Product { out, accumulate, a, b, .. } = product;
    let (rows, inner) = a.size();
    let (_, columns) = b.size();
    // Of an address that is a multiple of more, the lowest bit that is set is that of the bound.
    let alignment = 1 << (out.at | a.at | b.at | MOST_ALIGNMENT).trailing_zeros();
    Ok(ProductKey {
        rows: rows as u64,
        inner: inner as u64,
        columns: columns as u64,
        a: operand(a),
        b: operand(b),
        elements: element_type(a.dtype)?,
        out_elements: element_type(out.dtype)?,
        out_stride: out.stride as u64,
        accumulate: *accumulate,
        alignment,
    })
}

fn operand(m: &Matrix) -> OperandLayout {
    OperandLayout { stride: m.stride as u64, transposed: m.transposed }
}

fn element_type(dtype: DType) -> CandleResult<ElementType> {
    match dtype {
        DType::F32 => Ok(ElementType::F32),
        DType::BF16 => Ok(ElementType::Bf16),
        other => bail!("no product takes elements of {other:?}"),
    }
}

fn kind(elements: ElementType) -> sys::cudaDataType {
    match elements {
        ElementType::F32 => sys::cudaDataType::CUDA_R_32F,
        ElementType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

/// The library's description of products of one key. It stores matrices by columns: the transposed product of the transposed matrices lies row by
/// row in `out`, so that its first operand is `b`.
pub(super) struct Problem {
    key: ProductKey,
    operation: sys::cublasLtMatmulDesc_t,
    first: sys::cublasLtMatrixLayout_t,
    second: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
}

// SAFETY: descriptors are plain memory, which has one owner.
unsafe impl Send for Problem {}

/// An algorithm that the library has accepted for a [`Problem`] on this device.
#[derive(Clone, Copy)]
pub(super) struct Accepted {
    pub(super) attributes: ProductAlgorithm,
    algorithm: sys::cublasLtMatmulAlgo_t,
    pub(super) workspace: usize,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Workspace {
    pub(super) at: u64,
    pub(super) bytes: usize,
}

impl Problem {
    pub(super) fn new(key: &ProductKey) -> Result<Self, CublasError> {
        let ProductKey { rows, inner, columns, a, b, elements, out_elements, out_stride, .. } = *key;
        // Made one by one, so that those that exist are destroyed if one cannot be made.
        let mut problem =
            Self { key: *key, operation: null_mut(), first: null_mut(), second: null_mut(), out: null_mut() };
        problem.operation = lt::create_matmul_desc(SUMS, FACTORS)?;
        problem.set_operation(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, b)?;
        problem.set_operation(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, a)?;
        problem.first = layout(elements, b, inner, columns)?;
        problem.second = layout(elements, a, rows, inner)?;
        problem.out = layout(out_elements, OperandLayout { stride: out_stride, transposed: false }, rows, columns)?;
        Ok(problem)
    }

    fn set_operation(
        &self,
        which: sys::cublasLtMatmulDescAttributes_t,
        operand: OperandLayout,
    ) -> Result<(), CublasError> {
        let operation =
            if operand.transposed { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N };
        // SAFETY: the descriptor exists; the value has the attribute's type.
        unsafe {
            lt::set_matmul_desc_attribute(self.operation, which, from_ref(&operation).cast(), size_of_val(&operation))
        }
    }

    /// Algorithms that the library proposes, best first as it expects, of those that add in a fixed order.
    pub(super) fn candidates(&self) -> Result<Vec<Accepted>, CublasError> {
        let preference = Preference(lt::create_matmul_pref()?);
        preference.restrict(self.key.alignment)?;
        // SAFETY: a zero is a value of every field.
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; MOST_CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: handle and descriptors exist; the list has room for as many results as are asked for.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle()?,
                self.operation,
                self.first,
                self.second,
                self.out,
                self.out,
                preference.0,
                MOST_CANDIDATES as c_int,
                found.as_mut_ptr(),
                &mut count,
            )
        }
        .result()?;
        let proposed = &found[..usize::try_from(count).unwrap_or(0).min(MOST_CANDIDATES)];
        let proposed = proposed.iter().filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        // Made again from what a run keeps of them: what is measured is what a resume computes by.
        let accepted = proposed.filter_map(|result| self.accept(&attributes(&result.algo).ok()?).ok());
        Ok(accepted.collect())
    }

    /// The algorithm with these attributes.
    ///
    /// # Errors
    /// The library's, if there is none or if it cannot compute this product on this device; those of what it may not do here.
    pub(super) fn accept(&self, wanted: &ProductAlgorithm) -> Result<Accepted, CublasError> {
        let refused = Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        if !wanted.adds_in_fixed_order() {
            return refused;
        }
        let operands = kind(self.key.elements);
        let out = kind(self.key.out_elements);
        let mut algorithm = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
        // SAFETY: the handle exists; it writes the algorithm.
        unsafe {
            sys::cublasLtMatmulAlgoInit(
                handle()?,
                SUMS,
                FACTORS,
                operands,
                operands,
                out,
                out,
                wanted.id,
                &mut algorithm,
            )
        }
        .result()?;
        set_attributes(&mut algorithm, wanted)?;
        // SAFETY: a zero is a value of every field.
        let mut checked: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        // SAFETY: handle and descriptors exist; it writes the result.
        unsafe {
            sys::cublasLtMatmulAlgoCheck(
                handle()?,
                self.operation,
                self.first,
                self.second,
                self.out,
                self.out,
                &algorithm,
                &mut checked,
            )
        }
        .result()?;
        if checked.workspaceSize > MOST_WORKSPACE {
            return refused;
        }
        Ok(Accepted { attributes: *wanted, algorithm, workspace: checked.workspaceSize })
    }

    /// Queues `product`, which has the key of this problem, on `stream`.
    ///
    /// # Safety
    /// Its matrices lie within memory that lives until the stream has passed this call, as does the workspace, which no other stream uses.
    pub(super) unsafe fn queue(
        &self,
        accepted: &Accepted,
        product: &Product,
        workspace: Workspace,
        stream: *mut c_void,
    ) -> Result<(), CublasError> {
        let beta = product.beta();
        // SAFETY: the caller's part.
        unsafe {
            lt::matmul(
                handle()?,
                self.operation,
                from_ref(&product.factor).cast(),
                from_ref(&beta).cast(),
                product.b.at as *const c_void,
                self.first,
                product.a.at as *const c_void,
                self.second,
                product.out.at as *const c_void,
                self.out,
                product.out.at as *mut c_void,
                self.out,
                &accepted.algorithm,
                workspace.at as *mut c_void,
                workspace.bytes,
                stream.cast(),
            )
        }
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        // SAFETY: each was made by the library, and is destroyed once. That one cannot be destroyed harms nobody.
        unsafe {
            for layout in [self.first, self.second, self.out] {
                if !layout.is_null() {
                    let _ = lt::destroy_matrix_layout(layout);
                }
            }
            if !self.operation.is_null() {
                let _ = lt::destroy_matmul_desc(self.operation);
            }
        }
    }
}

/// The layout of an operand of `rows` x `columns` after its transposition.
fn layout(
    elements: ElementType,
    operand: OperandLayout,
    rows: u64,
    columns: u64,
) -> Result<sys::cublasLtMatrixLayout_t, CublasError> {
    let (stored_rows, stored_columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
    // By columns, a row of ours is a column.
    lt::create_matrix_layout(kind(elements), stored_columns, stored_rows, operand.stride as i64)
}

/// What is asked of algorithms.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// For addresses that are multiples of `alignment`.
    fn restrict(&self, alignment: u32) -> Result<(), CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preferred;
        self.set(Preferred::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(MOST_WORKSPACE as u64))?;
        let none = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        self.set(Preferred::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none)?;
        for which in [
            Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            self.set(which, &alignment)?;
        }
        Ok(())
    }

    fn set<T>(&self, which: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: the preference exists; the value has the attribute's type (the callers' part).
        unsafe { lt::set_matmul_pref_attribute(self.0, which, from_ref(value).cast(), size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made by the library, and is destroyed once.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

fn attributes(algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<ProductAlgorithm, CublasError> {
    Ok(ProductAlgorithm {
        id: attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_ID)?,
        tile: attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID)?,
        stages: attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID)?,
        split_k: attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM)?,
        reduction: attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)?,
        swizzle: attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING)?,
        custom: attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION)?,
        inner_shape: attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID)?,
        cluster_shape: attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID)?,
    })
}

/// `T` must be the attribute's type.
fn attribute<T: Default>(algorithm: &sys::cublasLtMatmulAlgo_t, which: Attribute) -> Result<T, CublasError> {
    let mut value = T::default();
    let mut written = 0;
    let at = from_mut(&mut value).cast();
    // SAFETY: it writes as many bytes as the value has, at most.
    unsafe { sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, which, at, size_of::<T>(), &mut written) }
        .result()?;
    Ok(value)
}

fn set_attributes(algorithm: &mut sys::cublasLtMatmulAlgo_t, wanted: &ProductAlgorithm) -> Result<(), CublasError> {
    set_attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID, &wanted.tile)?;
    set_attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID, &wanted.stages)?;
    set_attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &wanted.split_k)?;
    set_attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &wanted.reduction)?;
    set_attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, &wanted.swizzle)?;
    set_attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, &wanted.custom)?;
    set_attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, &wanted.inner_shape)?;
    set_attribute(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &wanted.cluster_shape)
}

fn set_attribute<T>(algorithm: &mut sys::cublasLtMatmulAlgo_t, which: Attribute, value: &T) -> Result<(), CublasError> {
    // SAFETY: it reads as many bytes as the value has.
    unsafe { sys::cublasLtMatmulAlgoConfigSetAttribute(algorithm, which, from_ref(value).cast(), size_of::<T>()) }
        .result()
}
