//! Quoting for commands that a message suggests.

use std::path::Path;

/// `path` as one word of a POSIX shell that no command takes for a flag.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let text = if text.starts_with('-') { format!("./{text}").into() } else { text };
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_./:@%+=,-".contains(c)) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_the_path_back() {
        assert_eq!(quoted(Path::new("runs/a-1.2")), "runs/a-1.2");
        for path in ["", "a b", "it's", "$HOME", "~", "a;b", "*", "a\"b`c`", "-x", "--out", "日本"] {
            let output = Command::new("sh").args(["-c", &format!("printf %s {}", quoted(Path::new(path)))]).output();
            let read = String::from_utf8(output.unwrap().stdout).unwrap();
            assert_eq!(read.strip_prefix("./").unwrap_or(&read), path);
            assert!(!read.starts_with('-'));
        }
    }
}
