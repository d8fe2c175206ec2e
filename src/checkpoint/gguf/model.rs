//! The model in a GGUF file: its keys, and the names, shapes and types of its tensors, in the dialect of its architecture.

use anyhow::Result;

use super::header::{BLOCK, GgufHeader, Storage};
use super::{model_refusal, rope};
use crate::checkpoint::dtype::{Dtype, ExportDtype};
use crate::config::{Architecture, ModelConfig};

/// How llama.cpp reads the models of an architecture.
pub(super) struct Dialect {
    /// `general.architecture`, and what the model's keys begin with.
    name: &'static str,
    /// Whether rotary embeddings turn the rows 2i and 2i + 1 of a head together. In Hugging Face's files it is always the rows i and
    /// i + head_dim / 2.
    rotates_neighbours: bool,
    /// Tensors of a layer that not every architecture has, as far as llama.cpp looks for them in this one.
    extras: &'static [&'static str],
    /// Whether RoPE's frequencies can be divided by a tensor of the file.
    takes_factors: bool,
    /// Layers n, 2n, … (counted from 1) do not rotate.
    every_nth_without_rope: Option<usize>,
}

const LLAMA: Dialect = Dialect {
    name: "llama",
    rotates_neighbours: true,
    extras: &[
        "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",
        "self_attn.o_proj.bias",
        "mlp.gate_proj.bias",
        "mlp.up_proj.bias",
        "mlp.down_proj.bias",
    ],
    takes_factors: true,
    every_nth_without_rope: None,
};

const QWEN2: Dialect = Dialect {
    name: "qwen2",
    rotates_neighbours: false,
    extras: &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
    takes_factors: false,
    every_nth_without_rope: None,
};

const QWEN3: Dialect =
    Dialect { name: "qwen3", extras: &["self_attn.q_norm.weight", "self_attn.k_norm.weight"], ..QWEN2 };

const SMOLLM3: Dialect = Dialect {
    name: "smollm3",
    rotates_neighbours: true,
    extras: &[],
    takes_factors: false,
    every_nth_without_rope: Some(4),
};

/// Modules outside the layers: Hugging Face's name and GGUF's.
const OUTER: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Modules of a layer: what follows `model.layers.N.`, and what follows `blk.N.`.
const OF_LAYERS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// A tensor of the file.
pub(super) struct PlannedTensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) storage: Storage,
    pub(super) values: PlannedValues,
}

/// Where a tensor's values come from.
pub(super) enum PlannedValues {
    Weight {
        source: String,
        /// Number of heads whose rows the file has in another order; none if it has them as they are.
        reordered_heads: Option<usize>,
    },
    Given(Vec<f32>),
}

