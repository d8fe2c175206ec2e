//! Rules of the keys of `[model]`: shapes, and what only some architectures have.

use super::{HEADS, LENGTH, Rules, broken};
use crate::config::choices::{Architecture, Choice};
use crate::config::rope_scaling::RopeScaling;
use crate::config::schema::{Config, ModelConfig};

const ARCHITECTURE: &str = "model.architecture";
const LAYERS: &str = "model.num_hidden_layers";

/// The layer that SmolLM3 does not rotate, where nothing is said: every fourth.
const NO_ROPE_INTERVAL: usize = 4;

pub(super) fn derive(rules: &mut Rules, config: &mut Config) {
    let model = &mut config.model;
    let layers = model.num_hidden_layers;
    let has_unrotated = model.architecture == Architecture::SmolLm3;
    rules.default("model.no_rope_layers", &[ARCHITECTURE, LAYERS], &mut model.no_rope_layers, || {
        Ok(has_unrotated.then(|| ModelConfig::every_nth_without_rope(layers, NO_ROPE_INTERVAL)))
    });
}

pub(super) fn rules(rules: &mut Rules, config: &Config) {
    shape_rules(rules, config);
    architecture_rules(rules, &config.model);
}

fn shape_rules(rules: &mut Rules, config: &Config) {
    let model = &config.model;
    let heads = model.num_attention_heads;
    let key_value_heads = model.num_key_value_heads;
    rules.rule(&["model.num_key_value_heads", HEADS], || {
        (!heads.is_multiple_of(key_value_heads)).then(|| {
            let what = format!("{key_value_heads} does not divide num_attention_heads {heads}");
            let divisors: Vec<_> = (1..=heads).filter(|n| heads.is_multiple_of(*n)).map(|n| n.to_string()).collect();
            broken(what, format!("choose one of {}", divisors.join(", ")))
        })
    });
    rules.rule(&["model.head_dim"], || {
        (!model.head_dim.is_multiple_of(2)).then(|| {
            let what = format!("{} is odd, but RoPE turns pairs", model.head_dim);
            broken(what, format!("{} would do", model.head_dim + 1))
        })
    });
    rules.rule(&[LENGTH, "model.max_position_embeddings"], || {
        let length = config.train.sequence_length;
        let longest = model.context_length();
        (length > longest).then(|| {
            let key = "model.max_position_embeddings";
            let scaled = if longest > model.max_position_embeddings { " with its model.rope_scaling" } else { "" };
            let what = format!("{length} is more than {key} {longest}{scaled}");
            broken(what, format!("set model.max_position_embeddings to {length} or train on shorter sequences"))
        })
    });
}

fn architecture_rules(rules: &mut Rules, model: &ModelConfig) {
    let architecture = model.architecture;
    let others = [
        ("model.attention_bias", model.attention_bias && !architecture.takes_attention_bias()),
        ("model.mlp_bias", model.mlp_bias && !architecture.takes_mlp_bias()),
        ("model.sliding_window", model.sliding_window.is_some() && !architecture.takes_sliding_window()),
        ("model.max_window_layers", model.max_window_layers > 0 && !architecture.takes_max_window_layers()),
        ("model.no_rope_layers", model.no_rope_layers.is_some() && architecture != Architecture::SmolLm3),
    ];
    for (key, is_of_another) in others {
        rules.rule(&[key, ARCHITECTURE], || {
            is_of_another.then(|| {
                let what = format!("is no setting of model.architecture {:?}", architecture.name());
                broken(what, "remove it, or choose an architecture that has it (its meaning names them)")
            })
        });
    }
    rules.rule(&["model.no_rope_layers", LAYERS], || {
        let given = model.no_rope_layers.as_ref().map_or(model.num_hidden_layers, Vec::len);
        let layers = model.num_hidden_layers;
        (given != layers).then(|| {
            broken(format!("has {given} numbers for {layers} layers"), "give each layer a 1 or a 0, from the first on")
        })
    });
    rules.rule(&["model.max_window_layers", "model.sliding_window"], || {
        (model.max_window_layers > 0 && model.sliding_window.is_none())
            .then(|| broken("has no effect without model.sliding_window", "remove it, or set model.sliding_window"))
    });
    rules.rule(&["model.rope_scaling", "model.rope_theta"], || {
        let is_yarn = matches!(model.rope_scaling, Some(RopeScaling::Yarn(_)));
        (is_yarn && model.rope_theta <= 1.0).then(|| {
            broken(
                "rope_type \"yarn\" needs a model.rope_theta above 1",
                "set model.rope_theta to 10000.0, for example",
            )
        })
    });
    rules.rule(&["model.rope_scaling", "model.head_dim"], || {
        let is_dynamic = matches!(model.rope_scaling, Some(RopeScaling::Dynamic { .. }));
        (is_dynamic && model.head_dim == 2)
            .then(|| broken("rope_type \"dynamic\" cannot scale the one frequency of heads of 2", "choose \"linear\""))
    });
}
