//! The keys of fine-tuning: `llama-lite sft` reads them, other commands refuse them.

use std::path::Path;

use serde::Serialize;
use std::collections::BTreeMap;

use crate::config::Config;
use crate::config::choices::{LoraTarget, NameOrPath, RecordFormat, Role, TemplateName, TrainOn};
use crate::config::field::Check::{Any, LeftOpen, RightOpen, Within};
use crate::config::field::Default::{Derived, Value};
use crate::config::field::{Field as _, Section, Spec, Visitor};
use crate::config::record_shapes::Meaning;

section! {
    /// Supervised fine-tuning.
    SftConfig = "sft" {
        /// Directory of the model that is tuned; --ckpt sets it.
        base: Option<String> = Derived("--ckpt"), Any;
        /// What the records look like; "auto" finds out for each of them: see "llama-lite sft --help".
        format: RecordFormat = Value(RecordFormat::Auto), Any;
        /// What the data call a role: sft.roles.NAME = "user".
        roles: BTreeMap<String, Role> = Value(BTreeMap::new()), Any;
        /// What a field of the data stands for: sft.fields.NAME = "output"; "ignore" leaves it out.
        fields: BTreeMap<String, Meaning> = Value(BTreeMap::new()), Any;
        /// Largest share of the records that may be left out because they cannot be learned from.
        max_bad: f64 = Value(0.001), Within(0.0, 1.0);
        /// How a conversation is written: "vicuna", "alpaca", "chatml", "llama2", "zephyr", "model" (the template in the
        /// model's directory) or the path of a Jinja chat_template.
        template: NameOrPath<TemplateName> = Value(NameOrPath::Name(TemplateName::Vicuna)), Any;
        /// Special tokens that the tokenizer gets if it lacks them, such as ["<|im_start|>", "<|im_end|>"] for "chatml".
        new_tokens: Vec<String> = Value(Vec::new()), Any;
        /// What is trained: every answer, the last answer of a conversation, or its whole text.
        train_on: TrainOn = Value(TrainOn::Answers), Any;
        /// Passes over the data when train.steps is not given.
        epochs: f64 = Value(3.0), LeftOpen(0.0, 1e6);
        /// Whether several conversations share a row, each with a context of its own; false pads every one to a row.
        packing: bool = Value(true), Any;
        /// Largest share of the records of which the end of an answer may be cut off for being too long.
        max_truncated: f64 = Value(0.05), Within(0.0, 1.0);
        /// NEFTune's alpha: noise on the embeddings in training. 0 = none.
        neftune_alpha: f64 = Value(0.0), Within(0.0, 1e4);
        /// Held-out prompts that are answered, as [sample] says, at every validation, to see whether answers end by
        /// themselves. 0 = none.
        judged_prompts: usize = Value(16), Within(0.0, 1e6);
        /// Longest of those answers, in tokens.
        judged_tokens: usize = Value(256), Within(1.0, 1e6);
        /// Text or shards on which the loss is followed to see what is forgotten; when empty, the validation data of the
        /// run that the model is a checkpoint of.
        base_val: Vec<String> = Value(Vec::new()), Any;
    }
}

section! {
    /// Low-rank adapters beside frozen weights. Without this section all weights are trained.
    LoraConfig = "lora" {
        /// Rank of the adapters; 0 trains all weights.
        rank: usize = Derived("16 if there is a [lora], else 0"), Within(0.0, 65536.0);
        /// What adapters add is multiplied by alpha / rank.
        alpha: f64 = Derived("2 x rank"), LeftOpen(0.0, 1e6);
        /// Share of an adapter's inputs that are dropped in training.
        dropout: f64 = Value(0.0), RightOpen(0.0, 1.0);
        /// The linear layers that have adapters, by Hugging Face's names.
        targets: Vec<LoraTarget> = Value(LoraTarget::ALL.to_vec()), Any;
        /// Whether that factor is alpha / sqrt(rank) instead (rsLoRA).
        rslora: bool = Value(false), Any;
    }
}

impl SftConfig {
    /// Whether it is the configuration of another command.
    pub fn is_absent(&self) -> bool {
        self.base.is_none()
    }
}

impl Config {
    /// The directory of the model beside whose weights adapters are trained; none for other runs.
    pub fn adapter_base(&self) -> Option<&Path> {
        self.sft.base.as_deref().filter(|_| !self.lora.is_absent()).map(Path::new)
    }
}

impl LoraConfig {
    /// Whether all weights are trained.
    pub fn is_absent(&self) -> bool {
        self.rank == 0
    }
}
