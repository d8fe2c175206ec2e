//! `sft`: fine-tuning on conversations, on this machine or from the Hub.

use super::print;
use crate::cli::Sft;
use crate::hub::{Hub, HubName};
use crate::metrics::Console;
use crate::runtime::error::note;
use crate::train::sft::{Request, Tune};
use anyhow::Result;
use std::io::IsTerminal;

/// Records that are left out and listed by --show-data.
const LISTED: usize = 20;

pub(super) fn run(args: &Sft, console: Console) -> Result<()> {
    let data = local(&args.data, console)?;
    let request = Request { config: &args.config, sets: &args.set, ckpt: &args.ckpt, data: &data };
    let Some(n) = args.show_data else { return Tune::open(&request, console)?.train(&args.run_dir()) };
    // What is shown goes to stdout, which may be a file.
    let tune = Tune::open(&request, Console { color: console.color && std::io::stdout().is_terminal(), ..console })?;
    for (i, text) in tune.show(n.get(), usize::MAX)?.iter().enumerate() {
        print(&format!("--- {} ---\n{text}\n", i + 1))?;
    }
    print(&tune.counts().join("\n"))?;
    if let Some(warning) = tune.warning() {
        print(&format!("{warning}\nthe records that would be left out:\n{}", tune.bad(LISTED).join("\n")))?;
    }
    tune.check()
}

/// Paths as they are; data sets of the Hub as the files of its cache.
fn local(data: &[String], console: Console) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for name in data {
        if !HubName::is_hub(name) {
            paths.push(name.clone());
            continue;
        }
        let hub = Hub::from_env()?;
        for file in hub.resolve(&name.parse()?)? {
            if !console.quiet {
                note(&format!("getting {} ({:.1} MB) ...", file.path, file.size as f64 / 1e6));
            }
            paths.push(hub.fetch(&file, &|_| ())?.to_string_lossy().into_owned());
        }
    }
    Ok(paths)
}
