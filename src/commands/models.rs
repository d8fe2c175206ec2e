//! Models as arguments: a directory, or `hub:OWNER/NAME[@REVISION]`, which is downloaded into the cache of the Hub first.

use super::progress_bar::progress_bar;
use super::ranks;
use crate::checkpoint::model_files;
use crate::hub::{Hub, HubName, ModelName};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail, note};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The key of a configuration that holds a model.
const BASE_KEY: &str = "sft.base=";

/// The directory of the model that `argument` names. As of data, `hub:` is always the Hub; a directory of such a name is `./hub:...`.
///
/// # Errors
/// Those of the name, of the download, and of a repository that holds no model.
pub(super) fn model_dir(argument: &Path, console: Console) -> Result<PathBuf> {
    let Some(text) = argument.to_str().filter(|text| HubName::is_hub(text)) else { return Ok(argument.to_owned()) };
    let name: ModelName = text.parse()?;
    // One rank after the other: what the first one downloads, the others find.
    ranks::group().first_then_others("the model", || download(&name, console))
}

/// [`model_dir`] of an argument that may be missing.
pub(super) fn optional_model_dir(argument: Option<&Path>, console: Console) -> Result<Option<PathBuf>> {
    argument.map(|argument| model_dir(argument, console)).transpose()
}

/// `sets` with the directory of a model in place of its name on the Hub: a resume must find these very files again.
pub(super) fn with_local_base(mut sets: Vec<String>, console: Console) -> Result<Vec<String>> {
    for set in &mut sets {
        let Some(name) = set.strip_prefix(BASE_KEY).filter(|name| HubName::is_hub(name)) else { continue };
        let dir = std::path::absolute(model_dir(Path::new(name), console)?)?;
        let Some(dir) = dir.to_str() else {
            let message = format!("{}: not UTF-8, and a configuration is UTF-8 text", dir.display());
            return Err(fail(Exit::Config, message).hint("set HF_HUB_CACHE to a directory whose name is UTF-8").into());
        };
        *set = format!("{BASE_KEY}{dir}");
    }
    Ok(sets)
}

fn download(name: &ModelName, console: Console) -> Result<PathBuf> {
    let hub = Hub::from_env()?;
    let repo = hub.model(name)?;
    let files = model_files(&hub, &repo)?;
    let missing: Vec<_> = files.iter().filter(|file| !hub.has(file)).collect();
    let bytes: u64 = missing.iter().map(|file| file.size).sum();
    if !missing.is_empty() && !console.quiet {
        note(&format!("getting {repo}: {} files, {:.1} MB ...", missing.len(), bytes as f64 / 1e6));
    }
    let template = "download {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left";
    let bar = progress_bar(bytes, template, console);
    let mut done = 0;
    for file in missing {
        hub.fetch(file, &|received| bar.set_position(done + received))?;
        done += file.size;
    }
    bar.finish_and_clear();
    Ok(repo.dir)
}
