//! Values that several commands take: paths and numbers.

use crate::config::{Choice as _, PrecisionSetting};
use crate::runtime::home::{expand_home, expand_home_text};
use clap::builder::{PathBufValueParser, PossibleValuesParser, StringValueParser, TypedValueParser};
use std::path::{Path, PathBuf};

/// Reads a path. A leading `~/` is the home directory, also where no shell has seen it: behind the `=` of `--out=~/x`.
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| expand_home(&path))
}

/// Reads what may be a path, a glob or a name such as `gpt2` or `hub:OWNER/NAME`; a leading `~/` as in [`path`].
pub(super) fn path_or_name() -> impl TypedValueParser<Value = String> {
    StringValueParser::new().map(|text| expand_home_text(&text))
}

/// The directory of a run: `--out`, or `runs/` and the name of its configuration without the extension.
pub(super) fn run_dir(out: Option<&PathBuf>, config: &Path) -> PathBuf {
    let stem = config.file_stem().unwrap_or(config.as_os_str());
    out.cloned().unwrap_or_else(|| PathBuf::from("runs").join(stem))
}

/// Reads a `--precision`.
pub(super) fn precision() -> impl TypedValueParser<Value = PrecisionSetting> {
    PossibleValuesParser::new(PrecisionSetting::NAMES)
        .map(|name| PrecisionSetting::from_name(&name).unwrap_or_default())
}

/// A number for which `allowed` holds.
fn number(text: &str, allowed: impl Fn(f64) -> bool, what: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x.is_finite() && allowed(x)).ok_or_else(|| format!("expected {what}"))
}

pub(super) fn non_negative(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0, "a number of at least 0")
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "a number above 0 and at most 1")
}

pub(super) fn fraction(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..1.0).contains(&x), "a number of at least 0 and below 1")
}