impl Dialect {
    pub(super) fn of(architecture: Architecture) -> &'static Dialect {
        match architecture {
            // llama.cpp knows Mistral as a Llama.
            Architecture::Llama | Architecture::Mistral => &LLAMA,
            Architecture::Qwen2 => &QWEN2,
            Architecture::Qwen3 => &QWEN3,
            Architecture::SmolLm3 => &SMOLLM3,
        }
    }

    /// Every tensor of `model`, with matrices in `dtype`: in the order of [`ModelConfig::tensor_shapes`], then what only such files have.
    ///
    /// # Errors
    /// [`Exit::Config`](crate::runtime::error::Exit::Config) for a tensor that readers of this dialect would not look for.
    pub(super) fn tensors(&self, model: &ModelConfig, dtype: ExportDtype) -> Result<Vec<PlannedTensor>> {
        let mut planned = Vec::new();
        for (source, shape) in model.tensor_shapes() {
            let Some(name) = self.name_of(&source) else {
                return Err(model_refusal(&format!("files of the architecture {} have no {source}", self.name)));
            };
            let reordered_heads = self.reordered_heads(&source, model);
            let values = PlannedValues::Weight { source, reordered_heads };
            planned.push(PlannedTensor { name, storage: storage(&shape, dtype), shape, values });
        }
        if let Some(factors) = rope::factors(model) {
            if !self.takes_factors {
                let message = format!("files of the architecture {} take no llama3 rope_scaling", self.name);
                return Err(model_refusal(&message));
            }
            planned.push(PlannedTensor {
                name: rope::FACTORS.to_owned(),
                shape: vec![factors.len()],
                storage: Storage::Plain(Dtype::F32),
                values: PlannedValues::Given(factors),
            });
        }
        Ok(planned)
    }

    /// GGUF's name of the tensor that Hugging Face's files call `source`.
    fn name_of(&self, source: &str) -> Option<String> {
        let (module, kind) = source.rsplit_once('.')?;
        let Some(of_layer) = module.strip_prefix("model.layers.") else {
            let (_, name) = OUTER.iter().find(|(outer, _)| *outer == module)?;
            return Some(format!("{name}.{kind}"));
        };
        let (layer, module) = of_layer.split_once('.')?;
        let is_extra = kind == "bias" || module.ends_with("_norm");
        if is_extra && !self.extras.contains(&format!("{module}.{kind}").as_str()) {
            return None;
        }
        let (_, name) = OF_LAYERS.iter().find(|(inner, _)| *inner == module)?;
        Some(format!("blk.{layer}.{name}.{kind}"))
    }

    fn reordered_heads(&self, source: &str, model: &ModelConfig) -> Option<usize> {
        if !self.rotates_neighbours {
            None
        } else if source.contains(".self_attn.q_proj.") {
            Some(model.num_attention_heads)
        } else if source.contains(".self_attn.k_proj.") {
            Some(model.num_key_value_heads)
        } else {
            None
        }
    }

    /// Writes the keys of `model`, which is called `title` and has its matrices in `dtype`.
    ///
    /// # Errors
    /// [`Exit::Config`](crate::runtime::error::Exit::Config) for settings that llama.cpp does not have.
    pub(super) fn describe(
        &self,
        header: &mut GgufHeader,
        model: &ModelConfig,
        title: &str,
        dtype: ExportDtype,
    ) -> Result<()> {
        self.refuse_other_layers(model)?;
        header.string("general.architecture", self.name);
        header.string("general.type", "model");
        header.string("general.name", title);
        header.number("general.file_type", file_type(dtype));
        // The version of the layouts of blocks; readers want it wherever there may be any.
        header.number("general.quantization_version", 2);
        let numbers = [
            ("context_length", model.context_length()),
            ("embedding_length", model.hidden_size),
            ("block_count", model.num_hidden_layers),
            ("feed_forward_length", model.intermediate_size),
            ("attention.head_count", model.num_attention_heads),
            ("attention.head_count_kv", model.num_key_value_heads),
            ("attention.key_length", model.head_dim),
            ("attention.value_length", model.head_dim),
            ("rope.dimension_count", model.head_dim),
            ("vocab_size", model.vocab_size),
        ];
        for (key, value) in numbers {
            header.number(&self.key(key), value as u32);
        }
        header.float(&self.key("attention.layer_norm_rms_epsilon"), model.rms_norm_eps as f32);
        header.float(&self.key("rope.freq_base"), model.rope_theta as f32);
        model.rope_scaling.map_or(Ok(()), |scaling| rope::describe(header, self.name, &scaling))
    }

    /// Refuses layers that see less of a text than llama.cpp would show them, and other layers without rotation than it would choose.
    fn refuse_other_layers(&self, model: &ModelConfig) -> Result<()> {
        for layer in 0..model.num_hidden_layers {
            if let Some(window) = model.layer_window(layer).filter(|window| *window < model.context_length()) {
                return Err(model_refusal(&format!(
                    "it has a sliding_window of {window}, which llama.cpp does not apply"
                )));
            }
            let rotates = self.every_nth_without_rope.is_none_or(|n| !(layer + 1).is_multiple_of(n));
            if model.layer_rotates(layer) != rotates {
                let how = if rotates { "does" } else { "does not" };
                return Err(model_refusal(&format!(
                    "its layer {layer} rotates otherwise than in llama.cpp, where it {how}"
                )));
            }
        }
        Ok(())
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }
}

/// Vectors stay in f32, which costs nothing and which readers expect. A block of q8_0 must not reach into the next row.
fn storage(shape: &[usize], dtype: ExportDtype) -> Storage {
    let [_, columns] = shape else { return Storage::Plain(Dtype::F32) };
    match dtype.of_weight_files() {
        Some(dtype) => Storage::Plain(dtype),
        None if columns.is_multiple_of(BLOCK) => Storage::Q8_0,
        None => Storage::Plain(Dtype::F16),
    }
}

/// llama.cpp's number for a file whose matrices are mostly of this type.
fn file_type(dtype: ExportDtype) -> u32 {
    match dtype {
        ExportDtype::F32 => 0,
        ExportDtype::F16 => 1,
        ExportDtype::Q8_0 => 7,
        ExportDtype::Bf16 => 32,
    }
}

/// `values` with the rows of each head in pairs: row i of its first half, then row i of its second. `row` is the length of a row, 1 of
/// a bias.
pub(super) fn pair_rows(values: &[f32], heads: usize, row: usize) -> Vec<f32> {
    let mut paired = Vec::with_capacity(values.len());
    for head in values.chunks_exact(values.len() / heads) {
        let (first, second) = head.split_at(head.len() / 2);
        for (upper, lower) in first.chunks_exact(row).zip(second.chunks_exact(row)) {
            paired.extend_from_slice(upper);
            paired.extend_from_slice(lower);
        }
    }
    paired
}
