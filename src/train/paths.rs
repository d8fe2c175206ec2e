//! The paths of a configuration, absolute: a resume from another directory must find the same files.

use crate::config::{Config, NameOrPath};
use crate::data::dataset::missing_tokenizer;
use crate::hub::HubName;
use crate::runtime::error::{Exit, fail};
use crate::runtime::home::expand_home;
use anyhow::Result;
use std::path::Path;

/// Makes every path of the configuration absolute.
///
/// # Errors
/// [`Exit::Config`] for a current directory whose name is not UTF-8, which a configuration cannot hold.
pub fn make_paths_absolute(config: &mut Config) -> Result<()> {
    for list in [&mut config.data.train, &mut config.data.val, &mut config.sft.base_val] {
        *list = list.iter().map(|path| absolute(path)).collect::<Result<_>>()?;
    }
    for path in [&mut config.eval.data_dir, &mut config.sft.base].into_iter().flatten() {
        *path = absolute(path)?;
    }
    if let NameOrPath::Path(path) = &mut config.data.tokenizer {
        let file = absolute(path)?;
        if !Path::new(&file).exists() {
            return Err(missing_tokenizer(path).into());
        }
        *path = file;
    }
    if let NameOrPath::Path(path) = &mut config.sft.template {
        *path = absolute(path)?;
    }
    Ok(())
}

fn absolute(path: &str) -> Result<String> {
    // The name of a data set, and what is no path at all, is refused by name where it is read.
    if HubName::is_hub(path) {
        return Ok(path.to_owned());
    }
    std::path::absolute(expand_home(Path::new(path)))?.into_os_string().into_string().map_err(|full| {
        let message = format!("{}: not UTF-8, and a configuration is UTF-8 text", Path::new(&full).display());
        fail(Exit::Config, message).hint("run it in a directory whose name is UTF-8, or rename this one").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SftInputs;

    /// Keys that hold text but no path. A new key belongs here or in `make_paths_absolute`.
    const NO_PATHS: [&str; 20] = [
        "data.source",
        "data.text_field",
        "data.text_separator",
        "train.precision",
        "train.recompute",
        "optimizer.kind",
        "optimizer.moments",
        "schedule.kind",
        "checkpoint.on_full",
        "guard.spike",
        "eval.tasks",
        "sample.prompts",
        "sft.format",
        "sft.new_tokens",
        "sft.train_on",
        "lora.targets",
        "data.weights",
        "optimizer.betas",
        "model.architecture",
        "model.preset",
    ];

    #[test]
    fn every_path_is_absolute_wherever_it_enters() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sft.toml");
        std::fs::write(&file, "[train]\nmicro_batch_size = 1\n[lora]\nrank = 2\n").unwrap();
        let text = "[model]\nhidden_size = 8\nintermediate_size = 8\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
            vocab_size = 300\n[data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 8\n\
            micro_batch_size = 1\nsteps = 1\n";
        let model = Config::from_toml_str(text, "a.toml").unwrap().model;
        let base = Path::new("rel/base");
        let data = ["rel/a.jsonl".to_owned()];
        let sets = [
            "data.val=[\"rel/b.jsonl\"]",
            // One that does not exist is refused here.
            "data.tokenizer=Cargo.toml",
            "sft.template=./rel.jinja",
            "sft.base_val=[\"rel/c.txt\", \"hub:owner/name\"]",
            "eval.data_dir=rel/d",
            "sample.prompts=[\"a\"]",
        ]
        .map(String::from);
        let tuned = SftInputs { base, model: &model, data: &data, steps: Some(3) };
        let mut config = Config::load_sft(&file, &sets, &tuned).unwrap();
        make_paths_absolute(&mut config).unwrap();
        let stored: toml::Table = config.to_toml().parse().unwrap();
        let mut paths = 0;
        for (section, keys) in &stored {
            for (key, value) in keys.as_table().unwrap() {
                let texts = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                let texts: Vec<&str> = texts.iter().filter_map(toml::Value::as_str).collect();
                let key = format!("{section}.{key}");
                if NO_PATHS.contains(&key.as_str()) {
                    continue;
                }
                paths += texts.len();
                assert!(
                    texts.iter().all(|text| text.starts_with('/') || *text == "hub:owner/name"),
                    "{key}: {texts:?}"
                );
            }
        }
        assert_eq!(paths, 8);
    }
}
