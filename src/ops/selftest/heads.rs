//! The ops on packed heads: norms, rotation, attention.

use super::{Inputs, autograd, difference, worst, zeros_like};
use crate::ops::attention::{self, Heads, Mask};
use crate::ops::positions::{DocumentStarts, Positions};
use crate::ops::precision::Precision::F32;
use crate::ops::qk_norm::{self, QkNorm};
use crate::ops::rope::{self, Rope};
use candle_core::{Device, Result, Tensor, Var};

pub(super) fn check_qk_norm(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    let eps = 1e-5;
    for (b, t, q, kv, dim) in [(1, 1, 1, 1, 2), (2, 5, 4, 2, 6), (3, 70, 6, 3, 64)] {
        let heads = Heads { q, kv, dim };
        let qkv = Var::from_tensor(&inputs.tensor(&[b, t, heads.packed()])?)?;
        let [q_norm, k_norm] = [inputs.tensor(&[dim])?, inputs.tensor(&[dim])?];
        let [q_norm, k_norm] = [Var::from_tensor(&q_norm)?, Var::from_tensor(&k_norm)?];
        let weights = QkNorm { q_norm: &q_norm, k_norm: &k_norm };
        let dy = inputs.tensor(&[b, t, heads.packed()])?;
        let want = qk_norm::reference(&qkv, weights, heads, eps)?;
        let expected = autograd(&want, &dy, &[&qkv, &q_norm, &k_norm])?;
        let got = qkv.as_tensor().copy()?;
        let before = qk_norm::qk_norm(&got, weights, heads, eps)?;
        let dqkv = dy.copy()?;
        let [dq_norm, dk_norm] = [zeros_like(&q_norm)?, zeros_like(&k_norm)?];
        let grads = QkNorm { q_norm: &dq_norm, k_norm: &dk_norm };
        qk_norm::qk_norm_backward(&dqkv, &before, weights, heads, eps, Some(grads))?;
        let pairs = [(&got, &want), (&dqkv, &expected[0]), (&dq_norm, &expected[1]), (&dk_norm, &expected[2])];
        found = found.max(worst(&pairs)?);
    }
    Ok(found)
}

pub(super) fn check_rope(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    for (b, t, heads, rotated, d) in [(1, 1, 3, 2, 2), (2, 7, 5, 4, 6), (3, 33, 6, 5, 64)] {
        let tables = Rope::new(d, 10_000.0, 40);
        let qkv = Var::from_tensor(&inputs.tensor(&[b, t, heads * d])?)?;
        let dy = inputs.tensor(&[b, t, heads * d])?;
        let documents = inputs.documents(b, t)?;
        for positions in [Positions::From(0), Positions::From(3), Positions::Documents(&documents)] {
            let want = rope::reference(&qkv, &tables, rotated, positions)?;
            let expected = autograd(&want, &dy, &[&qkv])?;
            let got = qkv.as_tensor().copy()?;
            let dqkv = dy.copy()?;
            rope::rope(&got, &tables, rotated, positions)?;
            rope::rope_backward(&dqkv, &tables, rotated, positions)?;
            found = found.max(worst(&[(&got, &want), (&dqkv, &expected[0])])?);
        }
    }
    Ok(found)
}

/// The masks of a batch: documents, windows of a few keys, both, neither.
fn masks(documents: &DocumentStarts) -> [Mask<'_>; 5] {
    let of_both = |documents, window| Mask { documents, window };
    [
        of_both(Some(documents), None),
        of_both(None, Some(1)),
        of_both(None, Some(70)),
        of_both(Some(documents), Some(3)),
        Mask::default(),
    ]
}

pub(super) fn check_attention(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    let shapes = [(1, 1, 1, 1, 2), (2, 5, 4, 2, 6), (1, 64, 2, 1, 8), (2, 131, 6, 3, 16), (1, 200, 3, 3, 64)];
    for (b, t, q, kv, dim) in shapes {
        let heads = Heads { q, kv, dim };
        let qkv = Var::from_tensor(&(inputs.tensor(&[b, t, heads.packed()])? * 2.0)?)?;
        let dy = inputs.tensor(&[b, t, heads.out()])?;
        let documents = inputs.documents(b, t)?;
        for mask in masks(&documents) {
            let want = attention::reference(&qkv, heads, mask)?;
            let expected = autograd(&want, &dy, &[&qkv])?;
            let (out, lse) = attention::attention(&qkv, heads, mask, F32)?;
            let dqkv = attention::attention_backward(&qkv, &out, &lse, &dy, heads, mask, F32)?;
            found = found.max(worst(&[(&out, &want), (&dqkv, &expected[0])])?);
            if mask.documents.is_none() {
                found = found.max(over_a_cache(&qkv, heads, mask.window, &want)?);
            }
        }
        // Short documents hide most logits, the largest among them, so a wrong mask shows.
        let alone = DocumentStarts::new((0..b * t).map(|i| (i % t) as u32).collect(), t)?;
        for mask in masks(&documents).into_iter().chain([Mask::of_documents(Some(&alone))]) {
            let (scores, _) = attention::reference_scores(&qkv, heads, mask)?;
            let top = Tensor::new(attention::max_logit(&qkv, heads, mask)?, &Device::Cpu)?;
            found = found.max(difference(&top, &scores.max_all()?)?);
        }
    }
    Ok(found)
}

/// The difference to `want` of the second half of the queries over a cache of all keys.
fn over_a_cache(qkv: &Tensor, heads: Heads, window: Option<usize>, want: &Tensor) -> Result<f64> {
    let t = qkv.dim(1)?;
    let k_from = heads.out();
    let k_width = heads.kv * heads.dim;
    let k = qkv.narrow(2, k_from, k_width)?;
    let v = qkv.narrow(2, k_from + k_width, k_width)?;
    let mut found = 0.0f64;
    // Many queries at once, and one: they are computed in different ways.
    for start in [t / 2, t - 1] {
        let late = qkv.narrow(2, 0, heads.out())?.narrow(1, start, t - start)?;
        let cached = attention::attention_cached(&late, &k, &v, heads, start, window)?;
        found = found.max(difference(&cached, &want.narrow(1, start, t - start)?)?);
    }
    Ok(found)
}
