//! The keys that choose among names: one enum for each, with every name written once, beside its variant.

use std::fmt::Debug;

use serde::{Deserialize, Serialize, Serializer};

/// An enum whose variants have names in configuration files.
pub trait Choice: Copy + Default + Debug + PartialEq + 'static {
    /// All names, in the order in which messages and the reference list them.
    const NAMES: &'static [&'static str];

    /// The variant called `name`.
    fn from_name(name: &str) -> Option<Self>;

    /// What configuration files call it.
    fn name(self) -> &'static str;
}

/// Declares enums of named variants.
macro_rules! choice {
    ($($(#[doc = $about:literal])+ $name:ident { $($(#[$about_variant:meta])* $variant:ident = $word:literal,)+ })+) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$about_variant])* #[serde(rename = $word)] $variant,)+
        }

        impl Choice for $name {
            const NAMES: &'static [&'static str] = &[$($word),+];

            fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    )+};
}

choice! {
    /// `model.preset`: the shape of a known model.
    Preset {
        #[default]
        Llama1700M = "1.7b",
        Llama978M = "978m",
        Llama124M = "124m",
    }

    /// `model.architecture`: a family of models, by its `model_type` in Hugging Face's files.
    Architecture {
        #[default]
        Llama = "llama",
        Mistral = "mistral",
        /// Biases on q, k and v.
        Qwen2 = "qwen2",
        /// Norms of each head's query and key.
        Qwen3 = "qwen3",
        /// Some layers do not rotate.
        SmolLm3 = "smollm3",
    }

    /// `model.rope_scaling.rope_type`: how RoPE's frequencies are changed for texts longer than those of the first training.
    RopeType {
        #[default]
        Default = "default",
        Linear = "linear",
        Dynamic = "dynamic",
        Llama3 = "llama3",
        Yarn = "yarn",
    }

    /// `data.source`: a corpus that is built in.
    BuiltinCorpus {
        #[default]
        Stories = "stories",
    }

    /// The tokenizers that `data.tokenizer` can name without a path.
    TokenizerName {
        #[default]
        Gpt2 = "gpt2",
        /// A byte-level BPE that is trained on the run's own text.
        Train = "train",
    }

    /// `train.precision`: the operands of matrix products.
    PrecisionSetting {
        /// f32 on a CPU, bf16 on a GPU.
        #[default]
        Auto = "auto",
        F32 = "f32",
        Bf16 = "bf16",
    }

    /// `train.recompute`: what the backward pass computes again to save memory.
    RecomputeSetting {
        /// On a GPU the first of none, selective and full that fits into memory, on a CPU of selective and full.
        #[default]
        Auto = "auto",
        None = "none",
        Selective = "selective",
        Full = "full",
    }

    /// `optimizer.kind`: the update rule.
    OptimizerKind {
        #[default]
        AdamW = "adamw",
    }

    /// `optimizer.moments`: what AdamW stores its moments as.
    MomentsDtype {
        #[default]
        F32 = "f32",
        Bf16 = "bf16",
    }

    /// `schedule.kind`: the shape of the decay that follows the linear warm-up.
    ScheduleKind {
        /// Half a cosine from `lr` to `min_lr`, then constant.
        #[default]
        Cosine = "cosine",
        /// Warm-up, stable, decay: constant `lr`, then a straight line to `min_lr` over the tail of the horizon.
        Wsd = "wsd",
        /// `lr` throughout.
        Constant = "constant",
        /// A straight line from `lr` to `min_lr`, then constant.
        Linear = "linear",
    }

    /// `checkpoint.on_full`: what happens after the disk has refused several checkpoints in a row.
    DiskFullPolicy {
        #[default]
        Exit = "exit",
        Pause = "pause",
    }

    /// `guard.spike`: what happens to a step whose loss or gradient norm is far above those before it.
    SpikePolicy {
        Off = "off",
        #[default]
        Warn = "warn",
        /// The optimizer does not apply the update.
        Skip = "skip",
    }

    /// `sft.format`: the shape of the records.
    RecordFormat {
        /// The fields of each record decide.
        #[default]
        Auto = "auto",
        Alpaca = "alpaca",
        ShareGpt = "sharegpt",
        Messages = "messages",
        Prompt = "prompt",
    }

    /// The chat templates that `sft.template` can name without a path.
    TemplateName {
        #[default]
        Vicuna = "vicuna",
        Alpaca = "alpaca",
        ChatMl = "chatml",
        Llama2 = "llama2",
        Zephyr = "zephyr",
        /// The template in the model's directory.
        Model = "model",
    }

    /// `sft.train_on`: which tokens of a conversation are trained.
    TrainOn {
        /// Every answer that may be trained.
        #[default]
        Answers = "answers",
        /// The last answer, if it may be trained.
        Last = "last_answer",
        /// The whole text but for answers that may not be trained.
        All = "all",
    }

    /// `lora.targets`: a linear layer of a block that can have an adapter.
    LoraTarget {
        #[default]
        QProj = "q_proj",
        KProj = "k_proj",
        VProj = "v_proj",
        OProj = "o_proj",
        GateProj = "gate_proj",
        UpProj = "up_proj",
        DownProj = "down_proj",
    }

    /// `sft.roles`: who speaks in a turn, as chat templates name it.
    Role {
        #[default]
        User = "user",
        Assistant = "assistant",
        System = "system",
        Tool = "tool",
    }
}

