//! From logits to the next token: the sampling rule and its randomness.
//!
//! The filters and their order are those of Hugging Face transformers (repetition penalty, temperature, top-k, top-p,
//! min-p; at least one token always survives), so the same settings mean the same distribution. Two things are
//! stricter here: equal logits are ranked by token id, so exactly k tokens survive top-k, and all sums are f64 in
//! token order, so a distribution does not depend on how its tokens were found.
//!
//! Randomness is counter-based: draw `i` of sample `s` is a pure function of (seed, s, i) and of nothing else. The
//! samples of one prompt can be made in any order, together or alone, and each comes out the same.

use crate::runtime::error::{Exit, Failure, fail};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// How the next token is chosen. The default is the model's own distribution, unfiltered.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; below 1 sharpens the distribution, 0 is greedy.
    pub temperature: f64,
    /// Only the k most likely tokens; 0 = all.
    pub top_k: usize,
    /// Only the most likely tokens that together first reach this probability, in (0, 1]; 1 = all.
    pub top_p: f64,
    /// Only tokens at least this fraction as likely as the most likely one, in [0, 1]; 0 = all.
    pub min_p: f64,
    /// Divides the positive and multiplies the negative logits of tokens already in the history; 1 = off.
    pub repetition_penalty: f64,
    /// Taken from a token's logit for each time it occurs in the continuation.
    pub frequency_penalty: f64,
    /// Taken from a token's logit if it occurs in the continuation.
    pub presence_penalty: f64,
    /// Always the most likely token; temperature and filters are ignored.
    pub greedy: bool,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            greedy: false,
        }
    }
}

impl SamplerConfig {
    /// Refuses settings that mean nothing, all of them at once.
    ///
    /// # Errors
    /// [`Exit::Config`] with one line for each bad setting.
    pub fn validate(&self) -> Result<(), Failure> {
        let checks = [
            ("temperature", self.temperature, self.temperature >= 0.0, "at least 0"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "above 0"),
            ("frequency_penalty", self.frequency_penalty, true, "a number"),
            ("presence_penalty", self.presence_penalty, true, "a number"),
        ];
        let wrong: Vec<String> = checks
            .iter()
            .filter(|(_, value, good, _)| !(*good && value.is_finite()))
            .map(|(name, value, _, range)| format!("sampling: {name} is {value}, but must be {range}"))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(fail(Exit::Config, wrong.join("\n")).hint(
            "neutral values: temperature 1 (0 = greedy), top_k 0, top_p 1, min_p 0, repetition_penalty 1, others 0",
        ))
    }

    fn is_greedy(&self) -> bool {
        self.greedy || self.temperature == 0.0
    }
}

