//! "Did you mean": the nearest valid key, section or word to one that is not known.

/// Names that other trainers give to keys of ours, for which spelling is no help.
const ELSEWHERE: &[(&str, &str)] = &[
    ("batch_size", "train.micro_batch_size"),
    ("beta1", "optimizer.betas"),
    ("beta2", "optimizer.betas"),
    ("block_size", "train.sequence_length"),
    ("d_model", "model.hidden_size"),
    ("dataset", "data.train"),
    ("dim", "model.hidden_size"),
    ("dtype", "train.precision"),
    ("ffn_size", "model.intermediate_size"),
    ("learning_rate", "optimizer.lr"),
    ("max_lr", "optimizer.lr"),
    ("max_steps", "train.steps"),
    ("n_embd", "model.hidden_size"),
    ("n_head", "model.num_attention_heads"),
    ("n_kv_head", "model.num_key_value_heads"),
    ("n_layer", "model.num_hidden_layers"),
    ("save_every", "checkpoint.every"),
    ("total_batch_size", "train.tokens_per_step"),
];

/// Below this likeness a suggestion would mislead.
const ALIKE: f64 = 0.6;

/// The candidate most like `word`, if one is alike; the first of equals.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let mut best = (ALIKE, None);
    for &candidate in candidates {
        let likeness = likeness(word, candidate);
        if likeness > best.0 {
            best = (likeness, Some(candidate));
        }
    }
    best.1
}

/// The valid `section.key` that an unknown one most likely stands for.
pub(super) fn nearest_key<'a>(unknown: &str, keys: &[&'a str]) -> Option<&'a str> {
    let (section, name) = section_and_name(unknown);
    let elsewhere = ELSEWHERE.iter().find(|(foreign, _)| *foreign == name).map(|(_, key)| *key);
    if let Some(key) = keys.iter().find(|key| section_and_name(key).1 == name || Some(**key) == elsewhere) {
        return Some(key);
    }
    let own: Vec<_> = keys
        .iter()
        .map(|key| section_and_name(key))
        .filter(|(other, _)| *other == section)
        .map(|(_, key)| key)
        .collect();
    match nearest(name, &own) {
        Some(name) => keys.iter().find(|key| section_and_name(key) == (section, name)).copied(),
        None => nearest(unknown, keys),
    }
}

fn section_and_name(key: &str) -> (&str, &str) {
    key.split_once('.').unwrap_or(("", key))
}

/// Edit distance with swaps, from 0 (nothing in common) to 1 (equal), whatever the case.
fn likeness(a: &str, b: &str) -> f64 {
    // The distance takes quadratic time; no key is longer than this.
    if a.len() > 100 { 0.0 } else { strsim::normalized_damerau_levenshtein(&a.to_lowercase(), b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] =
        &["model.hidden_size", "train.steps", "train.seed", "optimizer.lr", "data.seed", "eval.every"];

    #[test]
    fn finds_the_key_meant() {
        for (unknown, meant) in [
            ("model.hiden_size", "model.hidden_size"),
            ("model.Hidden_Size", "model.hidden_size"),
            ("train.step", "train.steps"),
            ("train.lr", "optimizer.lr"),
            ("schedule.learning_rate", "optimizer.lr"),
            ("optimizer.max_steps", "train.steps"),
            ("data.sede", "data.seed"),
            ("trian.seeds", "train.seed"),
        ] {
            assert_eq!(nearest_key(unknown, KEYS), Some(meant), "{unknown}");
        }
    }

    #[test]
    fn keeps_silent_when_nothing_is_alike() {
        assert_eq!(nearest_key("model.xyzzy", KEYS), None);
        assert_eq!(nearest_key(&"a".repeat(100_000), KEYS), None);
        assert_eq!(nearest("quux", &["cosine", "wsd"]), None);
    }

    #[test]
    fn prefers_the_nearer_of_two() {
        assert_eq!(nearest("linera", &["constant", "linear"]), Some("linear"));
        assert_eq!(nearest("f23", &["auto", "f32", "bf16"]), Some("f32"));
    }
}
