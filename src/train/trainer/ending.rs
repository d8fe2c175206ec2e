//! How a run ends: stopped early with everything saved, or after its last step.

use super::Trainer;
use crate::metrics::{ascii_plot, thousands};
use crate::ops::device;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::shell::quoted;
use anyhow::Result;
use serde_json::json;

/// Writes what LLAMA_LITE_OP_TIMES asks for. Before the last checkpoint: that takes long where it is large, and whoever measures may not wait.
pub(super) fn write_op_times() {
    // The end of the command writes them again, and reports what fails then.
    if let Err(error) = device::write_op_times() {
        note(&format!("note: {error:#}"));
    }
}

impl Trainer {
    pub(super) fn stop_early(&mut self) -> Result<()> {
        write_op_times();
        self.save_now()?;
        let step = self.state.run.step;
        self.logs.events.append("stop", json!({"step": step}))?;
        // Only when all is saved: if this process dies before, the next one is still asked to stop.
        self.context.requests.clear_stop_file();
        let ranks = match self.group.ranks() {
            1 => String::new(),
            ranks => format!(" --ranks {ranks}"),
        };
        Err(fail(Exit::Stopped, format!("stopped at step {step} of {}, all saved", self.config.train.steps))
            .hint(format!("go on with: llama-lite resume --ckpt {}{ranks}", quoted(&self.context.dir)))
            .into())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        let step = self.state.run.step;
        let usage = self.prefetch.loader().drawn(self.state.run.next_sequence);
        let sources: Vec<_> = usage
            .iter()
            .map(|source| json!({"name": source.name, "sequences": source.sequences, "passes": source.passes}))
            .collect();
        let mut event = json!({"step": step, "sources": sources});
        if self.group.ranks() > 1 {
            // Of this process: an attempt before a resume is not counted.
            event["bytes_sent"] = self.group.bytes_sent().into();
        }
        self.logs.events.append("finish", event)?;
        self.progress.finish();
        if self.validation_curve.len() > 2 && !self.context.console.quiet {
            let floor = self.data.dataset.floor.map(|f| f.bits_per_byte);
            let title =
                if self.byte_lengths.are_known() { "validation loss, bits per byte" } else { "validation loss" };
            note(&ascii_plot(&self.validation_curve, 72, 16, floor, title));
        }
        if !self.context.console.quiet {
            let next = match self.saves.last_step {
                Some(saved) if saved == step => {
                    format!("Try: llama-lite sample --ckpt {}", quoted(&self.context.dir))
                }
                Some(saved) => format!("The last checkpoint is of step {saved} (checkpoint.last = false)"),
                None => "Nothing was saved (checkpoint.last = false)".to_owned(),
            };
            note(&format!("done: {} steps. {next}", thousands(step)));
        }
        Ok(())
    }
}
