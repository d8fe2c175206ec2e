//! Every key of a configuration file: its type, default, allowed values and meaning, in one place.
//!
//! The doc comment, default and check written beside a field are the only description of that key. Reading and
//! checking a file, the list of valid keys and the reference table of docs/configuration.md all come from them, so none can fall
//! out of step. Rules that join several keys are in `resolve.rs`; the names of a key that is chosen by name are those of
//! its enum in `choices.rs`.

use serde::Serialize;

use super::choices::{
    Architecture, BuiltinCorpus, DiskFullPolicy, MomentsDtype, NameOrPath, OptimizerKind, PrecisionSetting, Preset,
    RecomputeSetting, ScheduleKind, SpikePolicy, TokenizerName,
};
use super::field::Check::{Any, AtLeast, LeftOpen, RightOpen, Within};
use super::field::Default::{Derived, Required, Value};
use super::field::{Field, Section, Spec, Visitor};
use super::rope_scaling::RopeScaling;

/// Stories are held in memory as tokens, some 200 each: 4 GB.
const MOST_STORIES: f64 = 5_000_000.0;

/// Declares a section: the struct, and the visit of its fields with key, documentation, default and check.
macro_rules! section {
    ($(#[doc = $about:literal])+ $name:ident = $section:literal {
        $($(#[doc = $doc:literal])+ $field:ident: $ty:ty = $default:expr, $check:expr;)+
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $ty,)+
        }

        impl Section for $name {
            const NAME: &'static str = $section;
            const ABOUT: &'static str = concat!($($about),+);

            fn visit<V: Visitor + ?Sized>(visitor: &mut V) -> Self {
                Self {
                    $($field: visitor.field(Spec {
                        key: concat!($section, ".", stringify!($field)),
                        doc: concat!($($doc),+),
                        default: $default,
                        check: $check,
                    }),)+
                }
            }

            fn write(&self, each: &mut dyn FnMut(&'static str, Option<String>)) {
                $(each(concat!($section, ".", stringify!($field)), self.$field.write());)+
            }
        }
    };
}

mod sft;

pub use sft::{LoraConfig, SftConfig};

/// A whole configuration, complete and checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    pub model: ModelConfig,
    pub data: DataConfig,
    pub train: TrainConfig,
    pub optimizer: OptimizerConfig,
    pub schedule: ScheduleConfig,
    pub checkpoint: CheckpointConfig,
    pub guard: GuardConfig,
    pub eval: EvalConfig,
    pub sample: SampleConfig,
    pub log: LogConfig,
    #[serde(skip_serializing_if = "SftConfig::is_absent")]
    pub sft: SftConfig,
    #[serde(skip_serializing_if = "LoraConfig::is_absent")]
    pub lora: LoraConfig,
}

impl Config {
    /// Visits every key of every section, in the order of the file and of the reference.
    pub(super) fn visit(visitor: &mut impl Visitor) -> Self {
        Self {
            model: visitor.section(),
            data: visitor.section(),
            train: visitor.section(),
            optimizer: visitor.section(),
            schedule: visitor.section(),
            checkpoint: visitor.section(),
            guard: visitor.section(),
            eval: visitor.section(),
            sample: visitor.section(),
            log: visitor.section(),
            sft: visitor.section(),
            lora: visitor.section(),
        }
    }

    /// Calls `each` with every key and its value as TOML (`None` if absent), in the order of [`Config::visit`].
    pub(super) fn write(&self, each: &mut dyn FnMut(&'static str, Option<String>)) {
        self.model.write(each);
        self.data.write(each);
        self.train.write(each);
        self.optimizer.write(each);
        self.schedule.write(each);
        self.checkpoint.write(each);
        self.guard.write(each);
        self.eval.write(each);
        self.sample.write(each);
        self.log.write(each);
        if self.is_sft() {
            self.sft.write(each);
            self.lora.write(each);
        }
    }

    /// Whether it is one of fine-tuning.
    pub fn is_sft(&self) -> bool {
        !self.sft.is_absent()
    }
}

/// The one key that is no field: it stands for others, and a resolved configuration has those instead.
pub(super) fn preset() -> Spec<Option<Preset>> {
    Spec {
        key: "model.preset",
        doc: " The shape of a known model; keys given beside it override it.",
        default: Derived("none"),
        check: Any,
    }
}

// The upper bounds of sizes are far beyond any model of this program; they keep every product of them within 64 bits.
section! {
    /// The network, under Hugging Face's names.
    ModelConfig = "model" {
        /// The family: Llama, or one that differs from it by a little. Its name is that of Hugging Face's `model_type`.
        architecture: Architecture = Value(Architecture::Llama), Any;
        /// Width of the residual stream.
        hidden_size: usize = Required, Within(1.0, 1_048_576.0);
        /// Width of the SwiGLU feed-forward layer.
        intermediate_size: usize = Required, Within(1.0, 4_194_304.0);
        /// Number of transformer blocks.
        num_hidden_layers: usize = Required, Within(1.0, 1024.0);
        /// Number of query heads.
        num_attention_heads: usize = Required, Within(1.0, 1024.0);
        /// Number of key and value heads; divides num_attention_heads.
        num_key_value_heads: usize = Derived("num_attention_heads"), Within(1.0, 1024.0);
        /// Width of one head; even, because RoPE turns pairs.
        head_dim: usize = Derived("hidden_size / num_attention_heads"), Within(2.0, 4096.0);
        /// Rows of the embedding, padding included; at least the tokenizer's number of ids.
        vocab_size: usize = Required, Within(2.0, 16_777_216.0);
        /// Longest context the model is made for.
        max_position_embeddings: usize = Derived("train.sequence_length"), Within(1.0, 1_073_741_823.0);
        /// Added to the mean square in every RMSNorm.
        rms_norm_eps: f64 = Value(1e-5), LeftOpen(0.0, 0.1);
        /// Base of the RoPE frequencies.
        rope_theta: f64 = Value(500_000.0), AtLeast(1.0);
        /// RoPE's frequencies for texts longer than those of the first training, as Hugging Face's `rope_scaling`: rope_type
        /// ("linear", "dynamic", "llama3" or "yarn"), factor, and what else that type takes.
        rope_scaling: Option<RopeScaling> = Derived("none"), Any;
        /// For smollm3: a number for each layer, 1 if it rotates queries and keys, 0 if it does not.
        no_rope_layers: Option<Vec<usize>> = Derived("for smollm3 every fourth is 0, else none"), Within(0.0, 1.0);
        /// For mistral, qwen2 and qwen3: how many positions back, its own included, a token sees.
        sliding_window: Option<usize> = Derived("none"), Within(1.0, 1_073_741_823.0);
        /// For qwen2 and qwen3: the first layers that see everything although there is a sliding_window.
        max_window_layers: usize = Value(0), Within(0.0, 1024.0);
        /// For llama, qwen3 and smollm3: whether q, k, v and o have biases. Those of q, k and v are a part of qwen2.
        attention_bias: bool = Value(false), Any;
        /// For llama and smollm3: whether gate, up and down have biases.
        mlp_bias: bool = Value(false), Any;
        /// Whether the output head is the embedding matrix.
        tie_word_embeddings: bool = Value(false), Any;
        /// Standard deviation of the initial linear and embedding weights.
        initializer_range: f64 = Value(0.02), LeftOpen(0.0, 10.0);
        /// Whether o_proj and down_proj start smaller by 1/sqrt(2 num_hidden_layers), as in GPT-2.
        residual_scaling: bool = Value(false), Any;
    }
}

section! {
    /// Text, tokenizer and the order of the data.
    DataConfig = "data" {
        /// Built-in corpus, instead of train: "stories" writes its own text and knows its exact entropy.
        source: Option<BuiltinCorpus> = Derived("none"), Any;
        /// Training data: text (.txt, .jsonl and .json, each plain, .gz or .zst, and .parquet), token shards, directories or
        /// globs of them.
        train: Vec<String> = Value(Vec::new()), Any;
        /// Shares in which the entries of train are mixed, one number each; empty = every token once per pass.
        weights: Vec<f64> = Value(Vec::new()), LeftOpen(0.0, 1e9);
        /// Validation data, as train; when empty, the val shards of a prepared directory or val_fraction of raw text.
        val: Vec<String> = Value(Vec::new()), Any;
        /// "gpt2" (built in), "train" (a byte-level BPE of model.vocab_size ids learned from the run's own text), or
        /// the path of a tokenizer.json; with --init-from the default is that model's own.
        tokenizer: NameOrPath<TokenizerName> = Value(NameOrPath::Name(TokenizerName::Gpt2)), Any;
        /// Field of a record, or column of a .parquet file, that holds the text.
        text_field: String = Value("text".into()), Any;
        /// String that separates the documents of a .txt file; without one a file is one document.
        text_separator: Option<String> = Derived("none"), Any;
        /// Share of the documents of raw text, or of conversations, held out when val is empty; of few documents, the end of
        /// the text. 0 = none.
        val_fraction: f64 = Value(0.01), RightOpen(0.0, 1.0);
        /// Fixes the order of the data and the text of the built-in corpus.
        seed: u64 = Value(1), Any;
        /// Whether training windows are shuffled; false reads them in file order.
        shuffle: bool = Value(true), Any;
        /// Whether attention and positions stay inside a document; false lets a window be one context.
        document_mask: bool = Value(false), Any;
        /// Whether a resume may go on although the data differ from those the run began with.
        allow_change: bool = Value(false), Any;
        /// Number of training stories of the built-in corpus.
        stories: Option<u64> = Derived("what the run reads in one pass, at most 100 million tokens"), Within(1.0, MOST_STORIES);
        /// Number of validation stories of the built-in corpus.
        val_stories: u64 = Value(1000), Within(1.0, MOST_STORIES);
    }
}

section! {
    /// Batch and length of the run.
    TrainConfig = "train" {
        /// Tokens the model sees at once.
        sequence_length: usize = Required, Within(1.0, 16_777_216.0);
        /// Sequences in one forward and backward pass; bounds memory, changes the result by rounding only.
        micro_batch_size: usize = Required, Within(1.0, 1_048_576.0);
        /// Tokens in one optimizer step; a multiple of micro_batch_size x sequence_length.
        tokens_per_step: usize = Derived("micro_batch_size x sequence_length"), AtLeast(1.0);
        /// Equal parts of a step's sequences whose gradients are summed by themselves, then pairwise: a power of two. As many ranks
        /// as divide it train with the same bits; each more than one for a rank takes memory for sums.
        lanes: Option<usize> = Derived("the number of ranks that the run starts with"), Within(1.0, 65_536.0);
        /// Number of optimizer steps of the run.
        steps: u64 = Required, AtLeast(1.0);
        /// Fixes initialisation and sampling.
        seed: u64 = Value(1), Any;
        /// Operands of matrix products: "auto" is f32 on every CPU and bf16 on CUDA. Whether bf16 is faster on a CPU depends on its
        /// instructions: `plan --probe` and `doctor` measure it. Master weights and sums are f32 always.
        precision: PrecisionSetting = Value(PrecisionSetting::Auto), Any;
        /// What backward computes again, to the same bits, to save memory: "none", "selective" (norms and SwiGLU: a third
        /// of the activations, nearly free) or "full" (blocks: nearly all of them, a quarter more work); "auto" is the first of
        /// them that fits into memory (on a CPU without "none").
        recompute: RecomputeSetting = Value(RecomputeSetting::Auto), Any;
    }
}

section! {
    /// The optimizer.
    OptimizerConfig = "optimizer" {
        /// Update rule: AdamW with decoupled weight decay.
        kind: OptimizerKind = Value(OptimizerKind::AdamW), Any;
        /// Peak learning rate.
        lr: f64 = Value(6e-4), LeftOpen(0.0, 100.0);
        /// Decay of the first and of the second moment.
        betas: [f64; 2] = Value([0.9, 0.95]), RightOpen(0.0, 1.0);
        /// Added to the root of the second moment.
        eps: f64 = Value(1e-8), LeftOpen(0.0, 1.0);
        /// Decay of tensors with two dimensions, as a multiple of the learning rate; norms have none.
        weight_decay: f64 = Value(0.1), Within(0.0, 10.0);
        /// What AdamW keeps its moments in: "bf16" is rounded up or down by chance, right on average, and saves 4 bytes a parameter
        /// of a GPU's memory.
        moments: MomentsDtype = Value(MomentsDtype::F32), Any;
        /// Largest global norm of the gradient; larger ones are scaled down. 0 = no clipping.
        grad_clip: f64 = Value(1.0), AtLeast(0.0);
    }
}

section! {
    /// The learning rate over the steps.
    ScheduleConfig = "schedule" {
        /// Shape after the warm-up: "cosine" or "linear" down to min_lr, "wsd" (stable, then a linear tail) or
        /// "constant".
        kind: ScheduleKind = Value(ScheduleKind::Cosine), Any;
        /// Steps of linear warm-up.
        warmup_steps: u64 = Value(0), Any;
        /// For cosine and linear the step that reaches min_lr, warm-up included; for wsd the length of the tail.
        /// Always set in a resolved configuration, so that a resume cannot move it.
        decay_steps: Option<u64> = Derived("train.steps; for wsd 20 % of total_steps"), AtLeast(1.0);
        /// For wsd the step that reaches min_lr, the end of the tail. A resume with more train.steps moves it while the tail
        /// has not started, never later.
        total_steps: Option<u64> = Derived("train.steps for wsd, else none"), AtLeast(1.0);
        /// Step after which the schedule started anew, from which the steps above are counted: `resume --reset schedule`.
        start_step: Option<u64> = Derived("none"), Any;
        /// Learning rate at the end of the decay and after it.
        min_lr: f64 = Value(0.0), Within(0.0, 100.0);
    }
}

section! {
    /// What is saved, and what is kept.
    CheckpointConfig = "checkpoint" {
        /// Steps between checkpoints, beside the last step. 0 = only the last.
        every: u64 = Value(1000), Any;
        /// Newest checkpoints to keep.
        keep: usize = Value(2), AtLeast(1.0);
        /// Checkpoints at multiples of this step are kept for good. 0 = none.
        keep_every: u64 = Value(0), Any;
        /// Whether the steps 1, 2, 4, 8... are saved as well and kept for good: early training in close-up.
        log_spaced: bool = Value(false), Any;
        /// Whether the last step is saved. A run that is only measured can do without; a request to stop saves all the same.
        last: bool = Value(true), Any;
        /// Whether training goes on while a checkpoint is written; takes memory for a copy of weights and moments.
        background: bool = Value(true), Any;
        /// When the disk has refused three checkpoints in a row: "exit" (74), or "pause" until it takes one.
        on_full: DiskFullPolicy = Value(DiskFullPolicy::Exit), Any;
    }
}

section! {
    /// What is done about steps that go wrong. An update that is not finite is always refused; three in a row (or ten in
    /// a thousand steps) take the run back to its last good checkpoint and past the data that followed it.
    GuardConfig = "guard" {
        /// What happens to a step whose loss or gradient norm is far above the last 128, or, in the first steps, whose loss is
        /// more than twice the largest so far and that of guessing: "warn", "skip" its update, or "off".
        spike: SpikePolicy = Value(SpikePolicy::Warn), Any;
        /// Standard deviations above the mean beyond which a value is a spike.
        spike_sigma: f64 = Value(6.0), LeftOpen(0.0, 1e6);
        /// Rollbacks after which the run is given up (76).
        rollbacks: u64 = Value(2), Any;
        /// Seconds without progress after which a run is stuck and ends (70): at least these, and at least ten usual steps; thirty
        /// times these until three steps have been timed.
        hang_seconds: u64 = Value(120), Within(1.0, 1e9);
    }
}

section! {
    /// Validation during the run.
    EvalConfig = "eval" {
        /// Steps between validations. 0 = only at the start and at the end.
        every: u64 = Value(250), Any;
        /// Tokens of the validation split that are used, at most; always the same ones.
        val_tokens: u64 = Value(1_048_576), AtLeast(1.0);
        /// Benchmark tasks to run as well, by their names in the lm-evaluation-harness.
        tasks: Vec<String> = Value(Vec::new()), Any;
        /// Steps between runs of the tasks, which come with a validation. 0 = with every one.
        tasks_every: u64 = Value(0), Any;
        /// Documents of each task, at most; always the first ones.
        limit: Option<u64> = Derived("all"), AtLeast(1.0);
        /// Examples before each question of the tasks.
        num_fewshot: usize = Value(0), Any;
        /// Directory with the tasks' data, as for `llama-lite eval --data-dir`.
        data_dir: Option<String> = Derived("none"), Any;
    }
}

section! {
    /// Samples written during the run.
    SampleConfig = "sample" {
        /// Steps between samples. 0 = none.
        every: u64 = Derived("eval.every if there are prompts, else 0"), Any;
        /// Texts to be continued.
        prompts: Vec<String> = Value(Vec::new()), Any;
        /// Longest continuation, in tokens.
        max_tokens: usize = Value(64), AtLeast(1.0);
        /// Divides the logits; 0 = always the most likely token.
        temperature: f64 = Value(0.8), Within(0.0, 100.0);
        /// Draw among this many most likely tokens. 0 = all.
        top_k: usize = Value(50), Any;
        /// Draw among the most likely tokens that together have this probability.
        top_p: f64 = Value(1.0), LeftOpen(0.0, 1.0);
        /// Fixes the draws.
        seed: u64 = Value(1), Any;
    }
}

section! {
    /// Logging.
    LogConfig = "log" {
        /// Steps between lines of the progress log, at most one every few seconds; metrics.jsonl has every step.
        every: u64 = Value(1), AtLeast(1.0);
        /// Steps between records of what every layer does: norms of gradient, weights and update, AdamW's step, the largest logits. 0 = none.
        layers_every: u64 = Value(50), Any;
        /// Whether the loss of every sequence is written, into sequences.jsonl: "why" shows it.
        sequences: bool = Value(false), Any;
        /// Steps between comparisons of the weights of all ranks: one that differs ends the run before anything is saved. 0 = none.
        desync_every: u64 = Value(1000), Any;
        /// Whether TensorBoard files are written, into the run's tensorboard/.
        tensorboard: bool = Value(false), Any;
    }
}
