//! Tasks from data to metrics: prompts, requests, likelihoods, and what the harness makes of them.

use super::dataset::Library;
use super::encode::RequestEncoder;
use super::engine::{Likelihood, LikelihoodRequest, likelihoods};
use super::fewshot::Drawer;
use super::python;
use super::statistics::{mean, perplexity_error, standard_error};
use super::tasks::{Document, Task};
use crate::distributed::group::ProcessGroup;
use crate::model::Llama;
use crate::runtime::error::{Exit, Failure, fail};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use serde_json::Value;
use std::f64::consts::LN_2;

/// How much of a task is evaluated, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    pub num_fewshot: usize,
    /// The first so many documents; below 1 a share of them.
    pub limit: Option<f64>,
}

impl Extent {
    fn documents(&self, all: usize) -> usize {
        match self.limit {
            None => all,
            Some(share) if share < 1.0 => (share * all as f64).ceil() as usize,
            Some(n) => (n as usize).min(all),
        }
    }
}

/// A task with its requests, ready to be scored.
pub struct Prepared {
    pub task: Task,
    pub shots: usize,
    pub all_documents: usize,
    documents: Vec<Document>,
    /// The requests of each document.
    requests: Vec<Vec<LikelihoodRequest>>,
}

/// What of a task's contexts the model does not see, because its own context is shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncated {
    /// Documents with a context that lost its beginning.
    pub documents: usize,
    /// Tokens lost, over all their contexts.
    pub tokens: usize,
}

/// One metric of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// As the harness calls it.
    pub name: &'static str,
    pub value: f64,
    /// Its standard error, where there is one.
    pub stderr: Option<f64>,
}

impl Metric {
    fn average(name: &'static str, values: &[f64]) -> Self {
        Self { name, value: mean(values), stderr: standard_error(values) }
    }
}

/// A document's likelihoods, for `--log-samples`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DocumentSample {
    /// The log-likelihood of each choice (or of the one continuation, or the whole page).
    pub log_likelihoods: Vec<f64>,
    pub target: Value,
    /// Tokens of its contexts that were left out.
    pub cut: usize,
}

impl DocumentSample {
    fn new(log_likelihoods: Vec<f64>, target: impl Into<Value>) -> Self {
        Self { log_likelihoods, target: target.into(), cut: 0 }
    }
}

/// The metrics of a task and the likelihoods that they are computed from.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskResult {
    pub metrics: Vec<Metric>,
    pub samples: Vec<DocumentSample>,
}

impl Prepared {
    /// Reads the data and writes the prompts.
    ///
    /// # Errors
    /// Those of the data; [`Exit::Data`] for a row that is not what the task's rows are.
    pub fn new(task: Task, extent: Extent, library: &Library, tokenizer: &Tokenizer, context: usize) -> Result<Self> {
        let rows = library.rows(&task, task.split)?;
        // One generator for all documents in their order, as in the harness: each draw depends on those before it.
        let mut drawer = Drawer::new(&task, extent.num_fewshot, library)?;
        let encoder = RequestEncoder::new(tokenizer, context)?;
        let mut documents = Vec::new();
        let mut requests = Vec::new();
        for (i, row) in rows.iter().take(extent.documents(rows.len())).enumerate() {
            let document = task.form.document(row).map_err(|what| bad_row(&task, i, what))?;
            let mut before = task.form.description();
            for example in drawer.draw(row) {
                let text = task.form.example(example);
                before += &text.map_err(|what| bad_row(&task, i, format!("an example before it: {what}")))?;
            }
            requests.push(encode(&encoder, &before, &document).map_err(|e| bad_row(&task, i, e.to_string()))?);
            documents.push(document);
        }
        Ok(Self { shots: drawer.shots(), all_documents: rows.len(), task, documents, requests })
    }

    pub fn documents(&self) -> usize {
        self.documents.len()
    }

