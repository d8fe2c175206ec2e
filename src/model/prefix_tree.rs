//! The forward pass for evaluation: a [`PrefixTree`] of sequences in, the log-probabilities of chosen tokens out.

use super::Llama;
use super::block::{Attend, Context};
use crate::ops::cross_entropy::{Scored, score};
use crate::ops::prefix_tree::PrefixTree;
use candle_core::{Device, Result, Tensor, bail};

/// A token whose probability is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetToken {
    /// Where the token before it stands in the row.
    pub place: u32,
    /// The id of the token.
    pub target: u32,
}

impl Llama {
    /// The loss of each token in `targets`, for the tokens `row` of a prefix tree. Only the places before them go through the head.
    pub fn score_prefix_tree(&self, row: Vec<u32>, tree: &PrefixTree, targets: &[TargetToken]) -> Result<Vec<Scored>> {
        if row.len() != tree.len() || row.is_empty() {
            bail!("{} tokens for a prefix tree of {}", row.len(), tree.len());
        }
        self.on_computing_thread(|| self.prefix_tree_pass(row, tree, targets))
    }

    fn prefix_tree_pass(&self, row: Vec<u32>, tree: &PrefixTree, targets: &[TargetToken]) -> Result<Vec<Scored>> {
        let device = self.flat.device();
        let cx = Context { rope: &self.rope, documents: None, noise: None };
        let mut residual = self.embed(&Tensor::from_vec(row, (1, tree.len()), &Device::Cpu)?)?;
        for block in &self.blocks {
            residual = block.forward(residual, cx, Attend::Tree(tree))?.0;
        }
        let places: Vec<u32> = targets.iter().map(|target| target.place).collect();
        let places = Tensor::from_vec(places, targets.len(), device)?;
        let rows = self.final_norm(&residual)?.y.squeeze(0)?.index_select(&places, 0)?;
        let ids: Vec<u32> = targets.iter().map(|target| target.target).collect();
        let ids = Tensor::from_vec(ids, targets.len(), &Device::Cpu)?;
        score(&rows, &self.weights.lm_head, &ids, self.precision)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{families, model};
    use super::*;

    /// Every token of every sequence of a prefix tree has the loss that it has in a row of its own.
    #[test]
    fn a_prefix_tree_is_its_sequences() {
        // With dynamic RoPE the longest sequence of a tree decides how all of it is rotated.
        for mut config in families().into_iter().filter(|config| config.rope_scaling.is_none()) {
            config.max_position_embeddings = 64;
            a_tree_is_its_sequences(&model(&config));
            config.head_dim = 64;
            crate::ops::cuda::emulated(|| a_tree_is_its_sequences(&model(&config)));
        }
    }

    fn a_tree_is_its_sequences(model: &Llama) {
        let token = |i: usize| (i * i * 7 + i * 3 + 1) as u32 % 33;
        // Two branches of different lengths under a root, one of them with two leaves; and another tree.
        let mut tree = PrefixTree::default();
        let root = tree.push(12, None).unwrap();
        let a = tree.push(9, Some(root)).unwrap();
        let b = tree.push(2, Some(root)).unwrap();
        let c = tree.push(1, Some(a)).unwrap();
        let d = tree.push(20, Some(a)).unwrap();
        let other = tree.push(5, None).unwrap();
        let row: Vec<u32> = (0..tree.len()).map(token).collect();
        for leaf in [b, c, d, other] {
            let places: Vec<usize> = tree.path(leaf).iter().flat_map(|n| n.start..n.start + n.len).collect();
            let sequence: Vec<u32> = places.iter().map(|&p| row[p]).collect();
            let n = sequence.len() - 1;
            let wanted: Vec<TargetToken> =
                (0..n).map(|i| TargetToken { place: places[i] as u32, target: sequence[i + 1] }).collect();
            let scored = model.score_prefix_tree(row.clone(), &tree, &wanted).unwrap();
            let inputs = Tensor::from_vec(sequence[..n].to_vec(), (1, n), &Device::Cpu).unwrap();
            let targets = Tensor::from_vec(sequence[1..].to_vec(), n, &Device::Cpu).unwrap();
            let losses = model.losses(&inputs, &targets, None).unwrap().to_vec1::<f32>().unwrap();
            let logits = model.logits(&inputs).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
            for (i, scored) in scored.iter().enumerate() {
                assert!((scored.loss - losses[i]).abs() < 2e-5, "{leaf} {i}: {} {}", scored.loss, losses[i]);
                let best = (0..33).max_by(|&x, &y| logits[i][x].total_cmp(&logits[i][y])).unwrap();
                assert_eq!(scored.best, best as u32 == sequence[i + 1]);
            }
        }
    }
}
