//! Log-likelihoods of many continuations at once: what they share is computed once, nothing is padded, and the head sees only the
//! positions that are asked about.

use crate::distributed::group::ProcessGroup;
use crate::model::Llama;
use crate::model::prefix_tree::TargetToken;
use crate::ops::prefix_tree::PrefixTree;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Tokens computed at a time: enough for full speed, few enough for small memories.
const TOKENS_AT_ONCE: usize = 4096;

/// Sharing fewer tokens than this costs more in short pieces of attention than it saves.
const WORTH_SHARING: usize = 8;

/// What is to be scored: the tokens from `first` on, after those before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LikelihoodRequest {
    /// All tokens; the last one is never fed.
    pub tokens: Vec<u32>,
    /// The first one that is scored; at least 1.
    pub first: usize,
    /// Tokens of its context that were left out, because the model's is shorter.
    pub cut: usize,
}

impl LikelihoodRequest {
    fn fed(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }
}

/// What the model thinks of a continuation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// Sum of the log-probabilities of its tokens, in nats.
    #[serde(with = "crate::distributed::exact")]
    pub log_likelihood: f64,
    /// Whether each of them is the most likely token at its place.
    pub greedy: bool,
    pub tokens: usize,
}

/// Scores all `requests`: their batches are dealt out to the ranks, and no likelihood depends on how many there are. `done` hears how many
/// requests are scored, by all ranks as far as this one can tell, and can end the scoring on all of them.
///
/// # Errors
/// Those of the model's ops and of `done`.
pub fn likelihoods(
    group: &ProcessGroup,
    model: &Llama,
    requests: &[&LikelihoodRequest],
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Likelihood>> {
    // In the order of their tokens, those that begin alike stand together.
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by(|&a, &b| requests[a].tokens.cmp(&requests[b].tokens));
    let batches = batches(requests, &order);
    let found = group.deal("likelihoods", batches.len(), |i| {
        let batch: Vec<&LikelihoodRequest> = order[batches[i].clone()].iter().map(|&i| requests[i]).collect();
        let found = score_batch(model, &batch)?;
        done(batches[group.dealt(i, batches.len()) - 1].end)?;
        Ok(found)
    })?;
    let mut results = vec![Likelihood { log_likelihood: f64::NAN, greedy: false, tokens: 0 }; requests.len()];
    for (&i, likelihood) in order.iter().zip(found.into_iter().flatten()) {
        results[i] = likelihood;
    }
    Ok(results)
}

/// The requests in this order, cut into batches: they do not depend on the number of ranks.
fn batches(requests: &[&LikelihoodRequest], order: &[usize]) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let mut from = 0;
    while from < order.len() {
        let to = from + batch_len(requests, &order[from..]);
        batches.push(from..to);
        from = to;
    }
    batches
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// How many of the requests, in this order, make a batch; at least one.
fn batch_len(requests: &[&LikelihoodRequest], order: &[usize]) -> usize {
    let mut tokens = 0;
    for (n, &i) in order.iter().enumerate() {
        let fed = requests[i].fed();
        let shared = if n == 0 { 0 } else { common(fed, requests[order[n - 1]].fed()) };
        // Shared tokens are computed once; in this order the request before shares the most.
        tokens += fed.len() - if shared >= WORTH_SHARING { shared } else { 0 };
        if n > 0 && tokens > TOKENS_AT_ONCE {
            return n;
        }
    }
    order.len()
}

fn score_batch(model: &Llama, batch: &[&LikelihoodRequest]) -> Result<Vec<Likelihood>> {
    let mut plan = Plan { batch, tree: PrefixTree::default(), row: Vec::new(), wanted: Vec::new(), owner: Vec::new() };
    plan.lay_out(0..batch.len(), 0, &mut Vec::new())?;
    let scored = model.score_prefix_tree(plan.row, &plan.tree, &plan.wanted)?;
    let mut results = vec![Likelihood { log_likelihood: 0.0, greedy: true, tokens: 0 }; batch.len()];
    for (&owner, token) in plan.owner.iter().zip(scored) {
        let result = &mut results[owner];
        result.log_likelihood -= f64::from(token.loss);
        result.greedy &= token.best;
        result.tokens += 1;
    }
    Ok(results)
}

/// A batch as one row of tokens.
struct Plan<'a> {
    batch: &'a [&'a LikelihoodRequest],
    tree: PrefixTree,
    row: Vec<u32>,
    wanted: Vec<TargetToken>,
    /// Which request each wanted token belongs to.
    owner: Vec<usize>,
}

