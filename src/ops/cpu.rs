//! What every CPU implementation shares: f32 views of candle tensors, fixed work splitting, SIMD dispatch, small vector math.
//!
//! Work is split into pieces whose size depends on the shape only, and partial results are combined in the order of the pieces;
//! rayon may run the pieces anywhere. Reductions inside a piece use [`LANES`] explicit accumulators, so that SSE, AVX2, AVX-512 and
//! NEON builds of the same loop add the same numbers in the same order.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, WithDType, bail};

/// Independent accumulators of a reduction: one AVX-512 register of f32.
pub(crate) const LANES: usize = 16;

/// Elements of one piece of an elementwise job: a few L1 caches' worth, small enough to balance, large enough to hide the cost of handing it to a thread.
pub(crate) const PIECE: usize = 32 * 1024;

/// Rows per piece for row-wise jobs of `columns` elements each; at least one.
pub(crate) fn rows_per_piece(columns: usize) -> usize {
    (PIECE / columns.max(1)).max(1)
}

/// Runs `work` on one of the threads that compute. Each op that is called from elsewhere wakes one of them and waits for it, and products of one
/// thread alone run where they are called: work would go to and fro between cores.
pub(crate) fn on_pool_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// [`on_pool_thread`] for work that allocates much: always on the same thread, because each one's allocator keeps what was freed there for the next
/// time. All threads wake up for it, which they will have to anyway.
pub(crate) fn on_first_pool_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let work = Mutex::new(Some(work));
    let results = rayon::broadcast(|thread| {
        let work = if thread.index() == 0 { work.lock().unwrap_or_else(PoisonError::into_inner).take() } else { None };
        work.map(|work| work())
    });
    results.into_iter().flatten().next().expect("a pool has a first thread")
}

/// Evaluates an expression compiled for the widest instruction set this processor has (AVX-512, AVX2 + FMA, NEON or the baseline).
///
/// A macro, because only code that is INLINED into the dispatch is compiled this way, and the compiler does not inline large closures by
/// itself.
macro_rules! simd {
    ($body:expr) => {
        $crate::ops::simd::arch().dispatch($crate::ops::cpu::Inlined(
            #[inline(always)]
            || $body,
        ))
    };
}
pub(crate) use simd;

/// What [`simd!`] dispatches. `FnMut` and not `FnOnce`: calling a closure once goes through a function that is not inlined.
pub(crate) struct Inlined<F>(pub(crate) F);

impl<R, F: FnMut() -> R> pulp::WithSimd for Inlined<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

pub(crate) fn zeros(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

/// A buffer for an op's output. The op must write every element before one is read. Zeroing them all first was 3 % of a
/// training step on one thread, and more on several. Tests get NaN, so that a forgotten element is noticed.
pub(crate) fn output<T: WithDType>(len: usize) -> Vec<T> {
    if cfg!(any(test, debug_assertions)) {
        return vec![T::from_f64(f64::NAN); len];
    }
    let mut buffer = Vec::with_capacity(len);
    // SAFETY: the capacity is there; every bit pattern is an element, and none is read before it is written (the callers' part, above).
    #[allow(clippy::uninit_vec)]
    unsafe {
        buffer.set_len(len);
    }
    buffer
}

/// A CPU tensor that owns `data`.
pub(crate) fn tensor<T: WithDType>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// Refuses tensors that `op` cannot compute with on the CPU: all but f32 on the CPU.
pub(crate) fn expect_f32(op: &str, t: &Tensor) -> Result<()> {
    if !t.device().is_cpu() || t.dtype() != DType::F32 {
        bail!("{op}: expected f32 on the CPU, got {:?} on {:?}", t.dtype(), t.device().location());
    }
    Ok(())
}

fn f32_slice<'a>(op: &str, storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    let Storage::Cpu(CpuStorage::F32(data)) = storage else { bail!("{op}: expected f32 on the CPU") };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("{op}: expected a contiguous tensor") };
    Ok(&data[start..end])
}

