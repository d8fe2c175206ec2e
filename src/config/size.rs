//! What follows from a configuration alone: a model's parameters, the arithmetic of a token and of a run.

use super::Config;
use super::schema::{EvalConfig, LogConfig, ModelConfig, TrainConfig};

impl Config {
    /// Floating-point operations of the run's steps after `step`.
    pub fn flops_after(&self, step: u64) -> f64 {
        let steps = self.train.steps.saturating_sub(step);
        let tokens = steps as f64 * self.train.tokens_per_step as f64;
        tokens * self.model.flops_per_token(self.train.sequence_length) as f64
    }
}

impl TrainConfig {
    /// Sequences in one optimizer step.
    pub fn sequences_per_step(&self) -> usize {
        self.tokens_per_step / self.sequence_length
    }

    /// Parts of a step whose gradients are summed by themselves; 1 where nothing is said.
    pub fn lanes(&self) -> usize {
        self.lanes.unwrap_or(1)
    }

    /// Forward and backward passes of a step with `size` sequences in a micro-batch: a pass stays within a lane.
    pub fn passes_per_step(&self, size: usize) -> usize {
        self.lanes() * (self.sequences_per_step() / self.lanes()).div_ceil(size)
    }

    /// Sequences in one forward and backward pass: a pass stays within a lane.
    pub fn sequences_per_pass(&self) -> usize {
        self.micro_batch_size.min(self.sequences_per_step() / self.lanes()).max(1)
    }
}

impl EvalConfig {
    /// Steps between runs of the benchmark tasks: `tasks_every`, where 0 means with every validation.
    pub fn steps_between_tasks(&self) -> u64 {
        if self.tasks_every > 0 { self.tasks_every } else { self.every }
    }
}

impl LogConfig {
    /// Whether step `step` is one whose layers are recorded.
    pub fn layers_due(&self, step: u64) -> bool {
        self.layers_every > 0 && step.is_multiple_of(self.layers_every)
    }
}

impl ModelConfig {
    /// Exact number of parameters. A tied head is the embedding and counts once.
    pub fn n_params(&self) -> u64 {
        self.count_elements(|_| true)
    }

    /// Number of parameters that a token is multiplied with: all matrices, the head included (tied or not), the
    /// embedding's look-up not.
    pub fn n_matmul_params(&self) -> u64 {
        self.count_elements(|parameter| self.is_matmul(parameter))
    }

    /// Floating-point operations per token of training, forward and backward, by the convention of the PaLM paper
    /// (appendix B): `6 N + 12 L T d` with N of [`Self::n_matmul_params`], attention counted in full (not halved for
    /// causality) over `sequence_length` positions, and d the joint width of the query heads. Recomputation is not
    /// counted.
    pub fn flops_per_token(&self, sequence_length: usize) -> u64 {
        let query_width = (self.num_attention_heads * self.head_dim) as u64;
        let attention = self.num_hidden_layers as u64 * sequence_length as u64 * query_width;
        6 * self.n_matmul_params() + 12 * attention
    }
}

#[cfg(test)]
mod tests {
    use crate::config::ParameterRole;

    use super::*;

    fn preset(name: &str) -> ModelConfig {
        let text = format!(
            "[model]\npreset = \"{name}\"\n[data]\nsource = \"stories\"\n\
             [train]\nsequence_length = 1024\nmicro_batch_size = 1\nsteps = 1\n"
        );
        Config::from_toml_str(&text, "test").unwrap().model
    }

    #[test]
    fn presets_have_the_recipes_sizes() {
        assert_eq!(preset("1.7b").n_params(), 1_716_144_128);
        assert_eq!(preset("978m").n_params(), 978_218_240);
        assert_eq!(preset("124m").n_params(), 190_532_352);
        let exported = ModelConfig { vocab_size: 50_257, ..preset("1.7b") };
        assert_eq!(exported.n_params(), 1_715_951_616);
    }

    #[test]
    fn weight_decay_split_of_the_1_7b() {
        let parameters = preset("1.7b").parameters();
        let (norms, matrices): (Vec<_>, Vec<_>) = parameters.iter().partition(|(_, p)| p.role == ParameterRole::Norm);
        assert_eq!(matrices.len(), 254);
        assert_eq!(norms.len(), 73);
        assert_eq!(norms.iter().map(|(_, p)| p.elements()).sum::<u64>(), 149_504);
    }

    #[test]
    fn matmul_parameters_do_not_depend_on_tying() {
        let untied = preset("1.7b");
        let tied = ModelConfig { tie_word_embeddings: true, ..untied.clone() };
        assert_eq!(untied.n_matmul_params(), 1_612_972_032);
        assert_eq!(tied.n_matmul_params(), untied.n_matmul_params());
        assert_eq!(untied.n_params() - tied.n_params(), 50_304 * 2048);
    }

    #[test]
    fn flops_follow_the_palm_formula() {
        // 6 * 1,612,972,032 + 12 * 36 * 1024 * 2048
        assert_eq!(preset("1.7b").flops_per_token(1024), 10_583_801_856);
    }

    #[test]
    fn the_largest_allowed_shape_does_not_overflow() {
        let largest = ModelConfig {
            hidden_size: 1_048_576,
            intermediate_size: 4_194_304,
            num_hidden_layers: 1024,
            num_attention_heads: 1024,
            num_key_value_heads: 1024,
            head_dim: 4096,
            vocab_size: 16_777_216,
            max_position_embeddings: 16_777_216,
            ..preset("1.7b")
        };
        // Debug builds panic on overflow.
        assert!(largest.flops_per_token(16_777_216) > 6 * largest.n_matmul_params());
    }
}
