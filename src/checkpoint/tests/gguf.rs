//! GGUF files, read again by candle's reader, which shares no code with what writes them.

mod architectures;
mod vocabulary;

use std::fs::File;

use candle_core::quantized::gguf_file::{Content, Value as Entry};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::{Dtype, ExportDtype, GgufExport, export_gguf};
use crate::tokenizer::Tokenizer;

const ROWS: usize = 304;

fn model() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        // No multiple of a block of q8_0, so that one matrix has rows which cannot be divided.
        intermediate_size: 40,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        vocab_size: ROWS,
        ..toy_model(false)
    }
}

fn trained_tokenizer() -> Value {
    let text = "The cat sat on the mat, and the rat sat on the cat's hat in 1984.";
    let tokenizer = Tokenizer::train(std::iter::repeat_n(text, 20), 290).unwrap();
    serde_json::from_slice(tokenizer.json()).unwrap()
}

/// A model in a plain directory with the tokenizer `root` and its settings.
struct Example {
    dir: tempfile::TempDir,
    toy: Toy,
}

impl Example {
    fn new(model: ModelConfig, root: &Value, settings: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let toy = Toy::of(model, 3);
        super::hf_dirs::write_hf(&dir.path().join("model"), &toy, Dtype::F32);
        std::fs::write(dir.path().join("model/tokenizer.json"), root.to_string()).unwrap();
        std::fs::write(dir.path().join("model/tokenizer_config.json"), settings.to_string()).unwrap();
        Self { dir, toy }
    }

    fn usual() -> Self {
        Self::new(model(), &trained_tokenizer(), &json!({}))
    }

    fn export(&self, dtype: ExportDtype, trim_vocab: bool) -> Result<Read> {
        let source = Opened::open(&self.dir.path().join("model")).unwrap();
        let tokenizer = Tokenizer::from_dir(&source.dir).unwrap();
        let export = GgufExport { dtype, tokenizer: &tokenizer, chat_template: Some("{{ messages }}"), trim_vocab };
        let path = self.dir.path().join(format!("{dtype:?}-{trim_vocab}.gguf"));
        let remark = export_gguf(&source, &path, &export)?;
        let mut file = File::open(&path).unwrap();
        let content = Content::read(&mut file).unwrap();
        Ok(Read { content, file, remark })
    }

    fn refusal(&self) -> String {
        let error = self.export(ExportDtype::F16, false).err().expect("accepted");
        assert_eq!(exit_of(&error), Exit::Config);
        assert_eq!(listing(self.dir.path()), ["model"], "nothing is left behind");
        error.to_string()
    }

    fn weight(&self, name: &str) -> &[f32] {
        &self.toy.weights.iter().find(|(other, ..)| other == name).unwrap().2
    }
}

/// A file, as candle reads it.
struct Read {
    content: Content,
    file: File,
    /// What the export said of texts that get other tokens.
    remark: Option<&'static str>,
}

impl Read {
    fn tensor(&mut self, name: &str) -> QTensor {
        self.content.tensor(&mut self.file, name, &Device::Cpu).unwrap()
    }

