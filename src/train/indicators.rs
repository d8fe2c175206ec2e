//! What the layers do: norms of gradients, weights and updates, layer by layer, and the largest logits. Instabilities show here before
//! they show in the loss. Steps between two records cost nothing, and a record one more pass over the buffers.

use super::model_state::ModelState;
use super::step::StepReport;
use crate::metrics::Layers;
use crate::ops::squares::Squares;
use anyhow::Result;

/// The norms of the step that `report` is of, whose gradient is still in `state`.
///
/// # Errors
/// Those of reading the buffers.
pub fn layers(state: &ModelState, report: &StepReport) -> Result<Layers> {
    let (layout, flat) = state.model.trained();
    let sums = state.optimizer.sums_of_squares(&state.sharding, layout, flat, &state.grad, report.lr)?;
    let mut all = Layers { step: state.run.step, logit_rms: f64::NAN, ..Layers::default() };
    if let Some(observed) = &report.observed {
        all.attention_logit_max = observed.attention_logit_max.iter().map(|&x| f64::from(x)).collect();
        all.logit_rms = observed.logit_rms();
    }
    let mut at = Squares::default();
    let names: Vec<String> = layout.specs.iter().map(|spec| group(&spec.name)).collect();
    for (i, sum) in sums.iter().enumerate() {
        at = at.merged(sum);
        // The tensors of a layer follow each other in the layout.
        if names.get(i + 1) != Some(&names[i]) {
            all.names.push(names[i].clone());
            all.grad_norm.push(at.grad.sqrt());
            all.weight_norm.push(at.weight.sqrt());
            all.update_norm.push(at.update.sqrt());
            all.adam_step.push((at.adam / at.n).sqrt());
            at = Squares::default();
        }
    }
    Ok(all)
}

/// The layer of a tensor: the number of its block, or what it is.
fn group(name: &str) -> String {
    let inner = name.split_once("layers.").and_then(|(_, rest)| rest.split_once('.'));
    match inner {
        Some((number, _)) => number.to_owned(),
        None if name.contains("embed_tokens") => "embedding".into(),
        None if name.contains("lm_head") => "head".into(),
        None => "norm".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::data::batch::Batch;
    use crate::distributed::group::ProcessGroup;
    use crate::train::step::take_step;
    use candle_core::{Device, Tensor};

    /// The update norms, computed back from the moments, are the norms of the differences of the weights.
    #[test]
    fn updates_are_the_differences_of_the_weights() {
        let text = "[model]\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 3\nnum_attention_heads = 4\nvocab_size = 320\n\
            [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[log]\nlayers_every = 1\n[train]\nsequence_length = 16\nmicro_batch_size = 4\nsteps = 9\n\
            [optimizer]\nlr = 1e-2\n";
        let config = Config::from_toml_str(text, "a.toml").unwrap();
        let mut state = ModelState::initial(&config, None, &Device::Cpu, &ProcessGroup::one()).unwrap();
        for seed in 0..4u32 {
            let before = state.model.flat.to_vec1::<f32>().unwrap();
            let ids: Vec<u32> = (0..4 * 17).map(|i| (i * 7 + seed * 31) % 320).collect();
            let batch = Batch::windows(&ids, 16, None);
            let inputs = Tensor::from_slice(&batch.inputs, (4, 16), &Device::Cpu).unwrap();
            let squares = state.model.logits(&inputs).unwrap().sqr().unwrap();
            let rms = squares.mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let report = take_step(&mut state, &config, &batch).unwrap();
            let found = layers(&state, &report).unwrap();
            assert_eq!(found.names, ["embedding", "0", "1", "2", "norm", "head"]);
            let after = state.model.flat.to_vec1::<f32>().unwrap();
            let norm = |of: &dyn Fn(usize) -> f64, range: std::ops::Range<usize>| {
                range.map(|i| of(i) * of(i)).sum::<f64>().sqrt()
            };
            let mut blocks = state.model.layout.specs.iter().filter(|s| s.name.contains("layers.1."));
            let (first, last) = (blocks.clone().next().unwrap(), blocks.next_back().unwrap());
            let range = first.start..last.start + last.len;
            let moved = norm(&|i| f64::from(after[i]) - f64::from(before[i]), range.clone());
            assert!((found.update_norm[2] / moved - 1.0).abs() < 1e-3, "{} {moved}", found.update_norm[2]);
            let weight = norm(&|i| f64::from(after[i]), range);
            assert!((found.weight_norm[2] / weight - 1.0).abs() < 1e-9);
            let all = found.grad_norm.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((all / report.grad_norm - 1.0).abs() < 1e-6, "{all} {}", report.grad_norm);
            // Norms do not decay: their update is AdamW's step alone, and the first step is 1 wherever there is a gradient (not all ids occur).
            let n = state.model.layout.specs.iter().find(|s| s.name == "model.norm.weight").unwrap().len as f64;
            let by_step = report.lr * n.sqrt() * found.adam_step[4];
            assert!((found.update_norm[4] / by_step - 1.0).abs() < 1e-3, "{} {by_step}", found.update_norm[4]);
            assert!(
                seed > 0 || found.adam_step[1..].iter().all(|step| (0.9..1.01).contains(step)),
                "{:?}",
                found.adam_step
            );
            assert!((f64::from(rms) / found.logit_rms - 1.0).abs() < 1e-4, "{rms} {}", found.logit_rms);
            assert!(found.attention_logit_max.len() == 3 && found.attention_logit_max.iter().all(|x| x.is_finite()));
        }
    }
}
