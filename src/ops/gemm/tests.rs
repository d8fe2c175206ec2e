use super::*;
use crate::ops::precision::Precision::{Bf16, F32};

fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as f32 / u32::MAX as f32 - 0.5
        })
        .collect()
}

/// The definition: per [`KC`] terms a chain of fused multiply-adds, and the sum of the chains.
fn defined(a: &Mat, b: &Mat, alpha: f32, old: &[f32], into: Into) -> Vec<f32> {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let mut c = old[i * n + j];
            for from in (0..k).step_by(KC) {
                let terms = from..k.min(from + KC);
                let chain = terms.fold(0f32, |sum, l| {
                    let (x, y) =
                        (a.data[i * a.row_stride + l * a.col_stride], b.data[l * b.row_stride + j * b.col_stride]);
                    x.mul_add(y, sum)
                });
                c = if from > 0 || into == Into::Accumulate { c + chain * alpha } else { chain * alpha };
            }
            out[i * n + j] = c;
        }
    }
    out
}

fn shapes() -> Vec<(usize, usize, usize)> {
    let mut shapes =
        vec![(1, 1, 1), (12, 32, 256), (13, 33, 257), (64, 100, 64), (100, 70, 600), (3, 5, 7), (47, 200, 19)];
    shapes.extend((1..=MR).map(|m| (m, 31 + m, 40)));
    shapes
}

fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn every_element_is_the_chain_that_the_definition_says() {
    if kernel_rounds_twice() {
        return;
    }
    for (m, n, k) in shapes() {
        let (a, b, old) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
        let lhs = [Mat::new(&a, m, k, k), Mat::new(&a, k, m, m).t()];
        let rhs = [Mat::new(&b, k, n, n), Mat::new(&b, n, k, k).t()];
        for (lhs, rhs) in lhs.iter().flat_map(|l| rhs.iter().map(move |r| (l, r))) {
            for (into, alpha) in [(Into::Overwrite, 1.0), (Into::Accumulate, 0.3)] {
                let want = defined(lhs, rhs, alpha, &old, into);
                for threads in [1, 3] {
                    let mut got = old.clone();
                    on_threads(threads, || matmul(&mut got, n, into, alpha, *lhs, *rhs, F32));
                    assert!(got == want, "{m} x {n} x {k}, {threads} threads");
                }
            }
        }
    }
}

fn kernel_rounds_twice() -> bool {
    #[cfg(target_arch = "x86_64")]
    return !is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Large enough for several stripes in both directions, for several blocks and for several panels of terms.
#[test]
fn large_products_are_the_same_on_any_number_of_threads() {
    for (m, n, k) in [(210, 1300, 1500), (70, 40, 30_000), (5, 40_000, 64)] {
        let (a, b) = (values(m * k, 4), values(k * n, 5));
        let (lhs, rhs) = (Mat::new(&a, m, k, k), Mat::new(&b, n, k, k).t());
        let run = |threads| {
            let mut c = vec![f32::NAN; m * n];
            on_threads(threads, || matmul(&mut c, n, Into::Overwrite, 1.0, lhs, rhs, F32));
            c
        };
        let one = run(1);
        let (i, j) = (m - 1, n - 1);
        let exact: f64 = (0..k).map(|l| a[i * k + l] as f64 * b[j * k + l] as f64).sum();
        assert!((one[i * n + j] as f64 - exact).abs() < 1e-3 * (k as f64).sqrt());
        for threads in [2, 4] {
            assert!(run(threads) == one, "{m} x {n} x {k}: {threads} threads gave other bits than one");
        }
    }
}

#[test]
fn parts_of_packed_operands_are_products_of_the_parts() {
    let (m, n, k) = (20, 96, 70);
    let (a, b) = (values(m * k, 6), values(k * n, 7));
    let mut packed = Packed::default();
    packed.pack(Mat::new(&values(200 * 200, 8), 200, 200, 200), F32);
    packed.pack(Mat::new(&b, k, n, n), F32);
    let (terms, columns) = (10..59, 32..90);
    let lhs = Mat::new(&a[terms.start..], m, terms.len(), k);
    let rhs = Mat::new(&b[terms.start * n + columns.start..], terms.len(), columns.len(), n);
    let mut got = vec![0.0; m * columns.len()];
    let part = packed.panels().terms(terms).columns(columns.clone());
    // SAFETY: `got` is ours and has the product's size.
    unsafe { matmul_packed(got.as_mut_ptr(), columns.len(), Into::Overwrite, 1.0, lhs, part) };
    let mut want = vec![0.0; got.len()];
    matmul(&mut want, columns.len(), Into::Overwrite, 1.0, lhs, rhs, F32);
    assert_eq!(got, want);
}

/// The kernels that this processor would not choose by itself give the same bits.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_width_of_the_registers_does_not_change_a_bit() {
    let Some(narrow) = kernel::Kernels::narrower() else { return };
    let (a, b) = (values(MR * KC, 9), values(KC * NR, 10));
    for rows in 1..=MR {
        for (order, cols) in [(kernel::Order::Rows, NR), (kernel::Order::Columns, 21)] {
            let run = |kernels: &Kernels| {
                let mut c = vec![0.25; MR * NR];
                let tile = Tile {
                    words: 201,
                    a: a.as_ptr(),
                    a_stride: if order == kernel::Order::Rows { KC } else { MR },
                    b: b.as_ptr(),
                    c: c.as_mut_ptr(),
                    c_stride: NR,
                    cols,
                    alpha: 0.7,
                    accumulate: true,
                };
                // SAFETY: panels and destination have a whole tile's size; both kinds of kernels are of this processor's.
                unsafe { kernels.get(rows, order, F32)(&tile) };
                c
            };
            assert!(run(kernels()) == run(&narrow), "{rows} rows, {order:?}");
        }
    }
}

/// bf16 products are f32 products of rounded operands, up to the order of additions, on any number of threads.
#[test]
fn bf16_products_are_products_of_rounded_operands() {
    if !Bf16.supported() {
        return;
    }
    let round = |x: &f32| {
        let bits = x.to_bits();
        f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
    };
    for (m, n, k) in shapes() {
        let (a, b) = (values(m * k, 11), values(k * n, 12));
        let (ra, rb): (Vec<f32>, Vec<f32>) = (a.iter().map(round).collect(), b.iter().map(round).collect());
        let views = |a: &[f32], b: &[f32], view: usize, f: &mut dyn FnMut(Mat, Mat)| {
            let lhs = if view & 1 == 0 { Mat::new(a, m, k, k) } else { Mat::new(a, k, m, m).t() };
            let rhs = if view & 2 == 0 { Mat::new(b, k, n, n) } else { Mat::new(b, n, k, k).t() };
            f(lhs, rhs);
        };
        for view in 0..4 {
            let product = |a: &[f32], b: &[f32], precision, threads| {
                let mut c = vec![0.5; m * n];
                views(a, b, view, &mut |lhs, rhs| {
                    on_threads(threads, || matmul(&mut c, n, Into::Accumulate, 1.0, lhs, rhs, precision))
                });
                c
            };
            let (got, want) = (product(&a, &b, Bf16, 1), product(&ra, &rb, F32, 1));
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w).abs() < 1e-6 * (k as f32).sqrt(), "{m} x {n} x {k}, view {view}: {g}, not {w}");
            }
            assert!(got == product(&a, &b, Bf16, 3));
        }
    }
}