/// Gives `f` the elements of `tensors` in row-major order; a strided tensor is copied once, a contiguous one is borrowed.
pub(crate) fn read<const N: usize, R>(
    op: &str,
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    read_all(op, &tensors, |slices| f(std::array::from_fn(|i| slices[i])))
}

/// [`read`] of any number of tensors.
pub(crate) fn read_all<R>(op: &str, tensors: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> Result<R>) -> Result<R> {
    let mut owned = Vec::with_capacity(tensors.len());
    for t in tensors {
        expect_f32(op, t)?;
        owned.push(t.contiguous()?);
    }
    // The guards hold candle's read locks: the slices below borrow from them.
    let guards: Vec<_> = owned.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        slices.push(f32_slice(op, storage, layout)?);
    }
    f(&slices)
}

/// The elements of a u32 tensor (token ids), copied: they are few.
pub(crate) fn ids(op: &str, t: &Tensor) -> Result<Vec<u32>> {
    if t.dtype() != DType::U32 {
        bail!("{op}: token ids must be u32, got {:?}", t.dtype());
    }
    t.flatten_all()?.to_vec1::<u32>()
}

struct Update<F> {
    op: &'static str,
    // candle hands the storage to `&self`; the cell lets the closure change what it captured.
    f: RefCell<F>,
}

impl<F: FnMut(&mut [f32]) -> Result<()>> InplaceOp1 for Update<F> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(data) = storage else { bail!("{}: expected f32", self.op) };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("{}: the tensor updated in place must be contiguous", self.op)
        };
        (self.f.borrow_mut())(&mut data[start..end])
    }
}

/// Gives `f` the elements of the contiguous tensor `t` to change in place; other views of its storage see the change.
pub(crate) fn update(op: &'static str, t: &Tensor, f: impl FnMut(&mut [f32]) -> Result<()>) -> Result<()> {
    expect_f32(op, t)?;
    t.inplace_op1(&Update { op, f: RefCell::new(f) })
}

/// A pointer through which several tasks write, each to elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32, usize);

// SAFETY: it is only a place to write; `range` demands of its callers that no two live ranges overlap.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr(), data.len())
    }

    /// The `len` elements at address `data`.
    ///
    /// # Safety
    /// They are valid for writing as long as this value is used.
    pub(crate) unsafe fn from_raw(data: *mut f32, len: usize) -> Self {
        Self(data, len)
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// The buffer is alive, and no other reference to these elements exists while the result is used.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.1);
        // SAFETY: in bounds by the assertion, alive and unshared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// The address of element `start`, for strided writes whose last element is `start + span - 1`.
    pub(crate) fn address(&self, start: usize, span: usize) -> *mut f32 {
        assert!(start + span <= self.1);
        // SAFETY: in bounds by the assertion.
        unsafe { self.0.add(start) }
    }
}

/// Adds up lanes in one fixed tree.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ f(aᵢ, bᵢ)` with lane accumulators; call inside [`simd!`].
#[inline(always)]
pub(crate) fn sum2<B: Copy>(a: &[f32], b: &[B], f: impl Fn(f32, B) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let a_chunks = a.chunks_exact(LANES);
    let b_chunks = b.chunks_exact(LANES);
    let a_rest = a_chunks.remainder();
    let b_rest = b_chunks.remainder();
    for (x, y) in a_chunks.zip(b_chunks) {
        for l in 0..LANES {
            lanes[l] += f(x[l], y[l]);
        }
    }
    add_rest(lanes, a_rest, b_rest, f)
}

/// `Σ aᵢ bᵢ`; call inside [`simd!`].
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum2(a, b, |x, y| x * y)
}

/// The end of a [`sum2`] whose whole chunks of [`LANES`] elements are summed up in `lanes`.
#[inline(always)]
pub(crate) fn add_rest<B: Copy>(mut lanes: [f32; LANES], a: &[f32], b: &[B], f: impl Fn(f32, B) -> f32) -> f32 {
    for (l, (x, y)) in a.iter().zip(b).enumerate() {
        lanes[l] += f(*x, *y);
    }
    fold(lanes)
}

