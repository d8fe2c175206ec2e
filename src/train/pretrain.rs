//! `pretrain`: a new run with new weights, or with those of another model.

use super::checks::check_machine;
use super::disk::check_disk;
use super::new_run::{NewRun, refuse_existing_run};
use super::paths::make_paths_absolute;
use super::ranks::settle_lanes;
use super::requests::{NOTHING_TO_RESUME, Requests};
use super::schedule::check_new_run;
use super::session::Session;
use super::setup::RunSetup;
use crate::config::Config;
use anyhow::Result;
use std::path::Path;

/// A new run in `out`, trained to its end. Nothing is created before configuration, data and memory are known to be right.
///
/// # Errors
/// Those of configuration, data, and [`Trainer::train`](super::trainer::Trainer::train).
pub fn pretrain(mut config: Config, out: &Path, init_from: Option<&Path>, session: &Session) -> Result<()> {
    let requests = Requests::listen(out, NOTHING_TO_RESUME)?;
    // Each step of the way ends on all ranks if it fails on one.
    let group = &session.group;
    group.on_first("the run directory", || refuse_existing_run(out))?;
    check_new_run(&config)?;
    settle_lanes(&mut config, group.ranks())?;
    make_paths_absolute(&mut config)?;
    group.agree("the machine", check_machine(&config, session))?;
    group.on_first("the disk", || check_disk(&config, out, 0))?;
    // Last, because it reads data and weights: what is refused above costs no time.
    let (setup, source) = RunSetup::initial(config, init_from, session)?;
    NewRun { setup, source, requests }.train(out, |_| Ok(()))
}
