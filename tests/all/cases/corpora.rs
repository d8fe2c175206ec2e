//! Corpora as people have them: names, suffixes, damaged and foreign files.
