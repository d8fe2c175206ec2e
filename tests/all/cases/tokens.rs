//! Special tokens, fragments of text, ends of turns and contexts.

mod chat;
mod contexts;
mod decoding;
mod init_from;
mod special;
mod vocabulary;

use crate::support::{TINY, arg, ok};
use std::path::{Path, PathBuf};

const STORIES: &str = "source = \"stories\"\ntokenizer = \"train\"\nstories = 60\nval_stories = 8\n";

/// A configuration of TINY's size, DIR/NAME.toml, with another `[data]`.
fn tiny_with(dir: &Path, name: &str, data: &str) -> PathBuf {
    assert!(TINY.contains(STORIES));
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, TINY.replace(STORIES, &format!("{data}\n"))).unwrap();
    path
}

/// Trains it into DIR/NAME.
fn train_on(dir: &Path, name: &str, data: &str, more: &[&str]) -> PathBuf {
    let (config, run) = (tiny_with(dir, name, data), dir.join(name));
    ok(&[&["pretrain", "--config", arg(&config), "--out", arg(&run), "--quiet"], more].concat());
    run
}