    /// What was left out of the contexts.
    pub fn truncated(&self) -> Truncated {
        let cut = self.requests.iter().map(|requests| requests.iter().map(|request| request.cut).sum::<usize>());
        cut.filter(|tokens| *tokens > 0).fold(Truncated::default(), |all, tokens| Truncated {
            documents: all.documents + 1,
            tokens: all.tokens + tokens,
        })
    }

    /// A line about it, if there is something to say.
    pub fn warning(&self) -> Option<String> {
        let Truncated { documents, tokens } = self.truncated();
        (documents > 0).then(|| {
            format!(
                "warning: {}: the contexts of {documents} of {} documents are longer than the model's: {tokens} tokens at \
                 their beginnings are left out",
                self.task.name,
                self.documents()
            )
        })
    }

    fn result(&self, likelihoods: &[Likelihood]) -> TaskResult {
        let mut rest = likelihoods;
        let mut scores = Vec::with_capacity(self.documents.len());
        for (document, requests) in self.documents.iter().zip(&self.requests) {
            let (own, others) = rest.split_at(requests.len());
            rest = others;
            let mut score = DocumentScore::new(document, own);
            score.sample.cut = requests.iter().map(|request| request.cut).sum();
            scores.push(score);
        }
        TaskResult { metrics: metrics(&scores), samples: scores.into_iter().map(|score| score.sample).collect() }
    }
}

fn bad_row(task: &Task, row: usize, what: String) -> Failure {
    fail(Exit::Data, format!("{}: row {row} of its {} split: {what}", task.name, task.split))
        .hint("evaluation needs the data set's own fields and labels")
}

