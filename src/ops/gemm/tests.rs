use super::*;
use crate::ops::precision::Precision::F32;
use crate::ops::simd::SimdLevel;
use arithmetic::{TILE_CHAIN, TILE_TERMS};
use half::bf16;

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
    cfg!(target_arch = "x86_64") && SimdLevel::in_use() == SimdLevel::Baseline
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
                unsafe { kernels.get(rows, order, false)(&tile) };
                c
            };
            assert!(run(kernels()) == run(&narrow), "{rows} rows, {order:?}");
        }
    }
}

/// The ways to multiply bf16 that can be tried on this processor; AMX is emulated where there is none.
fn bf16_arithmetics() -> Vec<Arithmetic> {
    let mut all = vec![Arithmetic::Rounded];
    if SimdLevel::in_use().multiplies_bf16() {
        all.push(Arithmetic::Pairs);
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if SimdLevel::in_use() == SimdLevel::Amx || crate::ops::simd::emulated_amx::install() {
            all.push(Arithmetic::Tiles);
        }
    }
    all
}

/// Calls `f` with both ways in which each operand can lie in memory.
fn for_each_view<T: Pack>(a: &[T], b: &[T], (m, n, k): (usize, usize, usize), mut f: impl FnMut(Mat<T>, Mat<T>)) {
    for lhs in [Mat::new(a, m, k, k), Mat::new(a, k, m, m).t()] {
        for rhs in [Mat::new(b, k, n, n), Mat::new(b, n, k, k).t()] {
            f(lhs, rhs);
        }
    }
}

fn rounded(values: &[f32]) -> Vec<f32> {
    let mut rounded = values.to_vec();
    round_to_bf16(&mut rounded);
    rounded
}

#[test]
fn rounding_is_to_the_nearest_bf16() {
    let near: Vec<f32> = (0..4096).map(|i| f32::from_bits(0x3f80_0000 + i * 0x1ff1)).collect();
    let special = [
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        -1.5e-30,
    ];
    for (x, got) in near.iter().chain(&special).zip(rounded(&[&near[..], &special].concat())) {
        assert_eq!(got.to_bits(), bf16::from_f32(*x).to_f32().to_bits(), "{x}");
    }
    assert!(rounded(&[f32::NAN])[0].is_nan());
    for (subnormal, zero) in [(1e-40, 0.0f32), (-1e-40, -0.0)] {
        assert_eq!(rounded(&[subnormal])[0].to_bits(), zero.to_bits());
    }
}

/// bf16 products are f32 products of rounded operands, up to the order of additions, on any number of threads; operands that are bf16 in
/// memory give the bits of the same values in f32.
#[test]
fn bf16_products_are_products_of_rounded_operands() {
    for arithmetic in bf16_arithmetics() {
        for (m, n, k) in shapes() {
            let (a, b) = (rounded(&values(m * k, 11)), rounded(&values(k * n, 12)));
            let (a16, b16) = ([&a, &b]).map(|x| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>()).into();
            let product = |product: &(dyn Fn(&mut [f32]) + Sync), threads| {
                let mut c = vec![0.5; m * n];
                on_threads(threads, || product(&mut c));
                c
            };
            let mut all = Vec::new();
            for_each_view(&a, &b, (m, n, k), |lhs, rhs| {
                for alpha in [1.0, 0.3] {
                    for into in [Into::Accumulate, Into::Overwrite] {
                        let run = |c: &mut [f32], arithmetic| matmul_as(c, n, into, alpha, lhs, rhs, arithmetic);
                        let want = product(&|c| run(c, Arithmetic::F32), 1);
                        let got = product(&|c| run(c, arithmetic), 1);
                        for (g, w) in got.iter().zip(&want) {
                            let near = (g - w).abs() < 1e-6 * (k as f32).sqrt();
                            assert!(near, "{arithmetic:?}, {m} x {n} x {k}: {g}, not {w}");
                        }
                        assert!(got == product(&|c| run(c, arithmetic), 3), "{arithmetic:?} on three threads");
                        all.push(got);
                    }
                }
            });
            // The direction in which an operand is contiguous changes no bit.
            let mut from_bf16 = Vec::new();
            for_each_view(&a16, &b16, (m, n, k), |lhs, rhs| {
                for alpha in [1.0, 0.3] {
                    for into in [Into::Accumulate, Into::Overwrite] {
                        from_bf16.push(product(&|c| matmul_as(c, n, into, alpha, lhs, rhs, arithmetic), 1));
                    }
                }
            });
            assert!(all == from_bf16, "{arithmetic:?}, {m} x {n} x {k}: bf16 in memory");
        }
    }
}