impl LoraTarget {
    /// All linear layers of a block, in the order of its products.
    pub const ALL: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];
}

/// The value of a key that takes a name that is built in, or a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameOrPath<T> {
    Name(T),
    /// As it is written; it may begin with `~/`.
    Path(String),
}

impl<T: Choice> NameOrPath<T> {
    /// As configuration files write it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Name(name) => name.name(),
            Self::Path(path) => path,
        }
    }

    /// Whether it is neither a name that is built in nor looks like a path, which has a `/` or a `.` in it.
    pub(super) fn is_unknown_name(&self) -> bool {
        matches!(self, Self::Path(path) if !path.contains(['/', '.']))
    }
}

impl<T: Choice> From<&str> for NameOrPath<T> {
    fn from(text: &str) -> Self {
        T::from_name(text).map_or_else(|| Self::Path(text.to_owned()), Self::Name)
    }
}

impl<T: Choice> Default for NameOrPath<T> {
    fn default() -> Self {
        Self::Name(T::default())
    }
}

impl<T: Choice> Serialize for NameOrPath<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_names<T: Choice>() {
        for name in T::NAMES {
            assert_eq!(T::from_name(name).unwrap().name(), *name);
        }
        assert!(T::NAMES.contains(&T::default().name()));
        assert_eq!(T::from_name("none of them"), None);
    }

    #[test]
    fn names_and_variants_agree() {
        check_names::<Preset>();
        check_names::<Architecture>();
        check_names::<RopeType>();
        check_names::<ScheduleKind>();
        check_names::<TemplateName>();
        check_names::<Role>();
        check_names::<super::super::Meaning>();
        assert_eq!(LoraTarget::ALL.map(LoraTarget::name), LoraTarget::NAMES);
        assert_eq!(Architecture::ALL.map(Architecture::name), Architecture::NAMES);
        assert_eq!(serde_json::to_string(&TrainOn::Last).unwrap(), "\"last_answer\"");
        assert_eq!(serde_json::from_str::<ScheduleKind>("\"wsd\"").unwrap(), ScheduleKind::Wsd);
    }

    #[test]
    fn a_name_is_no_path() {
        assert_eq!(NameOrPath::from("gpt2"), NameOrPath::Name(TokenizerName::Gpt2));
        let path = NameOrPath::<TokenizerName>::from("./gpt2");
        assert_eq!((path.as_str(), path.is_unknown_name()), ("./gpt2", false));
        assert!(NameOrPath::<TokenizerName>::from("gtp2").is_unknown_name());
    }
}
