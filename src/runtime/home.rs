//! `~` in paths that no shell has expanded: those of configuration files, `--set`, quoted arguments and `--flag=~/path`.

use std::path::{Path, PathBuf};

/// `path` with a leading `~` or `~/` replaced by the user's home directory. Other paths are left as they are: `~name`,
/// a file that is really called `~`, and all paths where `HOME` is not set.
pub fn expand_home(path: &Path) -> PathBuf {
    expand_with(path, std::env::var_os("HOME").map(PathBuf::from))
}

/// As [`expand_home`], for paths and globs that are kept as text.
pub fn expand_home_text(path: &str) -> String {
    match expand_home(Path::new(path)).into_os_string().into_string() {
        Ok(expanded) if path.starts_with('~') => expanded,
        _ => path.to_owned(),
    }
}

fn expand_with(path: &Path, home: Option<PathBuf>) -> PathBuf {
    let home = home.filter(|home| !home.as_os_str().is_empty());
    match (path.strip_prefix("~"), home) {
        (Ok(_), Some(_)) if path.exists() => path.to_owned(),
        (Ok(rest), Some(home)) if rest.as_os_str().is_empty() => home,
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leading_tilde_is_the_home_directory() {
        for (path, expected) in [
            ("~", "/home/me"),
            ("~/", "/home/me"),
            ("~/data/*.txt", "/home/me/data/*.txt"),
            ("~other/x", "~other/x"),
            ("a/~/x", "a/~/x"),
            ("./~", "./~"),
            ("", ""),
        ] {
            assert_eq!(expand_with(Path::new(path), Some("/home/me".into())), PathBuf::from(expected), "{path}");
            assert_eq!(expand_with(Path::new(path), None), PathBuf::from(path), "{path}");
        }
    }
}
