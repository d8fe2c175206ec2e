//! The kernels against the CPU's ops: the same functions, the same launches, on a real GPU (`llama-lite doctor`) or an emulated one (tests).
//!
//! In f32 both must agree to rounding. In bf16 the CPU's op gets the rounded inputs, and results may differ by the rounding of what is
//! stored.

mod agreement;
mod decode;
mod elements;
mod products;
#[cfg(test)]
mod tests;
mod tune;
mod update;

use super::*;
use crate::ops::attention::Heads;
use crate::ops::attention::Mask;
use crate::ops::positions::DocumentStarts;
use crate::ops::precision::Precision;
use crate::ops::prefix_tree::PrefixTree;
use crate::ops::selftest::difference;
use crate::ops::transfer::to_host;
use crate::ops::{attention as cpu_attention, cross_entropy as cpu_cross_entropy};
use crate::ops::{embedding as cpu_embedding, rms_norm as cpu_rms_norm};
use agreement::distance_from_best;
use candle_core::{DType, Device, Result, Tensor};

pub(crate) use agreement::Agreement;

/// Largest error of a value stored in bf16, relative to the largest one: half a unit in the last place, and a little for the sums before.
const BF16: f64 = 6e-3;

/// The same where one rounding follows another: of logits, of probabilities.
const TWICE: f64 = 1.2e-2;

const F32: f64 = 2e-6;

type Check = fn(&mut Bench) -> Result<()>;

const CHECKS: [(&str, Check); 14] = [
    ("rms_norm", norms),
    ("rope and swiglu", elements::rope_swiglu_and_bias),
    ("linear", products::default_products),
    ("linear by chosen algorithms", products::chosen_products),
    ("embedding", embeddings),
    ("cross_entropy", cross_entropies),
    ("updates", update::updates),
    ("attention", attentions),
    ("attention over a cache", attention_over_a_cache),
    ("attention over a prefix tree", attention_over_a_prefix_tree),
    ("lora", tune::adapters),
    ("noise", tune::noises),
    ("decoding: products", decode::products),
    ("decoding: attention", decode::attention),
];

/// Compares every op on `device` with the CPU, in f32 and bf16, and gives `report` what each comparison finds as soon as it is known. A
/// comparison that ends with an error is one that has failed, and the others go on.
///
/// # Errors
/// Those of `report`.
pub(crate) fn run<E>(
    device: &Device,
    report: impl FnMut(Agreement) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    run_checks(&CHECKS, device, report)
}

fn run_checks<E>(
    checks: &[(&str, Check)],
    device: &Device,
    mut report: impl FnMut(Agreement) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    for (seed, dtype) in [DType::F32, DType::BF16].into_iter().enumerate() {
        for (name, check) in checks {
            let mut bench = Bench { device, dtype, state: 1000 * seed as u64, found: Vec::new() };
            if let Err(error) = check(&mut bench) {
                bench.found.push(Agreement::failed(format!("{name}, {}", dtype.as_str()), &error));
            }
            bench.found.into_iter().try_for_each(&mut report)?;
        }
    }
    Ok(())
}

struct Bench<'a> {
    device: &'a Device,
    dtype: DType,
    state: u64,
    found: Vec<Agreement>,
}

