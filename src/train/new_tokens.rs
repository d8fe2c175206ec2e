//! The rows of the tokens that fine-tuning adds (`sft.new_tokens`), in embedding and head.

use crate::checkpoint::Opened;
use crate::checkpoint::hf::{EMBED, LM_HEAD};
use crate::checkpoint::tensors::TensorSink;
use crate::config::Config;
use crate::runtime::error::{Exit, fail};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use rayon::prelude::*;

/// Which rows of a model's vocabulary are new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRows {
    /// Ids of the tokenizer before.
    old_ids: usize,
    /// Ids of the tokenizer with the new tokens.
    ids: usize,
    /// Rows of the model before, those without an id included.
    old_rows: usize,
}

impl NewRows {
    /// Those that the tokens of `config` take in the model `source`; none without new tokens.
    ///
    /// # Errors
    /// Those of the tokenizer; [`Exit::Config`] if it has more ids than the model has rows.
    pub fn of(config: &Config, source: &Opened) -> Result<Option<Self>> {
        if config.sft.new_tokens.is_empty() {
            return Ok(None);
        }
        let old = Tokenizer::from_dir(source.tokenizer_dir())?;
        let new = old.with_new_tokens(&config.sft.new_tokens)?;
        let rows = Self { old_ids: old.vocab_size(), ids: new.vocab_size(), old_rows: source.model.vocab_size };
        if rows.old_ids > rows.old_rows {
            let Self { old_ids, old_rows, .. } = rows;
            let message =
                format!("{}: the tokenizer has {old_ids} ids, the model {old_rows} rows", source.dir.display());
            return Err(fail(Exit::Config, message).hint("check that tokenizer and model belong together").into());
        }
        Ok(Some(rows))
    }

    /// Makes the vocabulary of `config` large enough. Rows that the model has to spare are used first.
    pub fn grow(self, config: &mut Config) {
        config.model.vocab_size = config.model.vocab_size.max(self.ids);
    }

    /// Hands the weights of `source` to `sink`, embedding and head with `rows` rows.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read_weights(self, source: &Opened, rows: usize, sink: &mut TensorSink<'_>) -> Result<()> {
        source.read_weights(&mut |name, shape, values| match *shape {
            [_, width] if [EMBED, LM_HEAD].contains(&name) => {
                sink(name, &[rows, width], self.filled(values, rows, width))
            }
            _ => sink(name, shape, values),
        })
    }

    /// `values`, the rows of `width` numbers of an embedding or head, as `rows` rows. The new ones are the mean of those that have an id
    /// of the old tokenizer, as transformers' resize_token_embeddings without its noise.
    fn filled(self, mut values: Vec<f32>, rows: usize, width: usize) -> Vec<f32> {
        let mean = mean_row(&values[..self.old_ids * width], width);
        values.resize(rows * width, 0.0);
        for (row, part) in values.chunks_exact_mut(width).enumerate() {
            // Rows to spare that remain so keep what they hold.
            if (self.old_ids..self.ids).contains(&row) || row >= self.old_rows {
                part.copy_from_slice(&mean);
            }
        }
        values
    }
}

/// The mean of rows of `width` numbers. Each column is added up in f64 from the first row to the last, and rounded once, so that the
/// result does not depend on threads.
fn mean_row(rows: &[f32], width: usize) -> Vec<f32> {
    let count = rows.len() / width;
    let columns = (0..width).into_par_iter();
    let mean = |column: usize| rows[column..].iter().step_by(width).map(|x| f64::from(*x)).sum::<f64>() / count as f64;
    columns.map(|column| mean(column) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [f32; 8] = [1.0, 10.0, 2.0, 20.0, 6.0, 60.0, -9.0, -9.0];

    #[test]
    fn spare_rows_are_used_first_and_others_are_appended() {
        // Three ids in four rows, two new tokens.
        let rows = NewRows { old_ids: 3, ids: 5, old_rows: 4 };
        let want = [&OLD[..6], &[3.0, 30.0], &[3.0, 30.0]].concat();
        assert_eq!(rows.filled(OLD.to_vec(), 5, 2), want);
        // The same in a vocabulary that is made larger than it must be.
        assert_eq!(rows.filled(OLD.to_vec(), 6, 2), [&want[..], &[3.0, 30.0]].concat());
    }

    #[test]
    fn a_spare_row_that_is_not_needed_is_left_alone() {
        let rows = NewRows { old_ids: 2, ids: 3, old_rows: 4 };
        assert_eq!(rows.filled(OLD.to_vec(), 4, 2), [1.0, 10.0, 2.0, 20.0, 1.5, 15.0, -9.0, -9.0]);
    }

    #[test]
    fn the_mean_is_added_up_in_f64() {
        // In f32 the ones would vanish beside the first number.
        let rows: Vec<f32> = std::iter::once(16_777_216.0).chain([1.0; 7]).collect();
        assert_eq!(mean_row(&rows, 1), [(16_777_223.0_f64 / 8.0) as f32]);
    }
}
