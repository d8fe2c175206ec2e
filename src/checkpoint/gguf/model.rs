//! The model in a GGUF file: its keys, and the names, shapes and types of its tensors, in the dialect of its architecture.

use anyhow::Result;

use super::header::{BLOCK, GgufHeader, Storage};
use crate::checkpoint::dtype::{Dtype, ExportDtype};
use crate::config::ModelConfig;
use crate::runtime::error::{Exit, fail};

/// How llama.cpp reads the models of an architecture.
pub(super) struct Dialect {
    /// `general.architecture`, and what the model's keys begin with.
    name: &'static str,
    /// Whether rotary embeddings turn the rows 2i and 2i + 1 of a head together. In Hugging Face's files it is always the rows i and
    /// i + head_dim / 2.
    rotates_neighbours: bool,
}

const LLAMA: Dialect = Dialect { name: "llama", rotates_neighbours: true };

/// Modules outside the layers: Hugging Face's name and GGUF's.
const OUTER: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Modules of a layer: what follows `model.layers.N.`, and what follows `blk.N.`.
const OF_LAYERS: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// A tensor of the file, and where its values come from.
pub(super) struct PlannedTensor {
    /// Hugging Face's name.
    pub(super) source: String,
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) storage: Storage,
    /// Number of heads whose rows the file has in another order; none if it has them as they are.
    pub(super) reordered_heads: Option<usize>,
}

impl Dialect {
    pub(super) fn of(_model: &ModelConfig) -> &'static Dialect {
        &LLAMA
    }

    /// Every tensor of `model`, with matrices in `dtype`, in the order of [`ModelConfig::tensor_shapes`].
    ///
    /// # Errors
    /// [`Exit::Config`] for a tensor that readers of this dialect would not look for.
    pub(super) fn tensors(&self, model: &ModelConfig, dtype: ExportDtype) -> Result<Vec<PlannedTensor>> {
        let mut planned = Vec::new();
        for (source, shape) in model.tensor_shapes() {
            let Some(name) = name_in_gguf(&source) else {
                let message = format!("GGUF files of the architecture {} have no tensor {source}", self.name);
                return Err(fail(Exit::Config, message).hint("export with --format hf").into());
            };
            let reordered_heads = self.reordered_heads(&source, model);
            planned.push(PlannedTensor { storage: storage(&shape, dtype), source, name, shape, reordered_heads });
        }
        Ok(planned)
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
    pub(super) fn describe(&self, header: &mut GgufHeader, model: &ModelConfig, title: &str, dtype: ExportDtype) {
        header.string("general.architecture", self.name);
        header.string("general.type", "model");
        header.string("general.name", title);
        header.number("general.file_type", file_type(dtype));
        // The version of the layouts of blocks; readers want it wherever there may be any.
        header.number("general.quantization_version", 2);
        let numbers = [
            ("context_length", model.max_position_embeddings),
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
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }
}

/// GGUF's name of the tensor that Hugging Face's files call `source`.
fn name_in_gguf(source: &str) -> Option<String> {
    let (module, kind) = source.rsplit_once('.')?;
    let Some(of_layer) = module.strip_prefix("model.layers.") else {
        let (_, name) = OUTER.iter().find(|(outer, _)| *outer == module)?;
        return Some(format!("{name}.{kind}"));
    };
    let (layer, module) = of_layer.split_once('.')?;
    let (_, name) = OF_LAYERS.iter().find(|(inner, _)| *inner == module)?;
    Some(format!("blk.{layer}.{name}.{kind}"))
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
