//! Texts as `generate` writes them: together and alone, their ends, and what is said of their tokens.

use super::*;
use crate::model::init::init;
use crate::model::params::Layout;
use crate::model::tests::tiny;
use sampler::SamplerConfig;

fn model() -> Llama {
    let mut config = tiny(true);
    (config.vocab_size, config.max_position_embeddings, config.initializer_range) = (50_304, 32, 0.3);
    Llama::new(&config, init(&config, &Layout::new(&config), 3).unwrap()).unwrap()
}

fn write(rule: &SamplerConfig, indices: &[u64], limits: &Limits) -> Vec<Generated> {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let sampler = |&i: &u64| Sampler::new(rule.clone(), tokenizer.vocab_size(), 5, i).unwrap();
    let mut samplers: Vec<Sampler> = indices.iter().map(sampler).collect();
    let mut heard = vec![String::new(); indices.len()];
    let prompt = encode_prompt(&tokenizer, "The river ran").unwrap();
    let made = generate(&model(), &tokenizer, &prompt, &mut samplers, limits, |i, piece| {
        heard[i].push_str(piece);
        Ok(())
    })
    .unwrap();
    assert!(made.iter().zip(&heard).all(|(made, heard)| made.text == *heard));
    made
}

#[test]
fn samples_made_together_are_those_made_alone() {
    let (rule, limits) = (SamplerConfig::default(), Limits { max_tokens: 12, ..Default::default() });
    let indices: Vec<u64> = (0..TOGETHER as u64).collect();
    let together = write(&rule, &indices, &limits);
    for (i, made) in indices.iter().zip(&together) {
        assert_eq!(write(&rule, &[*i], &limits)[0].token_ids, made.token_ids);
        assert_eq!(made.token_ids.len(), 12);
    }
    assert!(together[1..].iter().all(|made| made.token_ids != together[0].token_ids));
}

/// A prompt of several pieces gives the same text as one that is fed whole; an interrupt comes before its first piece.
#[test]
fn a_long_prompt_can_be_interrupted_and_is_read_in_pieces() {
    let (tokenizer, mut config) = (Tokenizer::gpt2().unwrap(), tiny(true));
    (config.vocab_size, config.max_position_embeddings, config.initializer_range) = (50_304, 128, 0.3);
    let model = Llama::new(&config, init(&config, &Layout::new(&config), 3).unwrap()).unwrap();
    let prompt: Vec<u32> = (1000..1100).collect();
    let write = |interrupt: Option<bool>| {
        let rule = SamplerConfig { greedy: true, ..Default::default() };
        let mut sampler = Sampler::new(rule, tokenizer.vocab_size(), 5, 0).unwrap();
        let interrupt = interrupt.map(|asked| Arc::new(AtomicBool::new(asked)));
        let limits = Limits { max_tokens: 8, interrupt, ..Default::default() };
        let samplers = std::slice::from_mut(&mut sampler);
        generate(&model, &tokenizer, &prompt, samplers, &limits, |_, _| Ok(())).map(|mut made| made.remove(0).token_ids)
    };
    assert_eq!(write(Some(false)).unwrap(), write(None).unwrap());
    assert!(write(Some(true)).unwrap_err().is::<Interrupted>());
    // Between two pieces as well: the first is read, the second is not.
    let flag = Arc::new(AtomicBool::new(true));
    let limits = Limits { interrupt: Some(flag), ..Default::default() };
    let mut cache = model.cache(1, 128).unwrap();
    assert!(prefill(&model, &prompt, &mut cache, &limits).is_err() && cache.is_empty());
    let limits = Limits { interrupt: Some(Arc::default()), ..Default::default() };
    let read = prefill(&model, &prompt, &mut cache, &limits).unwrap();
    assert!(read > 0 && read < prompt.len() && cache.len() == read);
}

#[test]
fn stop_strings_end_a_text_before_themselves() {
    let greedy = SamplerConfig { greedy: true, ..Default::default() };
    let limits = Limits { max_tokens: 20, ..Default::default() };
    let whole = write(&greedy, &[0], &limits).remove(0).text;
    let middle: String = whole.chars().skip(whole.chars().count() / 2).take(4).collect();
    let stopped = write(&greedy, &[0], &Limits { stop: vec![middle.clone()], ..limits.clone() }).remove(0);
    assert_eq!(
        (stopped.text.as_str(), stopped.finish_reason),
        (&whole[..whole.find(&middle).unwrap()], FinishReason::Stop)
    );
    let never = write(&greedy, &[0], &Limits { stop: vec![format!("{whole}!")], ..limits }).remove(0);
    assert_eq!((never.text, never.finish_reason), (whole, FinishReason::Length));
}

