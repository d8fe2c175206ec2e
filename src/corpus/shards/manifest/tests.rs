//! Manifests that are right are read as written; contradictions and mutations are refused or still consistent.

use super::*;

fn sample() -> ShardManifest {
    let entry = |name: &str, split, tokens, documents, bytes| ShardEntry {
        name: name.into(),
        split,
        tokens,
        documents,
        bytes,
        dtype: TokenDtype::U16,
        max_id: 50256,
        blake3: "ab".repeat(32),
        blocks: "0f".repeat(16),
        docs_blake3: "01".repeat(32),
    };
    ShardManifest {
        version: VERSION,
        tokenizer: TokenizerInfo { blake3: "cd".repeat(32), vocab_size: 50257, separator: 50256 },
        recipe: Recipe {
            text_field: "text".into(),
            text_separator: Some("<|endoftext|>".into()),
            eot: Eot::After,
            min_chars: 10,
            dedup: true,
            val: ValSplit::Fraction(0.005),
            shard_tokens: 20,
            allow_bad: false,
        },
        val_rule: "hash".into(),
        train: Totals { tokens: 30, documents: 4, bytes: 90 },
        val: Totals { tokens: 5, documents: 1, bytes: 11 },
        lines: LineCounts {
            read: 13,
            used: 5,
            empty: 1,
            duplicate: 3,
            filtered: 2,
            quarantined: BTreeMap::from([("json".into(), 2)]),
            first_bad: Some("a.jsonl:3: not JSON".into()),
        },
        sources: vec![
            SourceCounts { path: "a.jsonl".into(), bytes: 120, lines: 8, used: 4, tokens: 30, unread: None },
            SourceCounts { path: "b.txt".into(), bytes: 20, lines: 5, used: 1, tokens: 5, unread: None },
        ],
        shards: vec![
            entry("train-00000.npy", Split::Train, 20, 3, 70),
            entry("train-00001.npy", Split::Train, 10, 1, 20),
            entry("val-00000.npy", Split::Val, 5, 1, 11),
        ],
        left_out: vec![LeftOut { what: "files ending in .csv".into(), files: 1, names: vec!["x.csv".into()] }],
    }
}

#[test]
fn round_trip() {
    assert_eq!(ShardManifest::parse(&sample().to_bytes().unwrap()).unwrap(), sample());
    assert_eq!(sample().shards[0].docs_name(), "train-00000.docs");
    assert_eq!(sample().lines.bad(), 2);
    assert_eq!(
        sample().lines.to_string(),
        "13 read = 5 used + 1 empty + 3 duplicate + 2 filtered + 2 quarantined (json 2)"
    );
    for val in [ValSplit::None, ValSplit::Tokens(7), ValSplit::FirstShard] {
        let mut other = sample();
        other.recipe.val = val;
        assert_eq!(ShardManifest::parse(&other.to_bytes().unwrap()).unwrap(), other);
    }
}

#[test]
fn contradictions_are_refused() {
    type Spoil = fn(&mut ShardManifest);
    let cases: &[(&str, Spoil)] = &[
        ("add up", |m| m.train.tokens += 1),
        ("add up", |m| m.val.bytes -= 1),
        ("add up", |m| m.shards[0].split = Split::Val),
        ("line counts", |m| m.lines.read += 1),
        ("line counts", |m| m.lines.used = u64::MAX),
        ("line counts", |m| m.lines.duplicate += 1),
        ("line counts", |m| m.lines.filtered -= 1),
        ("sources", |m| m.sources[0].lines += 1),
        ("sources", |m| m.sources[1].used = 0),
        ("sources", |m| m.sources[0].tokens -= 1),
        ("unsafe name", |m| m.shards[2].name = "../val-00000.npy".into()),
        ("unsafe name", |m| m.shards[2].name = ".val.npy".into()),
        ("unsafe name", |m| m.shards[2].name = "val\0.npy".into()),
        ("unsafe name", |m| m.shards[2].name = "shards.json".into()),
        ("order", |m| m.shards.swap(0, 1)),
        ("order", |m| m.shards[1].name = "train-00000.npy".into()),
        ("hash", |m| m.shards[0].blake3.push('0')),
        ("hash", |m| m.shards[0].docs_blake3 = "zz".repeat(32)),
        ("impossible", |m| m.shards[0].documents = 21),
        ("impossible", |m| m.shards[0].dtype = TokenDtype::U32),
        ("impossible", |m| m.shards[0].max_id = 50257),
        ("impossible", |m| m.recipe.shard_tokens = 19),
        ("blocks", |m| m.shards[0].blocks.push('0')),
        ("blocks", |m| m.shards[0].blocks.clear()),
        ("blocks", |m| m.shards[0].blocks.replace_range(..1, "g")),
        ("blocks", |m| m.shards[0].tokens = u64::MAX),
        ("blocks", |m| m.shards[0].tokens = BLOCK_BYTES as u64),
        ("prepare again", |m| m.version = 1),
        ("version 3", |m| m.version = 3),
    ];
    for (reason, spoil) in cases {
        let mut manifest = sample();
        spoil(&mut manifest);
        let message = ShardManifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap_err();
        assert!(message.contains(reason), "{reason}: {message}");
    }
    let mut overflow = sample();
    overflow.shards[0].bytes = u64::MAX;
    assert!(overflow.to_bytes().is_err());
}

/// Any byte, any value of a few, and every truncation: never a panic, and what is accepted still adds up.
#[test]
fn every_accepted_mutation_is_consistent() {
    let good = sample().to_bytes().unwrap();
    let mut accepted = 0;
    for at in 0..good.len() {
        assert!(at == good.len() - 1 || ShardManifest::parse(&good[..at]).is_err(), "cut at {at}");
        for byte in [0, b'"', b'0', b'9', b'-', b'}', b',', b'e', 0x80, good[at] ^ 1, good[at] ^ 4] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            if let Ok(manifest) = ShardManifest::parse(&bytes) {
                assert_eq!(manifest.check(), Ok(()));
                assert!(manifest.shards.iter().all(|e| !e.name.contains('/') && e.documents <= e.tokens));
                accepted += 1;
            }
        }
    }
    assert!(accepted > 0 && accepted < good.len() * 8, "{accepted}");
}