/// A part of the way from a root to a leaf: its node, where it begins in the sequence, and where in the row.
#[derive(Clone, Copy)]
struct Part {
    node: usize,
    depth: usize,
    place: usize,
}

impl Plan<'_> {
    /// Lays out the requests of `range`, which share their first `depth` tokens, laid out as `path`.
    fn lay_out(&mut self, range: Range<usize>, depth: usize, path: &mut Vec<Part>) -> Result<()> {
        let mut from = range.start;
        while from < range.end {
            let first = self.batch[from].fed();
            // Sorted: what all of a group share is what its first and last member share.
            let to = (from + 1..range.end)
                .take_while(|&other| common(first, self.batch[other].fed()) >= depth + WORTH_SHARING)
                .last()
                .map_or(from + 1, |last| last + 1);
            let end = if to - from == 1 { first.len() } else { common(first, self.batch[to - 1].fed()) };
            // The path is cut back to this length before the next group.
            let parts = path.len();
            if end > depth {
                let node = self.tree.push(end - depth, path.last().map(|part| part.node))?;
                path.push(Part { node, depth, place: self.row.len() });
                self.row.extend(&first[depth..end]);
            }
            if to - from == 1 {
                self.want(from, path);
            } else {
                self.lay_out(from..to, end, path)?;
            }
            path.truncate(parts);
            from = to;
        }
        Ok(())
    }

    /// Asks for the scored tokens of a request whose fed tokens lie along `path`.
    fn want(&mut self, request: usize, path: &[Part]) {
        let LikelihoodRequest { tokens, first, .. } = self.batch[request];
        for (before, &target) in (first - 1..).zip(&tokens[*first..]) {
            // The deepest part that begins at or before the token holds it.
            let part = path.iter().rev().find(|part| part.depth <= before);
            let place = part.map_or(0, |part| part.place + before - part.depth);
            self.wanted.push(TargetToken { place: place as u32, target });
            self.owner.push(request);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::init::init;
    use crate::model::params::Layout;
    use crate::model::tests::tiny;
    use candle_core::{Device, Tensor};
    use rand::{Rng, SeedableRng};

    fn model() -> Llama {
        let mut config = tiny(false);
        (config.max_position_embeddings, config.initializer_range) = (6000, 0.3);
        Llama::new(&config, init(&config, &Layout::new(&config), 3).unwrap()).unwrap()
    }

    fn alone(model: &Llama, request: &LikelihoodRequest) -> f64 {
        let n = request.tokens.len() - 1;
        let inputs = Tensor::from_vec(request.fed().to_vec(), (1, n), &Device::Cpu).unwrap();
        let targets = Tensor::from_vec(request.tokens[1..].to_vec(), n, &Device::Cpu).unwrap();
        let losses = model.losses(&inputs, &targets, None).unwrap().to_vec1::<f32>().unwrap();
        -losses[request.first - 1..].iter().map(|&x| f64::from(x)).sum::<f64>()
    }

    /// Requests of all kinds of kinship: choices of one question, prefixes of each other, twins, strangers, long ones.
    fn requests() -> Vec<LikelihoodRequest> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut draw = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.random_range(0..33)).collect() };
        let shots = draw(40);
        let mut all = Vec::new();
        for _ in 0..12 {
            let question = [shots.clone(), draw(15)].concat();
            for choice in [1usize, 1, 3, 20] {
                all.push(LikelihoodRequest {
                    first: question.len(),
                    tokens: [question.clone(), draw(choice)].concat(),
                    cut: 0,
                });
            }
            let twin = all[all.len() - 1].clone();
            all.push(LikelihoodRequest { first: 1, ..twin.clone() });
            all.push(LikelihoodRequest { first: 1, tokens: twin.tokens[..50].to_vec(), cut: 0 });
            all.push(twin);
        }
        for n in [2, 3, 9, 3000, 4500] {
            all.push(LikelihoodRequest { first: 1, tokens: draw(n), cut: 0 });
        }
        all
    }

    #[test]
    fn together_they_are_what_they_are_alone() {
        let (model, requests) = (model(), requests());
        let mut heard = Vec::new();
        let found = likelihoods(&ProcessGroup::one(), &model, &requests.iter().collect::<Vec<_>>(), |n| {
            heard.push(n);
            Ok(())
        })
        .unwrap();
        assert_eq!(heard.last(), Some(&requests.len()));
        for (request, found) in requests.iter().zip(&found) {
            let want = alone(&model, request);
            assert!((found.log_likelihood - want).abs() < 1e-5 * (1.0 + want.abs()), "{found:?} {want}");
            assert_eq!(found.tokens, request.tokens.len() - request.first);
        }
    }

    /// The id that the model finds most likely after `tokens`, and one that it does not.
    fn best_and_other(model: &Llama, tokens: &[u32]) -> (u32, u32) {
        let requests: Vec<LikelihoodRequest> = (0..33)
            .map(|id| LikelihoodRequest { tokens: [tokens, &[id]].concat(), first: tokens.len(), cut: 0 })
            .collect();
        let found = likelihoods(&ProcessGroup::one(), model, &requests.iter().collect::<Vec<_>>(), |_| Ok(())).unwrap();
        let best: Vec<u32> = (0..33).filter(|&id| found[id as usize].greedy).collect();
        let most_likely = (0..33).max_by(|&a, &b| found[a].log_likelihood.total_cmp(&found[b].log_likelihood)).unwrap();
        assert_eq!(best, [most_likely as u32]);
        (best[0], (best[0] + 1) % 33)
    }

    #[test]
    fn a_continuation_is_greedy_if_each_of_its_tokens_is_the_most_likely() {
        let (model, context) = (model(), vec![3, 1, 4, 1, 5]);
        let with = |more: &[u32]| [&context[..], more].concat();
        let (first, other) = best_and_other(&model, &context);
        let after_first = best_and_other(&model, &with(&[first]));
        let after_other = best_and_other(&model, &with(&[other]));
        let (third, _) = best_and_other(&model, &with(&[first, after_first.0]));
        for (continuation, greedy) in [
            (vec![first, after_first.0], true),
            (vec![first, after_first.0, third], true),
            (vec![other, after_other.0], false),
            (vec![first, after_first.1], false),
            (vec![other, after_other.1], false),
        ] {
            let request = LikelihoodRequest { tokens: with(&continuation), first: context.len(), cut: 0 };
            assert_eq!(
                likelihoods(&ProcessGroup::one(), &model, &[&request], |_| Ok(())).unwrap()[0].greedy,
                greedy,
                "{continuation:?}"
            );
        }
    }

    #[test]
    fn what_is_shared_is_laid_out_once() {
        let requests = requests();
        let mut sorted: Vec<&LikelihoodRequest> = requests.iter().filter(|r| r.tokens.len() < 200).collect();
        sorted.sort_by(|a, b| a.tokens.cmp(&b.tokens));
        let mut plan = Plan { batch: &sorted, tree: PrefixTree::default(), row: vec![], wanted: vec![], owner: vec![] };
        plan.lay_out(0..sorted.len(), 0, &mut Vec::new()).unwrap();
        let fed: usize = sorted.iter().map(|r| r.fed().len()).sum();
        // One set of shots; of each question 9 tokens for all, 6 for each of four short ends, 25 for the twins.
        assert!(plan.row.len() < 40 + 12 * (9 + 4 * 8 + 25) + 60, "{} of {fed}", plan.row.len());
        assert!(fed > 4000);
    }
}
