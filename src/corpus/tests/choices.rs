//! The options: which documents are used, where they go, and where the separator stands.

use super::*;

/// All ids of a split.
fn ids(out: &Path, split: Split) -> Vec<u32> {
    let set = ShardSet::open(&split_files(out, split).unwrap()).unwrap();
    let mut ids = vec![0; set.total_tokens() as usize];
    set.read(0, &mut ids, BYTES.vocab_size).unwrap();
    ids
}

fn encode(texts: &[String], eot: Eot) -> Vec<u32> {
    let ids = |text: &String| text.bytes().map(|b| u32::from(b) + 1).collect::<Vec<u32>>();
    let document = |text| if eot == Eot::Before { [vec![0], ids(text)] } else { [ids(text), vec![0]] };
    texts.iter().flat_map(document).flatten().collect()
}

#[test]
fn the_separator_stands_before_or_after() {
    let bench = Bench::new();
    let texts = bench.corpus("a.jsonl", 60);
    for (eot, name) in [(Eot::Before, "before"), (Eot::After, "after")] {
        let opts = PrepareOptions { eot, val: ValSplit::None, ..bench.options(name) };
        let manifest = bench.run(&opts).unwrap().manifest;
        assert_eq!(manifest.recipe.eot, eot);
        assert_eq!(ids(&opts.out, Split::Train), encode(&texts, eot));
        let mut start = 0;
        let mut starts = Vec::new();
        for text in &texts {
            starts.push(start);
            start += text.len() as u64 + 1;
        }
        let docs = manifest.shards.iter().enumerate().flat_map(|(i, entry)| {
            let bytes = fs::read(opts.out.join(entry.docs_name())).unwrap();
            let starts = bytes.as_chunks::<8>().0.iter().map(|raw| u64::from_le_bytes(*raw) + i as u64 * 1000);
            starts.collect::<Vec<_>>()
        });
        assert_eq!(docs.collect::<Vec<_>>(), starts);
    }
}

#[test]
fn repetitions_and_short_documents_are_left_out() {
    let bench = Bench::new();
    let mut texts = bench.corpus("a.jsonl", 90);
    bench.write("b.jsonl", fs::read(bench.dir.path().join("in/a.jsonl")).unwrap());
    let opts = PrepareOptions { val: ValSplit::None, ..bench.options("all") };
    assert_eq!(bench.run(&opts).unwrap().manifest.lines.used, 180);

    let min_chars = 50;
    let opts = PrepareOptions { dedup: true, min_chars, val: ValSplit::None, ..bench.options("some") };
    let lines = bench.run(&opts).unwrap().manifest.lines;
    texts.retain(|text| text.chars().count() >= min_chars as usize);
    assert!((20..80).contains(&texts.len()));
    let used = texts.len() as u64;
    assert_eq!((lines.used, lines.duplicate, lines.filtered), (used, used, 180 - 2 * used));
    assert_eq!(decode(&opts.out, Split::Train), texts);
}

#[test]
fn no_text_is_in_both_splits_even_if_repeated() {
    let bench = Bench::new();
    bench.corpus("a.jsonl", 120);
    bench.write("b.jsonl", fs::read(bench.dir.path().join("in/a.jsonl")).unwrap());
    let opts = bench.options("out");
    bench.run(&opts).unwrap();
    let [train, val] = [Split::Train, Split::Val].map(|split| decode(&opts.out, split));
    assert_eq!(train.len() + val.len(), 240);
    assert!(val.len() > 8 && val.iter().all(|text| !train.contains(text)));
}

#[test]
fn validation_of_about_so_many_tokens() {
    let bench = Bench::new();
    for i in 0..3 {
        bench.corpus(&format!("{i}.jsonl"), 1500);
    }
    let opts = PrepareOptions { val: ValSplit::Tokens(30_000), ..bench.options("out") };
    let manifest = bench.run(&opts).unwrap().manifest;
    assert!((22_000..38_000).contains(&manifest.val.tokens), "{:?}", manifest.val);
    assert_eq!(manifest.val_rule, "documents by hash");
    let opts = PrepareOptions { val: ValSplit::Tokens(manifest.train.tokens), ..bench.options("much") };
    assert_eq!(exit_of(bench.run(&opts)), Exit::Config);
}

#[test]
fn the_first_shard_is_validation_to_the_token() {
    let bench = Bench::new();
    let texts = bench.corpus("a.jsonl", 60);
    for (eot, name) in [(Eot::Before, "before"), (Eot::After, "after")] {
        let opts = PrepareOptions { val: ValSplit::FirstShard, eot, ..bench.options(name) };
        let manifest = bench.run(&opts).unwrap().manifest;
        let all = encode(&texts, eot);
        assert_eq!(ids(&opts.out, Split::Val), all[..1000]);
        assert_eq!(ids(&opts.out, Split::Train), all[1000..]);
        assert_eq!(manifest.val.documents + manifest.train.documents, 60);
        let names: Vec<&str> = manifest.shards.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!((names[0], names.last()), ("train-00000.npy", Some(&"val-00000.npy")));
    }
    verify(&bench.out("before")).unwrap();
    let opts = PrepareOptions { val: ValSplit::FirstShard, shard_tokens: 1 << 20, ..bench.options("large") };
    let error = bench.run(&opts).unwrap_err();
    assert!(error.to_string().contains("all of the text went to validation"), "{error}");
}

#[test]
fn few_documents_give_their_end_also_without_repetitions() {
    let bench = Bench::new();
    let line = serde_json::json!({ "text": "0123456789\n".repeat(10) }).to_string() + "\n";
    bench.write("a.jsonl", line.repeat(30));
    let opts = PrepareOptions { dedup: true, ..bench.options("out") };
    let manifest = bench.run(&opts).unwrap().manifest;
    assert_eq!((manifest.train.bytes, manifest.val.bytes), (99, 11));
}
