//! `LLAMA_LITE_SIMD`: a run on lower instructions than the processor's.

use crate::support::{
    TINY, arg, assert_same_checkpoint, checkpoint, config, pretrain, program, records, stderr, stdout,
};
use llama_lite::ops::simd::{SimdLevel, VARIABLE, level_names};
use std::path::{Path, PathBuf};

/// A run whose instructions are limited to `level`.
fn pretrain_at(level: &str, dir: &Path, precision: &str) -> PathBuf {
    let (path, out) = (config(dir, TINY), dir.join(format!("{precision}-{level}")));
    let set = format!("train.precision={precision}");
    let run = program(&["pretrain", "--config", arg(&path), "--out", arg(&out), "--set", &set])
        .env(VARIABLE, level)
        .output()
        .unwrap();
    assert!(run.status.success(), "{level}: {}", stderr(&run));
    out
}

fn losses(run: &Path) -> Vec<f64> {
    let records = records(&run.join("metrics.jsonl"));
    records.iter().filter(|r| r["kind"] == "train").map(|r| r["loss"].as_f64().unwrap()).collect()
}

#[test]
fn instructions_that_do_not_exist_are_refused() {
    let run = program(&["doctor"]).env(VARIABLE, "avx-512").output().unwrap();
    let text = stderr(&run);
    assert_eq!(run.status.code(), Some(78), "{text}");
    assert!(
        text.contains("LLAMA_LITE_SIMD=avx-512") && text.contains("hint: one of baseline, avx2, avx512,"),
        "{text}"
    );
}

/// `doctor` checks every op with the instructions that are left, and names how bf16 is multiplied with them.
#[test]
fn every_level_computes_what_it_should() {
    for level in level_names().split(", ") {
        let run = program(&["doctor", "--device", "cpu"]).env(VARIABLE, level).output().unwrap();
        assert!(run.status.success(), "{level}: {}", stderr(&run));
        let products = stdout(&run).lines().find(|line| line.starts_with("products ")).unwrap().to_owned();
        let used = SimdLevel::in_use();
        let permitted = match level {
            "amx" => vec![used],
            // It can be asked for where it is not the fastest.
            "avx512bf16" => vec![SimdLevel::Avx512Bf16, used.min(SimdLevel::Avx512)],
            _ => vec![SimdLevel::Avx512],
        };
        let is_named = |level: &SimdLevel| products.ends_with(&format!("bf16: {}", level.bf16_products()));
        assert!(permitted.iter().any(is_named), "{level}: {products}");
    }
}

/// The width of the registers changes no bit of a run in f32; bf16 products of other instructions add in another order.
#[test]
fn runs_are_the_same_at_lower_levels() {
    let dir = tempfile::tempdir().unwrap();
    let exact = pretrain(dir.path(), "exact", &[]);
    if SimdLevel::in_use() >= SimdLevel::Avx2 {
        let narrow = pretrain_at("avx2", dir.path(), "f32");
        assert_same_checkpoint(&checkpoint(&exact, 12), &checkpoint(&narrow, 12));
    }
    let exact = losses(&exact);
    for level in ["avx2", "avx512bf16", "amx"] {
        let rounded = pretrain_at(level, dir.path(), "bf16");
        for (a, b) in exact.iter().zip(&losses(&rounded)) {
            assert!((a / b - 1.0).abs() < 5e-3, "{level}: {a} {b}");
        }
        let whole = std::fs::read(checkpoint(&rounded, 12).join("model.safetensors")).unwrap();
        let half_way = checkpoint(&rounded, 8);
        assert!(program(&["resume", "--ckpt", arg(&half_way)]).env(VARIABLE, level).output().unwrap().status.success());
        assert!(whole == std::fs::read(checkpoint(&rounded, 12).join("model.safetensors")).unwrap(), "{level}");
    }
}