/// Identifies what the model is asked in `tasks`: equal fingerprints, equal requests.
pub fn fingerprint(tasks: &[Prepared]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("llama-lite benchmark requests v1");
    for request in tasks.iter().flat_map(|task| task.requests.iter().flatten()) {
        let head = [request.tokens.len() as u32, request.first as u32];
        let bytes: Vec<u8> = head.iter().chain(&request.tokens).flat_map(|id| id.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hasher.finalize().to_hex().to_string()
}

/// Scores all `tasks` together, on all ranks, as [`likelihoods`] does; `done` hears how many requests are scored, of how many.
///
/// # Errors
/// Those of the model's ops and of `done`.
pub fn evaluate(
    group: &ProcessGroup,
    model: &Llama,
    tasks: &[Prepared],
    mut done: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<TaskResult>> {
    let requests: Vec<&LikelihoodRequest> = tasks.iter().flat_map(|task| task.requests.iter().flatten()).collect();
    // All tasks together: prompts that begin alike are computed once, and batches are full.
    let all = likelihoods(group, model, &requests, |n| done(n, requests.len()))?;
    let mut rest = all.as_slice();
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        let (own, others) = rest.split_at(task.requests.iter().map(Vec::len).sum());
        rest = others;
        results.push(task.result(own));
    }
    Ok(results)
}

fn encode(encoder: &RequestEncoder, before: &str, document: &Document) -> Result<Vec<LikelihoodRequest>> {
    match document {
        Document::Choices { context, choices, .. } | Document::Truths { context, choices, .. } => {
            let context = format!("{before}{context}");
            choices.iter().map(|choice| encoder.pair(&context, &format!(" {choice}"))).collect()
        }
        Document::Contexts { contexts, continuation, .. } => {
            contexts.iter().map(|context| encoder.pair(&format!("{before}{context}"), continuation)).collect()
        }
        Document::Endings { context, endings, .. } => {
            endings.iter().map(|ending| encoder.separately(context, &format!(" {ending}"))).collect()
        }
        Document::Word { context, continuation } => {
            Ok(vec![encoder.pair(&format!("{before}{context}"), continuation)?])
        }
        Document::Page { text, .. } => encoder.rolling(text),
    }
}

#[derive(Default)]
struct DocumentScore {
    /// 1 if the answer is correct, else 0; or the share of the probability that the true choices have.
    acc: f64,
    acc_norm: Option<f64>,
    /// Words and bytes of a page.
    size: Option<(usize, usize)>,
    /// Set for a word whose likelihood counts too.
    word: bool,
    sample: DocumentSample,
}

impl DocumentScore {
    fn new(document: &Document, found: &[Likelihood]) -> Self {
        let lls: Vec<f64> = found.iter().map(|l| l.log_likelihood).collect();
        match document {
            Document::Choices { choices, gold, .. } => {
                // For each character of the choice, as the harness's acc_norm has it.
                let norm: Vec<f64> = lls.iter().zip(choices).map(|(ll, c)| ll / python::len(c) as f64).collect();
                Self::of_choices(lls, Some(&norm), *gold)
            }
            Document::Contexts { gold, .. } => Self::of_choices(lls, None, *gold),
            Document::Endings { gold, .. } => {
                let means: Vec<f64> = found.iter().map(|l| l.log_likelihood / l.tokens as f64).collect();
                Self::of_choices(lls, Some(&means), *gold)
            }
            Document::Word { continuation, .. } => {
                let greedy = found.iter().all(|l| l.greedy);
                let sample = DocumentSample::new(lls, continuation.as_str());
                Self { acc: f64::from(u8::from(greedy)), word: true, sample, ..Self::default() }
            }
            Document::Truths { truths, .. } => {
                let all: f64 = lls.iter().map(|ll| ll.exp()).sum();
                let of_true: f64 = lls.iter().zip(truths).filter(|(_, truth)| **truth).map(|(ll, _)| ll.exp()).sum();
                let target: Value = truths.iter().map(|&truth| Value::from(u8::from(truth))).collect();
                Self { acc: of_true / all, sample: DocumentSample::new(lls, target), ..Self::default() }
            }
            Document::Page { words, bytes, .. } => {
                let sample = DocumentSample::new(vec![lls.iter().sum()], Value::Null);
                Self { acc: f64::NAN, size: Some((*words, *bytes)), sample, ..Self::default() }
            }
        }
    }

    /// A question whose answers have the log-likelihoods `lls`, and `normalised` by their lengths where the task asks for that.
    fn of_choices(lls: Vec<f64>, normalised: Option<&[f64]>, gold: Option<usize>) -> Self {
        Self {
            acc: accuracy(&lls, gold),
            acc_norm: normalised.map(|normalised| accuracy(normalised, gold)),
            sample: DocumentSample::new(lls, gold),
            ..Self::default()
        }
    }
}

/// 1 if the largest of `scores` is that of the answer `gold`, else 0.
fn accuracy(scores: &[f64], gold: Option<usize>) -> f64 {
    f64::from(u8::from(gold.is_some() && argmax(scores) == gold))
}

/// The index of the largest value: the first of equal ones, and a NaN before all others, as numpy has it.
fn argmax(values: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, &value) in values.iter().enumerate() {
        if best.is_none_or(|(_, top)| !top.is_nan() && (value > top || value.is_nan())) {
            best = Some((i, value));
        }
    }
    best.map(|(i, _)| i)
}

/// The log-likelihoods of documents that have one each: pages and words.
fn first_likelihoods(scores: &[DocumentScore]) -> impl Iterator<Item = f64> {
    scores.iter().filter_map(|score| score.sample.log_likelihoods.first().copied())
}

fn metrics(scores: &[DocumentScore]) -> Vec<Metric> {
    if scores.iter().any(|score| score.size.is_some()) {
        let total: f64 = first_likelihoods(scores).sum();
        let (words, bytes) = scores.iter().filter_map(|s| s.size).fold((0, 0), |(w, b), (x, y)| (w + x, b + y));
        return vec![
            Metric { name: "word_perplexity", value: (-total / words as f64).exp(), stderr: None },
            Metric { name: "byte_perplexity", value: (-total / bytes as f64).exp(), stderr: None },
            Metric { name: "bits_per_byte", value: -total / bytes as f64 / LN_2, stderr: None },
        ];
    }
    let mut all = Vec::new();
    if scores.iter().any(|score| score.word) {
        let lls: Vec<f64> = first_likelihoods(scores).collect();
        all.push(Metric { name: "perplexity", value: (-mean(&lls)).exp(), stderr: perplexity_error(&lls) });
    }
    let acc: Vec<f64> = scores.iter().map(|score| score.acc).collect();
    all.push(Metric::average("acc", &acc));
    let norm: Vec<f64> = scores.iter().filter_map(|score| score.acc_norm).collect();
    if !norm.is_empty() {
        all.push(Metric::average("acc_norm", &norm));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn likelihood(log_likelihood: f64, tokens: usize) -> Likelihood {
        Likelihood { log_likelihood, greedy: log_likelihood > -1.0, tokens }
    }

    #[test]
    fn the_first_of_equals_and_any_nan_win() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(argmax(&[1.0, f64::NAN, 3.0, f64::NAN]), Some(1));
        assert_eq!(argmax(&[f64::NEG_INFINITY]), Some(0));
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn normalised_by_characters_or_by_tokens() {
        let texts = vec!["añ".to_owned(), "abcd".to_owned()];
        let found = [likelihood(-3.0, 1), likelihood(-4.0, 4)];
        let choices = Document::Choices { context: String::new(), choices: texts.clone(), gold: Some(1) };
        let score = DocumentScore::new(&choices, &found);
        assert_eq!((score.acc, score.acc_norm), (0.0, Some(1.0)), "-3/2 against -4/4");
        let endings = Document::Endings { context: String::new(), endings: texts, gold: Some(0) };
        let score = DocumentScore::new(&endings, &[likelihood(-3.0, 3), likelihood(-4.0, 2)]);
        assert_eq!((score.acc, score.acc_norm), (1.0, Some(1.0)));
        let unanswerable = Document::Choices { context: String::new(), choices: vec!["a".into()], gold: None };
        assert_eq!(DocumentScore::new(&unanswerable, &[likelihood(-1.0, 1)]).acc, 0.0);
    }

    #[test]
    fn a_question_without_choices_counts_as_wrong() {
        let empty = Document::Choices { context: String::new(), choices: vec![], gold: None };
        let metrics = metrics(&[DocumentScore::new(&empty, &[])]);
        assert_eq!(metrics.iter().map(|m| (m.name, m.value)).collect::<Vec<_>>(), [("acc", 0.0), ("acc_norm", 0.0)]);
    }

    #[test]
    fn words_truths_and_pages() {
        let word = Document::Word { context: String::new(), continuation: " w".into() };
        let scores: Vec<DocumentScore> =
            [-0.5, -2.0].iter().map(|&ll| DocumentScore::new(&word, &[likelihood(ll, 1)])).collect();
        let found = metrics(&scores);
        assert_eq!(found.iter().map(|m| m.name).collect::<Vec<_>>(), ["perplexity", "acc"]);
        assert!((found[0].value - 1.25f64.exp()).abs() < 1e-12 && found[1].value == 0.5);
        let truths = Document::Truths { context: String::new(), choices: vec![], truths: vec![true, false] };
        let score = DocumentScore::new(&truths, &[likelihood(3f64.ln(), 1), likelihood(0.0, 1)]);
        assert!((score.acc - 0.75).abs() < 1e-12);
        let page = Document::Page { text: String::new(), words: 2, bytes: 8 };
        let found = metrics(&[DocumentScore::new(&page, &[likelihood(-2.0, 1), likelihood(-2.0, 1)])]);
        assert!((found[0].value - 2f64.exp()).abs() < 1e-12 && (found[2].value - 0.5 / LN_2).abs() < 1e-12);
    }

    #[test]
    fn limits_take_the_first_documents() {
        let extent = |limit| Extent { num_fewshot: 0, limit };
        assert_eq!(
            [None, Some(0.25), Some(3.0), Some(1.0), Some(99.0)].map(|l| extent(l).documents(10)),
            [10, 3, 3, 1, 10]
        );
    }
}