/// The largest element, -inf for none; NaN loses. Call inside [`simd!`].
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for l in 0..LANES {
            lanes[l] = if x[l] > lanes[l] { x[l] } else { lanes[l] };
        }
    }
    let mut m = f32::NEG_INFINITY;
    for &x in lanes.iter().chain(rest) {
        m = if x > m { x } else { m };
    }
    m
}

/// Replaces each `aᵢ` by `exp(aᵢ - shift)` and returns the sum. Call inside [`simd!`].
#[inline(always)]
pub(crate) fn exp_and_sum(a: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = a.chunks_exact_mut(LANES);
    for x in &mut chunks {
        for l in 0..LANES {
            x[l] = exp(x[l] - shift);
            lanes[l] += x[l];
        }
    }
    for (l, x) in chunks.into_remainder().iter_mut().enumerate() {
        *x = exp(*x - shift);
        lanes[l] += *x;
    }
    fold(lanes)
}

/// `eˣ` to about 2 ulp without a branch or a call, so that loops over it vectorise: `x = n ln 2 + r`, a degree-6 polynomial in
/// `r ∈ [-ln 2 / 2, ln 2 / 2]`, and `2ⁿ` built from bits (Cephes' coefficients). Below -87.3 it is 0; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons and not min and max, which would lose a NaN.
    let clamped = if x < -87.3 { -87.3 } else { x };
    let clamped = if clamped > 88.3 { 88.3 } else { clamped };
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer in the default rounding mode.
    const ROUND: f32 = 12_582_912.0;
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    // ln 2 in two parts, the first of few bits: its product with n is exact, and r keeps its low bits (Cody & Waite).
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // y is NaN already; n only has to be safe to convert.
    let n = if n.is_nan() { 0.0 } else { n };
    // SAFETY: n is an integer within [-126, 128]. (`as` would also be right, but saturates, at a compare per element.)
    let n = unsafe { n.to_int_unchecked::<i32>() };
    let exp = y * f32::from_bits(((n + 127) << 23) as u32);
    // Not the smallest normal number: its next product would be subnormal, and many processors compute with subnormal numbers a
    // hundred times as slowly.
    if x < -87.3 { 0.0 } else { exp }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_matches_the_library_within_a_few_ulp() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let (got, want) = (simd!(exp(x)), (x as f64).exp());
            assert!(((got as f64 - want) / want).abs() < 4e-7, "exp({x}) = {got}, not {want}");
            x += 0.0137;
        }
        assert!(exp(f32::NAN).is_nan());
        for x in [-87.31, -100.0, -1e30, f32::NEG_INFINITY] {
            assert_eq!(simd!(exp(x)), 0.0, "exp({x}) times a small number would be subnormal");
        }
        assert!(exp(-87.3) >= f32::MIN_POSITIVE);
    }

    #[test]
    fn reductions_agree_with_plain_sums_at_every_length() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.71).cos()).collect();
            let want: f64 = a.iter().zip(&b).map(|(x, y)| (*x as f64) * (*y as f64)).sum();
            assert!((simd!(dot(&a, &b)) as f64 - want).abs() < 1e-5);
            assert_eq!(simd!(max(&a)), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[test]
    fn simd_width_does_not_change_the_bits() {
        let a: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.1).sin()).collect();
        assert_eq!(dot(&a, &a).to_bits(), simd!(dot(&a, &a)).to_bits());
        let (mut e1, mut e2) = (a.clone(), a.clone());
        assert_eq!(exp_and_sum(&mut e1, 0.5).to_bits(), simd!(exp_and_sum(&mut e2, 0.5)).to_bits());
        assert_eq!(e1, e2);
    }

    #[test]
    fn an_update_through_a_view_is_seen_by_the_whole() {
        let flat = tensor(vec![0f32; 6], 6).unwrap();
        let view = flat.narrow(0, 2, 3).unwrap();
        update("test", &view, |x| {
            x[0] = 7.0;
            Ok(())
        })
        .unwrap();
        assert_eq!(flat.to_vec1::<f32>().unwrap(), [0.0, 0.0, 7.0, 0.0, 0.0, 0.0]);
    }
}
