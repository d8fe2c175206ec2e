//! Special tokens, fragments of text, ends of turns and contexts.
