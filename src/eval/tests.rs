use super::benchmark::{Extent, Prepared, TaskResult, evaluate, fingerprint};
use super::dataset::Library;
use super::engine::{LikelihoodRequest, likelihoods};
use super::*;
use crate::data::Tokens;
use crate::distributed::tests::with_ranks;
use crate::model::init::init;
use crate::model::params::Layout;
use crate::model::tests::tiny;
use crate::runtime::error::{Exit, StopAsked, fail, failure_in};
use std::path::Path;
use std::sync::Arc;

/// A model of random weights.
fn random(vocab_size: usize, context: usize) -> Llama {
    let mut config = tiny(true);
    (config.vocab_size, config.max_position_embeddings, config.initializer_range) = (vocab_size, context, 0.3);
    Llama::new(&config, init(&config, &Layout::new(&config), 3).unwrap()).unwrap()
}

/// A model of zeros finds every token equally likely, so the bits are known: log2 of the vocabulary for each target, the
/// ends of text among them, over the bytes of the text, to which the ends of text add none.
#[test]
fn bits_per_byte_of_a_known_text_are_exact() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let texts =
        ["The river ran over stones.", "D\u{e9}j\u{e0} vu \u{1f642}, 12 times", "", "<|endoftext|> is text here"];
    let end = tokenizer.eos_id().unwrap();
    let documents = tokenizer.encode_documents(&texts).unwrap();
    let ids: Vec<u32> = documents.iter().flat_map(|ids| [&[end][..], ids].concat()).chain([end]).collect();
    let mut config = tiny(true);
    (config.vocab_size, config.max_position_embeddings, config.initializer_range) = (50_304, 16, 0.0);
    let model = Llama::new(&config, init(&config, &Layout::new(&config), 3).unwrap()).unwrap();
    let targets = ids.len() as u64 - 1;
    let rows = EvalSet::windows(Tokens::Memory(Arc::new(ids)), 16, u64::MAX);
    let found = score(&ProcessGroup::one(), &model, &rows, &ByteLengths::new(&tokenizer), 2, |_| Ok(())).unwrap();
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    assert_eq!((found.tokens, found.bytes), (targets, Some(bytes as u64)));
    let expected = targets as f64 * 50_304f64.log2() / bytes as f64;
    assert!((found.bits_per_byte() / expected - 1.0).abs() < 1e-6, "{} {expected}", found.bits_per_byte());
}

/// 7 batches of at most 3 rows, the last row of which is short.
fn rows() -> EvalSet {
    EvalSet::windows(Tokens::Memory(Arc::new((0..20 * 16 - 5).map(|i| i * i % 33).collect())), 16, u64::MAX)
}

/// The bits of a score.
fn bits(score: &Score) -> (u64, u64, Option<u64>) {
    (score.loss.to_bits(), score.tokens, score.bytes)
}

#[test]
fn a_score_has_the_same_bits_on_any_number_of_ranks() {
    let (model, rows, lengths) = (random(33, 16), rows(), ByteLengths::new(&Tokenizer::gpt2().unwrap()));
    let score_on = |group: &ProcessGroup| {
        let mut heard = Vec::new();
        let score = score(group, &model, &rows, &lengths, 3, |done| {
            heard.push(done);
            Ok(())
        });
        (bits(&score.unwrap()), heard)
    };
    let (alone, heard) = score_on(&ProcessGroup::one());
    assert_eq!(heard, [3, 6, 9, 12, 15, 18, 20]);
    for (ranks, heard) in [(1, &[3, 6, 9, 12, 15, 18, 20][..]), (2, &[6, 12, 18, 20]), (4, &[12, 20]), (8, &[20])] {
        let scores = with_ranks(ranks, |group| score_on(&group));
        assert!(scores.iter().all(|(found, _)| *found == alone), "{ranks} ranks");
        assert_eq!(scores[0].1, heard, "{ranks} ranks");
    }
}

#[test]
fn a_request_to_stop_one_rank_cuts_the_scoring_of_all_short() {
    let (model, rows, lengths) = (random(33, 16), rows(), ByteLengths(None));
    let again = with_ranks(4, |group| {
        let mut heard = 0;
        let stopped = score(&group, &model, &rows, &lengths, 3, |_| {
            heard += 1;
            if group.rank() == 2 { Err(StopAsked.into()) } else { Ok(()) }
        });
        assert!(stopped.unwrap_err().is::<StopAsked>());
        assert_eq!(heard, if [2, 3].contains(&group.rank()) { 1 } else { 2 });
        // The ranks are still together.
        bits(&score(&group, &model, &rows, &lengths, 3, |_| Ok(())).unwrap())
    });
    let alone = score(&ProcessGroup::one(), &model, &rows, &lengths, 3, |_| Ok(())).unwrap();
    assert!(again.iter().all(|again| *again == bits(&alone)));
}