impl Bench<'_> {
    fn draw(&mut self) -> u64 {
        self.state += 1;
        crate::ops::noise::draw(self.state, 7)
    }

    /// On the device, in the type that is checked.
    fn tensor(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.exact(shape)?.to_dtype(self.dtype)
    }

    /// On the device, in f32.
    fn exact(&mut self, shape: &[usize]) -> Result<Tensor> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| 1.5 * self.uniform()).collect();
        Tensor::from_vec(values, shape, self.device)
    }

    /// A number in [-1, 1).
    fn uniform(&mut self) -> f32 {
        (self.draw() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn ids(&mut self, n: usize, below: u64) -> Vec<u32> {
        (0..n).map(|_| (self.draw() % below) as u32).collect()
    }

    fn near(&mut self, what: &str, got: &Tensor, want: &Tensor) -> Result<()> {
        let limit = if self.dtype == DType::F32 { self.f32() } else { BF16 };
        self.within(limit, what, got, want)
    }

    fn within(&mut self, limit: f64, what: &str, got: &Tensor, want: &Tensor) -> Result<()> {
        let difference = difference(&wide(got)?, want)?;
        self.differ(limit, what, difference);
        Ok(())
    }

    fn differ(&mut self, limit: f64, what: &str, difference: f64) {
        let what = format!("{what}, {}", self.dtype.as_str());
        match self.found.iter_mut().find(|known| known.what == what) {
            Some(known) => known.difference = known.difference.max(difference),
            None => self.found.push(Agreement { what, difference, limit, error: None }),
        }
    }

    fn numbers(&mut self, limit: f64, what: &str, numbers: [f64; 2]) -> Result<()> {
        let [got, want] = numbers.map(|x| Tensor::new(&[x as f32], &Device::Cpu));
        self.within(limit, what, &got?, &want?)
    }

    /// Shapes to try. The last one, of a realistic size, is for a real GPU alone: an emulated one would take minutes.
    fn shapes<T, const N: usize>(&self, all: [T; N]) -> impl Iterator<Item = T> + use<T, N> {
        // A pretended GPU (scripts/pretend_gpu.sh) is an emulated one.
        let real = self.device.is_cuda() && std::env::var_os("LLAMA_LITE_PRETEND_KERNELS").is_none();
        all.into_iter().take(if real { N } else { N - 1 })
    }

    /// The limit in f32. On a real GPU sums are long, and tensor cores truncate them instead of rounding.
    fn f32(&self) -> f64 {
        if self.device.is_cuda() { 1e-5 } else { F32 }
    }

    /// A limit where one rounding follows another.
    fn twice(&self) -> f64 {
        if self.dtype == DType::F32 { 1e-5 } else { TWICE }
    }
}

/// The same numbers in f32 on the CPU, for its ops.
fn wide(t: &Tensor) -> Result<Tensor> {
    to_host(t)?.to_dtype(DType::F32)
}

fn zeros(shape: &[usize]) -> Result<Tensor> {
    Tensor::zeros(shape, DType::F32, &Device::Cpu)
}

fn norms(bench: &mut Bench) -> Result<()> {
    for (rows, c) in bench.shapes([(1, 8), (5, 264), (700, 16), (3, 2048), (5000, 2048)]) {
        let x = bench.tensor(&[rows, c])?;
        let delta = bench.tensor(&[rows, c])?;
        let dy = bench.tensor(&[rows, c])?;
        let dres = bench.tensor(&[rows, c])?;
        let w = bench.exact(&[c])?;
        for delta in [Some(&delta), None] {
            let got = add_rms_norm(&x, delta, &w, 1e-5)?;
            let sum = match delta {
                Some(delta) => (wide(&x)? + wide(delta)?)?.to_dtype(bench.dtype)?.to_dtype(DType::F32)?,
                None => wide(&x)?,
            };
            let want = cpu_rms_norm::add_rms_norm(&sum, None, &wide(&w)?, 1e-5, Precision::F32)?;
            bench.near("rms_norm h", &got.h, &sum)?;
            bench.near("rms_norm y", &got.y, &want.y)?;
            bench.within(bench.f32(), "rms_norm rstd", &got.rstd, &want.rstd)?;
            let again = rms_norm_recompute(&got.h, &got.rstd, &w)?;
            bench.within(0.0, "rms_norm y again", &again, &wide(&got.y)?)?;
            for dres in [Some(&dres), None] {
                let dw = bench.exact(&[c])?;
                let want_dw = zeros(&[c])?;
                let before = wide(&dw)?.copy()?;
                let dh = rms_norm_backward(&dy, &got.h, &got.rstd, &w, dres, Some(&dw))?;
                let wide_dres = dres.map(wide).transpose()?;
                let want_dh = cpu_rms_norm::rms_norm_backward(
                    &wide(&dy)?,
                    &sum,
                    &want.rstd,
                    &wide(&w)?,
                    wide_dres.as_ref(),
                    Some(&want_dw),
                )?;
                bench.near("rms_norm dh", &dh, &want_dh)?;
                bench.within(1e-5, "rms_norm dw", &(wide(&dw)? - before)?, &want_dw)?;
            }
        }
    }
    Ok(())
}

fn embeddings(bench: &mut Bench) -> Result<()> {
    for (rows, v, c) in bench.shapes([(5, 11, 300), (2000, 8192, 2048)]) {
        // A few ids many times, most of them never.
        let ids = bench.ids(rows * 8, (v as u64 - 2).min(3000));
        let table = bench.tensor(&[v, c])?;
        let tensor = Tensor::from_slice(&ids, (rows, 8), &Device::Cpu)?;
        let got = embedding(&ids, &[rows, 8, c], &table)?;
        bench.within(0.0, "embedding", &got, &cpu_embedding::embedding(&tensor, &wide(&table)?)?)?;
        let dy = bench.tensor(&[rows, 8, c])?;
        let dtable = bench.exact(&[v, c])?;
        let want = wide(&dtable)?.copy()?;
        embedding_backward(&ids, &dy, &dtable)?;
        cpu_embedding::embedding_backward(&tensor, &wide(&dy)?, &want)?;
        bench.within(bench.f32(), "embedding dtable", &dtable, &want)?;
    }
    Ok(())
}

fn cross_entropies(bench: &mut Bench) -> Result<()> {
    bench.shapes([(70, 16, 1000), (6000, 64, 50_304)]).try_for_each(|shape| cross_entropies_of(bench, shape))
}

fn cross_entropies_of(bench: &mut Bench, (n, c, v): (usize, usize, usize)) -> Result<()> {
    let x = bench.tensor(&[n, c])?;
    let w = bench.tensor(&[v, c])?;
    let mut targets = bench.ids(n, v as u64);
    targets[3] = cpu_cross_entropy::IGNORE;
    targets[n - 1] = v as u32 - 1;
    let tensor = Tensor::from_slice(&targets, n, &Device::Cpu)?;
    let dw = zeros(&[v, c])?.to_device(bench.device)?.copy()?;
    let want_dw = zeros(&[v, c])?;
    let (losses, dx) = cross_entropy_and_backward(&x, &w, &targets, 0.25, Some(&dw))?;
    let wide_x = wide(&x)?;
    let wide_w = wide(&w)?;
    let (want, want_dx) =
        cpu_cross_entropy::cross_entropy_and_backward(&wide_x, &wide_w, &tensor, 0.25, Some(&want_dw), Precision::F32)?;
    bench.near("cross_entropy losses", &losses, &want)?;
    bench.within(bench.twice(), "cross_entropy dx", &dx, &want_dx)?;
    bench.within(bench.twice(), "cross_entropy dw", &dw, &want_dw)?;
    bench.within(bench.f32(), "cross_entropy losses alone", &cross_entropy(&x, &w, &targets)?, &wide(&losses)?)?;
    // The most likely token of each row, by logits of one product, where `score` has computed them in chunks.
    let logits = wide(&linear(&x, &w, &[n, v])?)?;
    let argmax = logits.argmax(1)?.to_vec1::<u32>()?;
    let rows = logits.to_vec2::<f32>()?;
    let limit = if bench.dtype == DType::F32 { bench.f32() } else { BF16 };
    for targets in [targets, argmax] {
        let scores = score(&x, &w, &targets)?;
        let distances =
            scores.iter().zip(&targets).zip(&rows).map(|((s, &target), z)| distance_from_best(s, target, z));
        bench.differ(limit, "cross_entropy best", distances.fold(0.0, f64::max));
    }
    let squares = [logit_squares(&x, &w)?, cpu_cross_entropy::logit_squares(&wide_x, &wide_w, Precision::F32)?];
    bench.numbers(1e-4, "logit squares", squares)
}

fn attentions(bench: &mut Bench) -> Result<()> {
    #[cfg(feature = "cudnn")]
    if bench.device.is_cuda() {
        let calls = gpu::cudnn::calls();
        let before = bench.found.len();
        compare_attentions(bench, "attention by cuDNN")?;
        if gpu::cudnn::calls() == calls {
            // Our own kernels computed it: they are compared below under their name.
            bench.found.truncate(before);
        }
        return gpu::cudnn::without(|| compare_attentions(bench, "attention"));
    }
    compare_attentions(bench, "attention")
}

fn compare_attentions(bench: &mut Bench, name: &str) -> Result<()> {
    let shapes = [(1, 1, 1, 1, 64), (2, 65, 4, 2, 64), (1, 130, 2, 1, 128), (4, 1024, 8, 2, 64)];
    for (b, t, q, kv, dim) in bench.shapes(shapes) {
        let heads = Heads { q, kv, dim };
        let qkv = bench.tensor(&[b, t, heads.packed()])?;
        let dout = bench.tensor(&[b, t, heads.out()])?;
        let starts = (0..b * t).map(|i| (i % t / 23 * 23) as u32).collect();
        let documents = DocumentStarts::new(starts, t)?;
        for (documents, window) in
            [(None, None), (Some(&documents), None), (None, Some(40)), (Some(&documents), Some(11))]
        {
            let mask = Mask { documents, window };
            let (out, lse) = attention(&qkv, heads, mask)?;
            let (want, want_lse) = cpu_attention::attention(&wide(&qkv)?, heads, mask, Precision::F32)?;
            bench.near(&format!("{name} out"), &out, &want)?;
            bench.near(&format!("{name} lse"), &lse, &want_lse)?;
            let tops = [max_logit(&qkv, heads, mask)?, cpu_attention::max_logit(&wide(&qkv)?, heads, mask)?];
            bench.numbers(bench.f32(), &format!("{name} max logit"), tops.map(f64::from))?;
            let got = attention_backward(&qkv, &out, &lse, &dout, heads, mask)?;
            let want = cpu_attention::attention_backward(
                &wide(&qkv)?,
                &want,
                &want_lse,
                &wide(&dout)?,
                heads,
                mask,
                Precision::F32,
            )?;
            bench.within(bench.twice(), &format!("{name} dqkv"), &got, &want)?;
        }
    }
    Ok(())
}

fn attention_over_a_cache(bench: &mut Bench) -> Result<()> {
    let heads = Heads { q: 4, kv: 2, dim: 64 };
    for (t, start, capacity) in [(1, 0, 5), (1, 70, 80), (3, 129, 132)] {
        let q = bench.tensor(&[2, t, heads.out()])?;
        let rows = [2, capacity, heads.kv * heads.dim];
        let k = bench.tensor(&rows)?;
        let v = bench.tensor(&rows)?;
        for window in [None, Some(1), Some(37), Some(200)] {
            let got = attention_cached(&q, &k, &v, heads, start, window)?;
            let want = cpu_attention::attention_cached(&wide(&q)?, &wide(&k)?, &wide(&v)?, heads, start, window)?;
            bench.near("attention over a cache", &got, &want)?;
        }
    }
    Ok(())
}

/// Nodes shorter and longer than a tile, under parents of their own and of others, and a tree beside them.
fn attention_over_a_prefix_tree(bench: &mut Bench) -> Result<()> {
    let mut tree = PrefixTree::default();
    let root = tree.push(70, None)?;
    let a = tree.push(3, Some(root))?;
    for (len, parent) in [(66, root), (1, a), (130, a)] {
        tree.push(len, Some(parent))?;
    }
    tree.push(9, None)?;
    for (q, kv, dim) in [(4, 2, 64), (2, 1, 128)] {
        let heads = Heads { q, kv, dim };
        let qkv = bench.tensor(&[1, tree.len(), heads.packed()])?;
        for window in [None, Some(1), Some(72), Some(100), Some(1000)] {
            let got = attention_prefix_tree(&qkv, &tree, heads, window)?;
            let want = cpu_attention::attention_prefix_tree(&wide(&qkv)?, &tree, heads, window, Precision::F32)?;
            bench.near("attention over a prefix tree", &got, &want)?;
        }
    }
    Ok(())
}
