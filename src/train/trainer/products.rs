//! The algorithms of a run's matrix products on a GPU: chosen before the first step, by one pass of a step on rank 0; the others take its choice.

use super::Trainer;
use crate::ops::precision::Precision;
use crate::ops::product_algorithms::ProductAlgorithms;
use crate::ops::products::{ProductSetting, algorithms_in_use, choose_algorithms, product_setting, use_algorithms};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::write_atomic;
use crate::train::identity::{note_products, precision};
use crate::train::passes::{is_out_of_memory, one_pass_of_each_size, sizes_of_passes};
use crate::train::products::PRODUCTS;
use anyhow::Result;
use serde_json::json;

impl Trainer {
    /// Chooses algorithms for the products of this configuration, unless that was done: by a process that this one continues, for instance.
    pub(super) fn choose_products(&mut self) -> Result<()> {
        if self.device.is_cpu() || self.state.run.step >= self.config.train.steps {
            return Ok(());
        }
        let chosen = self.on_first("the algorithms of products", |trainer| trainer.choose_on_first())?;
        let Some(chosen) = chosen else { return Ok(()) };
        let used = if self.group.is_first() { Ok(Vec::new()) } else { use_algorithms(&self.device, &chosen) };
        self.group.agree("the algorithms of products", self.check_same(&chosen, used))?;
        note_products(&mut self.context.build, &self.device);
        Ok(())
    }

    /// What rank 0 has chosen; none if there was nothing to choose.
    fn choose_on_first(&mut self) -> Result<Option<ProductAlgorithms>> {
        let pass = self.pass_name();
        let known = algorithms_in_use(&self.device).is_some_and(|table| table.passes.contains(&pass));
        if known || product_setting() == ProductSetting::Default {
            return Ok(None);
        }
        let started = self.start_phase("choosing the algorithms of products");
        let count = sizes_of_passes(&self.config).iter().sum();
        let batch = self.prefetch.loader().batch(self.state.run.next_sequence, count)?;
        let (done, timings) =
            choose_algorithms(&self.device, &pass, || one_pass_of_each_size(&self.state, &self.config, &batch));
        match done {
            // The first step will have no memory for it either, and takes less.
            Err(error) if is_out_of_memory(&error) => {}
            done => done?,
        }
        let chosen = algorithms_in_use(&self.device);
        if let Some(table) = &chosen {
            write_atomic(&self.context.dir.join(PRODUCTS), format!("{:#}\n", json!(table)).as_bytes())?;
        }
        let step = self.state.run.step;
        let digest = chosen.as_ref().map(ProductAlgorithms::digest);
        let seconds = started.elapsed().as_secs_f64();
        let event = json!({"step": step, "pass": pass, "digest": digest, "seconds": seconds, "chosen": timings});
        self.logs.events.append("products", event)?;
        Ok(chosen)
    }

    /// The passes of a step: what decides which products it has, for one model.
    fn pass_name(&self) -> String {
        let elements = match precision(&self.config.train, &self.device) {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        };
        let sizes: Vec<String> = sizes_of_passes(&self.config).iter().map(ToString::to_string).collect();
        format!("{elements}, {} x {}", sizes.join(" and "), self.config.train.sequence_length)
    }

    /// Another card may refuse an algorithm, or all of them.
    fn check_same(&self, chosen: &ProductAlgorithms, used: Result<Vec<String>, String>) -> Result<()> {
        let refused = used.map_or_else(Some, |lines| lines.into_iter().next());
        let own = algorithms_in_use(&self.device).map(|table| table.digest());
        if own == Some(chosen.digest()) {
            return Ok(());
        }
        let why = refused.unwrap_or_else(|| "its own are others".to_owned());
        Err(fail(Exit::Config, format!("this rank cannot compute products as rank 0 does: {why}"))
            .hint("start the same program with the same arguments on machines of one kind")
            .into())
    }
}