/// Chooses the tokens of one sample, one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    limit: usize,
    seed: u64,
    sample_index: u64,
    draws: u64,
    /// Tokens chosen so far, with their numbers.
    chosen: BTreeMap<u32, u32>,
    /// Scratch: the distinct tokens of the history, in order.
    seen: Vec<u32>,
    /// Scratch: the tokens that survived the filters, in order, and their unnormalised probabilities.
    ids: Vec<u32>,
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler for sample `sample_index` of `seed`. Only token ids below `limit`, the tokenizer's vocabulary size,
    /// are ever chosen: a model's vocabulary may be padded beyond it.
    ///
    /// # Errors
    /// [`Exit::Config`] from [`SamplerConfig::validate`]; [`Exit::Internal`] if `limit` is 0 or no `u32`.
    pub fn new(config: SamplerConfig, limit: usize, seed: u64, sample_index: u64) -> Result<Self, Failure> {
        config.validate()?;
        if limit == 0 || u32::try_from(limit).is_err() {
            return Err(fail(Exit::Internal, format!("sampling: a vocabulary of {limit} tokens")));
        }
        let seen = Vec::new();
        let ids = Vec::new();
        let weights = Vec::new();
        Ok(Self { config, limit, seed, sample_index, draws: 0, chosen: BTreeMap::new(), seen, ids, weights })
    }

    /// The next token, given its `logits` (one per id of the model's vocabulary; changed in place by the repetition
    /// penalty) and the `history` the penalty looks at: prompt and continuation so far.
    ///
    /// # Errors
    /// [`Exit::Data`] if a logit is not finite; [`Exit::Internal`] if there are fewer logits than tokens.
    pub fn next(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32, Failure> {
        let given = logits.len();
        let limit = self.limit;
        let Some(logits) = logits.get_mut(..limit) else {
            return Err(fail(Exit::Internal, format!("sampling: {given} logits for a vocabulary of {limit} tokens")));
        };
        if let Some(id) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(fail(
                Exit::Data,
                format!("sampling: the logit of token {id} is {} at position {}", logits[id], history.len()),
            )
            .hint("the model's weights are damaged or its training diverged: use an earlier checkpoint"));
        }
        // Counted for every token, greedy ones too: a draw belongs to a position, whatever the settings.
        let draw = self.draws;
        self.draws += 1;
        self.penalise_repetition(logits, history);
        self.penalise_occurrences(logits);
        let id = if self.config.is_greedy() {
            most_likely(logits)
        } else {
            self.filter(logits);
            self.pick(uniform(self.seed, self.sample_index, draw))
        };
        *self.chosen.entry(id).or_default() += 1;
        Ok(id)
    }

    /// The frequency and presence penalties of OpenAI's interface: what this sampler has chosen before loses logit.
    fn penalise_occurrences(&mut self, logits: &mut [f32]) {
        let SamplerConfig { frequency_penalty, presence_penalty, .. } = self.config;
        if frequency_penalty == 0.0 && presence_penalty == 0.0 {
            return;
        }
        for (&id, &n) in &self.chosen {
            let logit = &mut logits[id as usize];
            let penalised = f64::from(*logit) - presence_penalty - frequency_penalty * f64::from(n);
            *logit = (penalised as f32).clamp(f32::MIN, f32::MAX);
        }
    }

    /// The repetition penalty of CTRL (arXiv 1909.05858) as transformers applies it: once for each distinct token.
    fn penalise_repetition(&mut self, logits: &mut [f32], history: &[u32]) {
        let penalty = self.config.repetition_penalty as f32;
        if penalty == 1.0 {
            return;
        }
        self.seen.clear();
        self.seen.extend(history.iter().filter(|&&id| (id as usize) < logits.len()));
        self.seen.sort_unstable();
        self.seen.dedup();
        for &id in &self.seen {
            let logit = &mut logits[id as usize];
            let penalised = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            // A large logit under a large penalty must not become infinite.
            *logit = penalised.clamp(f32::MIN, f32::MAX);
        }
    }

    /// Fills `ids` and `weights` with what temperature, top-k, top-p and min-p leave of the distribution.
    fn filter(&mut self, logits: &[f32]) {
        let SamplerConfig { temperature, top_k, top_p, min_p, .. } = self.config;
        let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
        // Top-k, then top-p of what is left, then min-p: the order of transformers.
        keep_top_k(&mut self.ids, logits, top_k);
        if top_p < 1.0 {
            keep_top_p(&mut self.ids, logits, top_p, |id| unnormalised(logits, id, max, temperature));
        }
        if min_p > 0.0 {
            // The most likely token has weight 1 and stays.
            self.ids.retain(|&id| unnormalised(logits, id, max, temperature) >= min_p);
        }
        self.weights.clear();
        self.weights.extend(self.ids.iter().map(|&id| unnormalised(logits, id, max, temperature)));
    }

    /// Inverse transform sampling: the token whose share of the total weight contains `uniform`, in [0, 1).
    fn pick(&self, uniform: f64) -> u32 {
        let target = uniform * self.weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let mut chosen = 0;
        for (&id, &weight) in self.ids.iter().zip(&self.weights) {
            sum += weight;
            if weight > 0.0 {
                // Rounding may put the target at the very end: then the last possible token is chosen.
                chosen = id;
            }
            if sum > target {
                break;
            }
        }
        chosen
    }
}

/// The weight of token `id` in the distribution: 1 for a logit of `max`.
fn unnormalised(logits: &[f32], id: u32, max: f64, temperature: f64) -> f64 {
    ((f64::from(logits[id as usize]) - max) / temperature).exp()
}

/// Log-probabilities of a chosen token and of the most likely ones, in the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    pub id: u32,
    pub logprob: f64,
    /// The most likely tokens, most likely first.
    pub top: Vec<(u32, f64)>,
}

