//! One safe door to the `gemm` crate: strided f32 matrices, `dst = [dst +] alpha · lhs · rhs`.
//!
//! Each element of the product is accumulated over the inner dimension in an order that `gemm` derives from the shapes (and the
//! processor's cache sizes), never from the number of threads: results are the same bits for 1, 2 or 4 threads.

use ::gemm::Parallelism;

/// A matrix inside a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Index one past the last element of a strided matrix; 0 if it is empty.
fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

impl<'a> Mat<'a> {
    /// Row-major `rows x cols` whose rows are `row_stride` apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(span(rows, cols, row_stride, 1) <= data.len(), "matrix {rows}x{cols} does not fit its buffer");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed view.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// Whether the product replaces or joins what the destination holds.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Into {
    Overwrite,
    Accumulate,
}

/// Below this many multiply-adds a product runs on the calling thread.
const PARALLEL_FROM: usize = 1 << 18;

fn parallelism(m: usize, n: usize, k: usize) -> Parallelism {
    let threads = rayon::current_num_threads();
    if threads > 1 && m * n * k >= PARALLEL_FROM { Parallelism::Rayon(threads) } else { Parallelism::None }
}

/// `dst (rows of dst_stride) = [dst +] alpha · lhs · rhs`, spread over the threads when it pays.
pub(crate) fn matmul(dst: &mut [f32], dst_stride: usize, into: Into, alpha: f32, lhs: Mat, rhs: Mat) {
    assert!(span(lhs.rows, rhs.cols, dst_stride, 1) <= dst.len(), "product does not fit its buffer");
    let parallelism = parallelism(lhs.rows, rhs.cols, lhs.cols);
    // SAFETY: `dst` is exclusively borrowed and large enough.
    unsafe { raw(dst.as_mut_ptr(), dst_stride, into, alpha, lhs, rhs, parallelism) }
}

/// As [`matmul`] on the calling thread, into a place given by address.
///
/// # Safety
/// `dst` points to `lhs.rows` rows of `rhs.cols` elements, `dst_stride` apart, which nothing else reads or writes meanwhile.
pub(crate) unsafe fn matmul_at(dst: *mut f32, dst_stride: usize, into: Into, alpha: f32, lhs: Mat, rhs: Mat) {
    // SAFETY: the caller's promise is `raw`'s.
    unsafe { raw(dst, dst_stride, into, alpha, lhs, rhs, Parallelism::None) }
}

unsafe fn raw(dst: *mut f32, dst_stride: usize, into: Into, alpha: f32, lhs: Mat, rhs: Mat, parallelism: Parallelism) {
    assert_eq!(lhs.cols, rhs.rows, "inner dimensions differ");
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    // SAFETY: both operands lie inside their slices (checked by `Mat::new`), `dst` by the caller's promise. In `gemm`'s formula
    // `dst = alpha · dst + beta · lhs · rhs`.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            dst_stride as isize,
            into == Into::Accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        )
    }
}