#[test]
fn logprobs_are_the_models_and_add_up() {
    let rule = SamplerConfig { top_k: 3, temperature: 2.0, ..Default::default() };
    let limits = Limits { max_tokens: 6, logprobs: Some(50_304), ..Default::default() };
    for token in &write(&rule, &[4], &limits)[0].logprobs {
        let total: f64 = token.top.iter().map(|(_, p)| p.exp()).sum();
        assert!((total - 1.0).abs() < 1e-9 && token.top.windows(2).all(|w| w[0].1 >= w[1].1));
        assert!(token.top[..3].contains(&(token.id, token.logprob)), "drawn among the three likeliest");
    }
}

#[test]
fn logprobs_are_the_models_whatever_the_penalties() {
    let penalised = SamplerConfig {
        repetition_penalty: 1.7,
        presence_penalty: 1.5,
        frequency_penalty: 0.5,
        top_k: 50,
        ..Default::default()
    };
    let limits = Limits { max_tokens: 10, logprobs: Some(3), ..Default::default() };
    let model = model();
    let prompt = encode_prompt(&Tokenizer::gpt2().unwrap(), "The river ran").unwrap();
    for rule in [penalised.clone(), SamplerConfig { greedy: true, ..penalised }] {
        let made = write(&rule, &[0], &limits).remove(0);
        let all = [&prompt[..], &made.token_ids].concat();
        let inputs = Tensor::from_vec(all[..all.len() - 1].to_vec(), (1, all.len() - 1), &Device::Cpu).unwrap();
        let targets = Tensor::from_vec(all[1..].to_vec(), all.len() - 1, &Device::Cpu).unwrap();
        let losses = model.losses(&inputs, &targets, None).unwrap().to_vec1::<f32>().unwrap();
        for (token, loss) in made.logprobs.iter().zip(&losses[prompt.len() - 1..]) {
            assert!((token.logprob + f64::from(*loss)).abs() < 1e-3 * (1.0 + f64::from(*loss)), "{token:?} {loss}");
            assert!(token.top.iter().all(|(_, likelier)| *likelier <= 0.0));
        }
        assert_eq!(made.logprobs.len(), made.token_ids.len());
    }
}

#[test]
fn every_end_id_ends_a_text() {
    let greedy = SamplerConfig { greedy: true, ..Default::default() };
    let limits = Limits { max_tokens: 12, logprobs: Some(1), ..Default::default() };
    let gpt2 = Tokenizer::gpt2().unwrap();
    let prompt = encode_prompt(&gpt2, "The river ran").unwrap();
    let write = |tokenizer: &Tokenizer| {
        let mut samplers = [Sampler::new(greedy.clone(), gpt2.vocab_size(), 5, 0).unwrap()];
        generate(&model(), tokenizer, &prompt, &mut samplers, &limits, |_, _| Ok(())).unwrap().remove(0)
    };
    let whole = write(&gpt2).token_ids;
    // The ends of text of the tokenizer, then further ones: any of them may come first.
    for at in [0, 2, 7] {
        let last = whole[11];
        let unused = (0..).find(|id| !whole.contains(id));
        for more in [[Some(whole[at]), unused], [unused, Some(whole[at])], [Some(last), Some(whole[at])]] {
            let several = more.into_iter().fold(gpt2.clone(), |tokenizer, id| tokenizer.for_chat("", id));
            let made = write(&several);
            let end = whole.iter().position(|id| several.stop_ids().contains(id)).unwrap();
            assert_eq!((&made.token_ids[..], made.finish_reason), (&whole[..end], FinishReason::Stop));
            assert_eq!(made.logprobs.len(), end);
        }
    }
}

#[test]
fn penalties_keep_tokens_from_coming_again() {
    let limits = Limits { max_tokens: 20, ..Default::default() };
    let distinct = |rule: SamplerConfig| {
        let ids = write(&SamplerConfig { greedy: true, ..rule }, &[0], &limits).remove(0).token_ids;
        ids.iter().collect::<std::collections::BTreeSet<_>>().len()
    };
    let plain = distinct(SamplerConfig::default());
    assert!(plain < 20, "{plain}");
    assert_eq!(distinct(SamplerConfig { presence_penalty: 1e9, ..Default::default() }), 20);
    assert_eq!(distinct(SamplerConfig { frequency_penalty: 1e9, ..Default::default() }), 20);
}