#[test]
fn a_failure_of_one_rank_ends_the_scoring_of_all() {
    let (model, rows, lengths) = (random(33, 16), rows(), ByteLengths(None));
    let failures = with_ranks(4, |group| {
        let failed = score(&group, &model, &rows, &lengths, 3, |_| match group.rank() {
            // A failure counts for more than a request to stop.
            1 => Err(StopAsked.into()),
            3 => Err(fail(Exit::Io, "the disk is gone").into()),
            _ => Ok(()),
        });
        let failure = failure_in(&failed.unwrap_err()).unwrap().clone();
        (failure.exit, failure.message)
    });
    for (exit, message) in failures {
        assert_eq!(exit, Exit::Io);
        assert!(message.starts_with("rank 3 (host ") && message.ends_with(": the disk is gone"), "{message}");
    }
}

/// Strangers of which one makes a batch, and pairs that share almost everything.
fn requests() -> Vec<LikelihoodRequest> {
    let tokens = |i: u32, n: u32| (0..n).map(|at| (at * (i + 3) + at / 7 * i) % 33).collect::<Vec<u32>>();
    let long = (0..2).map(|i| LikelihoodRequest { tokens: tokens(i, 2060), first: 2050, cut: 0 });
    let short = (0..40).map(|i| LikelihoodRequest {
        tokens: [tokens(i / 2 + 20, 30), vec![i % 33, 1, 2]].concat(),
        first: 29,
        cut: 0,
    });
    long.chain(short).collect()
}

#[test]
fn likelihoods_have_the_same_bits_on_any_number_of_ranks() {
    let (model, requests) = (random(33, 2060), requests());
    let requests: Vec<&LikelihoodRequest> = requests.iter().collect();
    let found_on = |group: &ProcessGroup| {
        let mut heard = Vec::new();
        let found = likelihoods(group, &model, &requests, |done| {
            heard.push(done);
            Ok(())
        });
        let found = found.unwrap().into_iter().map(|l| (l.log_likelihood.to_bits(), l.greedy, l.tokens));
        (found.collect::<Vec<_>>(), heard)
    };
    let (alone, heard) = found_on(&ProcessGroup::one());
    assert!((2..4).contains(&heard.len()), "{heard:?}");
    for ranks in [2, 4] {
        let found = with_ranks(ranks, |group| found_on(&group));
        assert!(found.iter().all(|(found, _)| *found == alone), "{ranks} ranks");
        assert_eq!(found[0].1.len(), heard.len().div_ceil(ranks));
        assert_eq!(found[0].1.last(), Some(&requests.len()));
    }
}

/// Tasks of the fixtures: choices, and whole pages.
fn tasks() -> Vec<Prepared> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eval");
    let library = Library { dir: Some(fixtures.join("data")), hub: None };
    let tokenizer = Tokenizer::from_dir(&fixtures.join("model")).unwrap();
    let tasks = ["piqa", "wikitext"].iter().flat_map(|name| tasks::find(name).unwrap());
    let extent = Extent { num_fewshot: 0, limit: None };
    tasks.map(|task| Prepared::new(task, extent, &library, &tokenizer, 512).unwrap()).collect()
}

/// All numbers of results, by their bits.
fn numbers(results: &[TaskResult]) -> Vec<u64> {
    let metrics = results.iter().flat_map(|result| &result.metrics);
    let metrics = metrics.flat_map(|metric| [metric.value, metric.stderr.unwrap_or(f64::NAN)]);
    let samples = results.iter().flat_map(|result| &result.samples);
    let samples = samples.flat_map(|sample| sample.log_likelihoods.iter().copied());
    metrics.chain(samples).map(f64::to_bits).collect()
}

#[test]
fn tasks_have_the_same_bits_on_any_number_of_ranks() {
    let (model, tasks) = (random(320, 512), tasks());
    let mut batches = 0;
    let alone = evaluate(&ProcessGroup::one(), &model, &tasks, |_, _| {
        batches += 1;
        Ok(())
    });
    let alone = numbers(&alone.unwrap());
    assert!(batches > 2, "{batches}");
    assert!(alone.len() > 20, "{}", alone.len());
    for ranks in [2, 4] {
        let found = with_ranks(ranks, |group| {
            group.ensure_same("task data", || Ok(fingerprint(&tasks))).unwrap();
            numbers(&evaluate(&group, &model, &tasks, |_, _| Ok(())).unwrap())
        });
        assert!(found.iter().all(|found| *found == alone), "{ranks} ranks");
    }
    assert_ne!(fingerprint(&tasks), fingerprint(&tasks[1..]));
}