impl TokenLogprobs {
    /// Those of `id` and of the `top` most likely tokens under `logits`.
    pub fn new(logits: &[f32], id: u32, top: usize) -> Self {
        let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        let mut ids = Vec::new();
        if top > 0 {
            keep_top_k(&mut ids, logits, top);
            ids.sort_unstable_by(by_rank(logits));
        }
        let top = ids.into_iter().map(|id| (id, log_probability(logits, id, max, sum))).collect();
        Self { id, logprob: log_probability(logits, id, max, sum), top }
    }
}

/// Log-probability of token `id`, where `sum` is the sum of all exp(logit - max).
fn log_probability(logits: &[f32], id: u32, max: f64, sum: f64) -> f64 {
    f64::from(logits[id as usize]) - max - sum.ln()
}

/// Draw `draw` of sample `sample` of `seed`: a number in [0, 1) with 53 random bits, the same on every machine.
///
/// ChaCha8 as a function: the seed is the key, the sample the stream and the draw the position in it.
pub fn uniform(seed: u64, sample: u64, draw: u64) -> f64 {
    let mut key = *b"........llama-lite token sampler";
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(sample);
    // A draw takes two 32-bit words.
    rng.set_word_pos(2 * u128::from(draw));
    // 53 bits are what an f64 holds exactly.
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Most likely first; equal logits by id. Total on finite logits, -0 and 0 being equal.
fn by_rank(logits: &[f32]) -> impl Fn(&u32, &u32) -> Ordering + '_ {
    |a, b| {
        let first = logits[*a as usize];
        let second = logits[*b as usize];
        second.partial_cmp(&first).unwrap_or(Ordering::Equal).then(a.cmp(b))
    }
}

/// The lowest id among those of the highest logit.
fn most_likely(logits: &[f32]) -> u32 {
    (0..logits.len() as u32).min_by(by_rank(logits)).unwrap_or(0)
}

/// Fills `ids` with the `k` most likely tokens (0 = all), in id order.
///
/// One pass with a buffer of 2k: once it fills, only logits above the k-th best so far can matter, and few of them
/// do, so the vocabulary is read once and never sorted.
fn keep_top_k(ids: &mut Vec<u32>, logits: &[f32], k: usize) {
    ids.clear();
    if k == 0 || k >= logits.len() {
        ids.extend(0..logits.len() as u32);
        return;
    }
    let mut threshold = f32::NEG_INFINITY;
    for (id, &logit) in (0u32..).zip(logits) {
        // Strictly above: on a tie the k tokens already kept have lower ids and win.
        if logit > threshold {
            ids.push(id);
            if ids.len() >= 2 * k {
                let (_, kth, _) = ids.select_nth_unstable_by(k - 1, by_rank(logits));
                threshold = logits[*kth as usize];
                ids.truncate(k);
            }
        }
    }
    if ids.len() > k {
        ids.select_nth_unstable_by(k - 1, by_rank(logits));
        ids.truncate(k);
    }
    ids.sort_unstable();
}

/// Keeps the shortest run of most likely tokens that together hold at least `top_p` of the weight, in id order.
///
/// A nucleus is usually small: ever longer prefixes are ranked until one holds it, instead of the whole vocabulary.
fn keep_top_p(ids: &mut Vec<u32>, logits: &[f32], top_p: f64, weight: impl Fn(u32) -> f64) {
    let target = top_p * ids.iter().map(|&id| weight(id)).sum::<f64>();
    let mut ranked = 64;
    loop {
        ranked = ids.len().min(ranked);
        if ranked < ids.len() {
            ids.select_nth_unstable_by(ranked, by_rank(logits));
        }
        ids[..ranked].sort_unstable_by(by_rank(logits));
        // The token that reaches the target still belongs to the nucleus: what counts is the weight before it.
        let mut before = 0.0;
        let outside = ids[..ranked].iter().position(|&id| {
            let reached = before >= target;
            before += weight(id);
            reached
        });
        if outside.is_some() || ranked == ids.len() {
            ids.truncate(outside.unwrap_or(ranked).max(1));
            ids.sort_unstable();
            return;
        }
        ranked *= 4;
    }
}

#[cfg(test)]
mod tests;