/// The definition of a product by tiles: chains of steps; in a step the first and the second terms of the pairs apart.
fn defined_by_tiles(a: &Mat, b: &Mat) -> Vec<f32> {
    let term = |i: usize, j: usize, l: usize, sum: f32| {
        let inside = l < a.cols;
        let x = if inside { a.data[i * a.row_stride + l * a.col_stride] } else { 0.0 };
        let y = if inside { b.data[l * b.row_stride + j * b.col_stride] } else { 0.0 };
        x.mul_add(y, sum)
    };
    let step = |i, j, from: usize| {
        let chains = [0, 1].map(|half| (0..TILE_TERMS / 2).fold(0f32, |sum, p| term(i, j, from + 2 * p + half, sum)));
        chains[0] + chains[1]
    };
    let chain = |i, j, from: usize| {
        let terms = from..a.cols.min(from + TILE_CHAIN);
        terms.step_by(TILE_TERMS).fold(0f32, |sum, from| sum + step(i, j, from))
    };
    let element = |i, j| (0..a.cols).step_by(TILE_CHAIN).map(|from| chain(i, j, from)).reduce(|sum, c| sum + c);
    (0..a.rows * b.cols).map(|at| element(at / b.cols, at % b.cols).unwrap_or(0.0)).collect()
}

/// On the emulation, whose arithmetic is that of the manual, to the bit; a processor may differ in how it adds within a step.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn a_product_by_tiles_is_the_chain_that_the_definition_says() {
    if !bf16_arithmetics().contains(&Arithmetic::Tiles) {
        return;
    }
    let emulated = SimdLevel::in_use() != SimdLevel::Amx || cfg!(feature = "emulated-amx");
    for (m, n, k) in shapes().into_iter().chain([(40, 70, 1100)]) {
        let (a, b) = (rounded(&values(m * k, 13)), rounded(&values(k * n, 14)));
        let (lhs, rhs) = (Mat::new(&a, m, k, k), Mat::new(&b, n, k, k).t());
        let mut got = vec![f32::NAN; m * n];
        matmul_as(&mut got, n, Into::Overwrite, 1.0, lhs, rhs, Arithmetic::Tiles);
        for (got, want) in got.iter().zip(defined_by_tiles(&lhs, &rhs)) {
            let agrees = if emulated { *got == want } else { (got - want).abs() < 1e-6 * (k as f32).sqrt() };
            assert!(agrees, "{m} x {n} x {k}: {got}, not {want}");
        }
    }
}

#[test]
fn large_bf16_products_are_the_same_on_any_number_of_threads() {
    for arithmetic in bf16_arithmetics() {
        let (m, n, k) = (210, 600, 700);
        let (a, b) = (values(m * k, 15), values(k * n, 16));
        let run = |threads| {
            let mut c = vec![f32::NAN; m * n];
            let (lhs, rhs) = (Mat::new(&a, k, m, m).t(), Mat::new(&b, k, n, n));
            on_threads(threads, || matmul_as(&mut c, n, Into::Overwrite, 1.0, lhs, rhs, arithmetic));
            c
        };
        let one = run(1);
        assert!(one.iter().all(|x| x.is_finite()));
        for threads in [2, 4] {
            assert!(run(threads) == one, "{arithmetic:?}: {threads} threads gave other bits than one");
        }
    }
}

/// Parts of a packed operand that begin at a panel's multiple, as attention takes them.
#[test]
fn parts_of_packed_bf16_operands_are_products_of_the_parts() {
    for arithmetic in bf16_arithmetics() {
        let (m, n, k) = (20, 96, 170);
        let (a, b) = (values(m * k, 17), values(k * n, 18));
        let mut packed = Packed::default();
        packed.pack_as(Mat::new(&b, k, n, n), arithmetic);
        for (terms, columns) in [(32..150, 32..90), (64..170, 0..96), (0..33, 64..70)] {
            let lhs = Mat::new(&a[terms.start..], m, terms.len(), k);
            let rhs = Mat::new(&b[terms.start * n + columns.start..], terms.len(), columns.len(), n);
            let mut got = vec![0.0; m * columns.len()];
            let part = packed.panels().terms(terms).columns(columns.clone());
            // SAFETY: `got` is ours and has the product's size.
            unsafe { matmul_packed(got.as_mut_ptr(), columns.len(), Into::Overwrite, 0.7, lhs, part) };
            let mut want = vec![0.0; got.len()];
            matmul_as(&mut want, columns.len(), Into::Overwrite, 0.7, lhs, rhs, arithmetic);
            assert!(got == want, "{arithmetic:?}");
        }
    }
}

#[test]
fn a_rounded_product_is_the_product_rounded() {
    for arithmetic in bf16_arithmetics() {
        for (m, n, k) in [(1, 1, 1), (13, 33, 257), (100, 2100, 70), (200, 70, 600)] {
            let (a, b) = (values(m * k, 19), values(k * n, 20));
            for_each_view(&a, &b, (m, n, k), |lhs, rhs| {
                let mut want = vec![0.0; m * n];
                matmul_as(&mut want, n, Into::Overwrite, 1.0, lhs, rhs, arithmetic);
                round_to_bf16(&mut want);
                for threads in [1, 3] {
                    let mut got = vec![bf16::NAN; m * n];
                    on_threads(threads, || rounded::matmul_as(&mut got, lhs, rhs, arithmetic));
                    let got: Vec<f32> = got.iter().map(|x| x.to_f32()).collect();
                    assert!(got == want, "{arithmetic:?}, {m} x {n} x {k}, {threads} threads");
                }
            });
        }
    }
}