    fn values(&mut self, name: &str) -> Vec<f32> {
        let tensor = self.tensor(name).dequantize(&Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn entry(&self, key: &str) -> &Entry {
        self.content.metadata.get(key).unwrap_or_else(|| panic!("no {key}"))
    }

    fn text(&self, key: &str) -> &str {
        self.entry(key).to_string().unwrap()
    }

    fn number(&self, key: &str) -> u32 {
        self.entry(key).to_u32().unwrap()
    }

    fn list(&self, key: &str) -> &[Entry] {
        self.entry(key).to_vec().unwrap()
    }
}

#[test]
fn every_tensor_and_key_is_read_again() {
    let example = Example::usual();
    let mut read = example.export(ExportDtype::F32, false).unwrap();
    assert_eq!(read.content.tensor_infos.len(), example.toy.weights.len());
    let same = [
        ("token_embd.weight", "model.embed_tokens.weight", vec![ROWS, 64]),
        ("output.weight", "lm_head.weight", vec![ROWS, 64]),
        ("output_norm.weight", "model.norm.weight", vec![64]),
        ("blk.1.attn_norm.weight", "model.layers.1.input_layernorm.weight", vec![64]),
        ("blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight", vec![32, 64]),
        ("blk.1.attn_output.weight", "model.layers.1.self_attn.o_proj.weight", vec![64, 64]),
        ("blk.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight", vec![64]),
        ("blk.1.ffn_gate.weight", "model.layers.1.mlp.gate_proj.weight", vec![40, 64]),
        ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight", vec![40, 64]),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight", vec![64, 40]),
    ];
    for (name, source, shape) in same {
        assert_eq!(read.content.tensor_infos[name].shape.dims(), shape, "{name}");
        assert_eq!(read.values(name), example.weight(source), "{name}");
    }
    assert_eq!((read.text("general.architecture"), read.number("general.file_type")), ("llama", 0));
    let numbers = [
        ("context_length", 32),
        ("embedding_length", 64),
        ("block_count", 2),
        ("feed_forward_length", 40),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
        ("rope.dimension_count", 16),
        ("vocab_size", ROWS as u32),
    ];
    for (key, value) in numbers {
        assert_eq!(read.number(&format!("llama.{key}")), value, "{key}");
    }
    assert_eq!(read.entry("llama.rope.freq_base").to_f32().unwrap(), 500_000.0);
    assert_eq!(read.entry("llama.attention.layer_norm_rms_epsilon").to_f32().unwrap(), 1e-5);
    assert_eq!(read.text("tokenizer.chat_template"), "{{ messages }}");
}

/// Attention scores of every head between two positions, from the weights of q and k, with `rotate` for the rotary embedding.
fn scores(q: &[f32], k: &[f32], rotate: fn(&[f32], f32) -> Vec<f32>) -> Vec<f32> {
    let ModelConfig { hidden_size, head_dim, num_attention_heads, num_key_value_heads, .. } = model();
    let input: Vec<f32> = (0..hidden_size).map(|i| (i as f32 * 0.7).sin()).collect();
    let project = |weight: &[f32]| -> Vec<f32> {
        weight.chunks_exact(hidden_size).map(|row| row.iter().zip(&input).map(|(w, x)| w * x).sum()).collect()
    };
    let (q, k) = (project(q), project(k));
    let group = num_attention_heads / num_key_value_heads;
    let heads = q.chunks_exact(head_dim).enumerate();
    heads
        .map(|(head, q)| {
            let k = &k[head / group * head_dim..][..head_dim];
            rotate(q, 11.0).iter().zip(rotate(k, 4.0)).map(|(q, k)| q * k).sum()
        })
        .collect()
}

/// The pair `(first, second)` of frequency `i` of a head with `width` rows, at `position`.
fn turned((first, second): (f32, f32), i: usize, width: usize, position: f32) -> (f32, f32) {
    let (sin, cos) = (position * 500_000.0_f32.powf(-2.0 * i as f32 / width as f32)).sin_cos();
    (first * cos - second * sin, first * sin + second * cos)
}

/// As Hugging Face's files mean it.
fn rotate_halves(head: &[f32], position: f32) -> Vec<f32> {
    let half = head.len() / 2;
    let mut out = head.to_vec();
    for i in 0..half {
        (out[i], out[i + half]) = turned((head[i], head[i + half]), i, head.len(), position);
    }
    out
}

/// As llama.cpp does for Llama.
fn rotate_neighbours(head: &[f32], position: f32) -> Vec<f32> {
    let mut out = head.to_vec();
    for i in 0..head.len() / 2 {
        (out[2 * i], out[2 * i + 1]) = turned((head[2 * i], head[2 * i + 1]), i, head.len(), position);
    }
    out
}

#[test]
fn rows_are_in_the_order_in_which_llama_cpp_rotates_them() {
    let example = Example::usual();
    let mut read = example.export(ExportDtype::F32, false).unwrap();
    let [q, k] = ["q", "k"].map(|name| example.weight(&format!("model.layers.0.self_attn.{name}_proj.weight")));
    let written = ["blk.0.attn_q.weight", "blk.0.attn_k.weight"].map(|name| read.values(name));
    let expected = scores(q, k, rotate_halves);
    let close = |scores: &[f32]| expected.iter().zip(scores).all(|(a, b)| (a - b).abs() <= 1e-3 * (1.0 + a.abs()));
    assert!(close(&scores(&written[0], &written[1], rotate_neighbours)));
    assert!(!close(&scores(q, k, rotate_neighbours)), "the order makes a difference");
}

#[test]
fn number_formats_hold_what_they_can() {
    let example = Example::usual();
    for (dtype, stored, tolerance) in
        [(ExportDtype::F16, GgmlDType::F16, 2.0_f32.powi(-11)), (ExportDtype::Bf16, GgmlDType::BF16, 2.0_f32.powi(-8))]
    {
        let mut read = example.export(dtype, false).unwrap();
        assert_eq!(read.content.tensor_infos["blk.0.ffn_up.weight"].ggml_dtype, stored);
        assert_eq!(read.content.tensor_infos["blk.0.ffn_norm.weight"].ggml_dtype, GgmlDType::F32);
        let written = read.values("blk.0.ffn_up.weight");
        let weights = example.weight("model.layers.0.mlp.up_proj.weight");
        assert!(weights.iter().zip(&written).all(|(a, b)| (a - b).abs() <= tolerance * a.abs() + 1e-7), "{dtype:?}");
    }
    let mut read = example.export(ExportDtype::Q8_0, false).unwrap();
    let weights = example.weight("model.layers.0.mlp.up_proj.weight");
    let stored = read.tensor("blk.0.ffn_up.weight");
    assert_eq!(stored.dtype(), GgmlDType::Q8_0);
    let tensor = Tensor::from_slice(weights, (40, 64), &Device::Cpu).unwrap();
    let theirs = QTensor::quantize(&tensor, GgmlDType::Q8_0).unwrap();
    assert!(stored.data().unwrap() == theirs.data().unwrap(), "candle makes other blocks");
    for (block, written) in weights.chunks(32).zip(read.values("blk.0.ffn_up.weight").chunks(32)) {
        let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        // Half a step of the scale, and what f16 loses of the scale.
        let bound = largest / 254.0 + largest * 2.0_f32.powi(-11);
        assert!(block.iter().zip(written).all(|(a, b)| (a - b).abs() <= bound * 1.001));
    }
    let infos = &read.content.tensor_infos;
    assert_eq!(infos["token_embd.weight"].ggml_dtype, GgmlDType::Q8_0);
    assert_eq!(infos["blk.0.ffn_down.weight"].ggml_dtype, GgmlDType::F16, "40 columns are no multiple of 32");
    assert_eq!(infos["output_norm.weight"].ggml_dtype, GgmlDType::F32);
    assert_eq!(read.number("general.file_type"), 7);
}

#[test]
fn a_tied_head_is_not_written_twice() {
    let example = Example::new(ModelConfig { tie_word_embeddings: true, ..model() }, &trained_tokenizer(), &json!({}));
    let read = example.export(ExportDtype::F16, false).unwrap();
    assert!(!read.content.tensor_infos.contains_key("output.weight"));
    assert!(read.content.tensor_infos.contains_key("token_embd.weight"));
}

#[test]
fn what_cannot_be_stored_is_refused_and_leaves_nothing() {
    for (value, dtype, exit) in [
        (f32::NAN, ExportDtype::Q8_0, Exit::Diverged),
        (f32::NAN, ExportDtype::F32, Exit::Diverged),
        (1e5, ExportDtype::F16, Exit::Data),
        (1e7, ExportDtype::Q8_0, Exit::Data),
    ] {
        let mut example = Example::usual();
        example.toy.weights[0].2[77] = value;
        super::hf_dirs::write_hf(&example.dir.path().join("model"), &example.toy, Dtype::F32);
        let error = example.export(dtype, false).err().expect("accepted");
        assert_eq!(exit_of(&error), exit, "{value} in {dtype:?}");
        assert_eq!(listing(example.dir.path()), ["model"]);
    }
}
