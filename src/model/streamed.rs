//! The logits of a model whose weights are read while they are computed with: at most a layer, the embedding or the head is in memory.
//!
//! For a look at a model that need not fit: each weight is used once in a pass, so nothing is gained by keeping it.

use super::block::{Attend, Block, BlockWeights, Context, Residual};
use super::lora::{self, BlockAdapters};
use super::params::{Cursor, Layout};
use super::rope::rope;
use crate::config::{LoraConfig, ModelConfig};
use crate::ops::embedding::embedding;
use crate::ops::linear::linear;
use crate::ops::precision::Precision;
use crate::ops::rms_norm::add_rms_norm;
use anyhow::{Result, bail};
use candle_core::{Device, Tensor};

/// Returns the values of the tensor with this name and shape.
pub type ReadTensor<'r> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>> + 'r;

/// Logits (t, v) of the context `ids` on the CPU in f32: the bits of [`Llama::logits`](super::Llama::logits). `read` is asked for every
/// tensor of the model from the bottom up, and for those of adapters of the kind `lora` under PEFT's names. A tied embedding is read twice.
///
/// # Errors
/// Those of `read`, and of the model's operations.
pub fn streamed_logits(
    config: &ModelConfig,
    lora: Option<&LoraConfig>,
    ids: &[u32],
    read: &mut ReadTensor<'_>,
) -> Result<Tensor> {
    let mut outer = config.tensor_shapes();
    outer.retain(|(name, _)| !name.starts_with("model.layers."));
    let [embed, norm, head @ ..] = outer.as_slice() else { bail!("a model has an embedding and a norm") };
    // Read again rather than kept: the embedding is the largest tensor of a small model.
    let head = head.first().unwrap_or(embed);
    let inputs = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    let rope = rope(config);
    let cx = Context { rope: &rope, documents: None, noise: None };
    let mut residual = Residual { h: embedding(&inputs, &read_one(embed, read)?)?, pending: None };
    for index in 0..config.num_hidden_layers {
        let mut block = Block::new(config, index, read_layer(config, index, read)?);
        block.adapters = lora.map(|lora| read_adapters(config, lora, index, read)).transpose()?;
        residual = block.forward(residual, cx, Attend::Batch)?.0;
    }
    let norm = read_one(norm, read)?;
    let normed = add_rms_norm(&residual.h, residual.pending.as_ref(), &norm, config.rms_norm_eps, Precision::F32)?;
    Ok(linear(&normed.y, &read_one(head, read)?, Precision::F32)?.squeeze(0)?)
}

fn read_one((name, shape): &(String, Vec<usize>), read: &mut ReadTensor<'_>) -> Result<Tensor> {
    Ok(Tensor::from_vec(read(name, shape)?, shape.as_slice(), &Device::Cpu)?)
}

/// The tensors of `layout` as one flat buffer.
fn read_flat(layout: &Layout, read: &mut ReadTensor<'_>) -> Result<Tensor> {
    let mut flat = Vec::with_capacity(layout.total);
    for spec in &layout.specs {
        flat.extend(read(&spec.name, &spec.shape)?);
    }
    Ok(Tensor::from_vec(flat, layout.total, &Device::Cpu)?)
}

/// The weights of the layer `index`.
fn read_layer(config: &ModelConfig, index: usize, read: &mut ReadTensor<'_>) -> Result<BlockWeights> {
    let own = config.layer_parameters().into_iter().map(|p| (format!("model.layers.{index}.{}", p.name), p.shape));
    let layout = Layout::from_shapes(own.collect());
    let flat = read_flat(&layout, read)?;
    Ok(BlockWeights::views(&mut Cursor::new(&flat, &layout)?, config)?)
}

/// The adapters of the layer `index`, and the factor on what they add.
fn read_adapters(
    config: &ModelConfig,
    lora: &LoraConfig,
    index: usize,
    read: &mut ReadTensor<'_>,
) -> Result<(BlockAdapters, f64)> {
    let prefix = format!("{}model.layers.{index}.", lora::PREFIX);
    let mut own = lora::specs(config, lora);
    own.retain(|(name, _)| name.starts_with(&prefix));
    let layout = Layout::from_shapes(own);
    let flat = read_flat(&layout, read)?;
    let one_layer = ModelConfig { num_hidden_layers: 1, ..config.clone() };
    let mut blocks = lora::views(&flat, &layout, &one_layer, lora)?;
    Ok((blocks.pop().unwrap_or_default(), lora::scale(lora)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Architecture, LoraTarget};
    use crate::model::Llama;
    use crate::model::init::init;
    use crate::model::tests::tiny;

    /// Reads from the flat buffers of `model` and its adapters.
    fn reader(model: &Llama) -> impl FnMut(&str, &[usize]) -> Result<Vec<f32>> {
        let mut buffers = vec![(model.layout.clone(), model.flat.to_vec1::<f32>().unwrap())];
        let adapters = model.adapters.as_ref();
        buffers.extend(adapters.map(|a| (a.layout.clone(), a.flat.to_vec1::<f32>().unwrap())));
        move |name, shape| {
            let found =
                buffers.iter().find_map(|(layout, flat)| Some((layout.specs.iter().find(|s| s.name == name)?, flat)));
            let (spec, flat) = found.unwrap_or_else(|| panic!("{name} is no tensor of the model"));
            assert_eq!(spec.shape, shape, "{name}");
            Ok(flat[spec.start..spec.start + spec.len].to_vec())
        }
    }

    fn bits(logits: &Tensor) -> Vec<u32> {
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn layer_by_layer_the_logits_are_those_of_the_model_in_memory() {
        let ids: Vec<u32> = (0..13).map(|i| i * i % 33).collect();
        let inputs = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let models = [
            tiny(false),
            tiny(true),
            ModelConfig { attention_bias: true, mlp_bias: true, ..tiny(false) },
            ModelConfig { architecture: Architecture::Mistral, sliding_window: Some(4), ..tiny(false) },
            ModelConfig { architecture: Architecture::Qwen2, ..tiny(false) },
            ModelConfig { architecture: Architecture::Qwen3, ..tiny(true) },
            ModelConfig { architecture: Architecture::SmolLm3, no_rope_layers: Some(vec![1, 0]), ..tiny(true) },
        ];
        let all = LoraConfig { rank: 3, alpha: 5.0, dropout: 0.0, targets: LoraTarget::ALL.to_vec(), rslora: false };
        let some = LoraConfig { targets: vec![LoraTarget::ALL[1]], ..all.clone() };
        for (n, model) in models.iter().enumerate() {
            let config = ModelConfig { initializer_range: 0.3, ..model.clone() };
            for lora in [None, Some(&all), Some(&some)] {
                // Biases are 0 at first, and so is half of fresh adapters: neither would change anything.
                let flat = init(&config, &Layout::new(&config), 3).unwrap().affine(1.0, 0.01).unwrap();
                let mut model = Llama::new(&config, flat).unwrap();
                if let Some(lora) = lora {
                    let fresh = lora::init(&config, lora, 4, &Device::Cpu).unwrap();
                    let values = fresh.flat.affine(0.5, 0.1).unwrap();
                    model = model.with_adapters(lora::Adapters::new(&config, lora, values).unwrap()).unwrap();
                }
                let streamed = streamed_logits(&config, lora, &ids, &mut reader(&model)).unwrap();
                assert_eq!(streamed.dims(), [13, 33]);
                assert_eq!(bits(&streamed), bits(&model.logits(&inputs).unwrap()), "model {n}, adapters {lora:?}");
            }
        }
    }
}
