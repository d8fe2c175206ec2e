//! The comparisons on the emulated GPU, and what one that fails does to the others.

use super::*;

#[test]
fn every_kernel_agrees_with_the_cpu() {
    let mut lines = Vec::new();
    let each = |found: Agreement| {
        assert!(found.passed(), "{found:?}");
        lines.push(found.what);
        Ok::<_, ()>(())
    };
    run(&Device::Cpu, each).unwrap();
    for dtype in ["f32", "bf16"] {
        assert!(lines.contains(&format!("cross_entropy best, {dtype}")), "{lines:?}");
    }
}

#[test]
fn one_check_that_fails_leaves_the_others_alone() {
    fn broken(bench: &mut Bench) -> Result<()> {
        let x = bench.exact(&[2])?;
        bench.near("before", &x, &wide(&x)?)?;
        candle_core::bail!("no such kernel")
    }
    let mut lines = Vec::new();
    let checks: [(&str, Check); 2] = [("broken", broken), ("noise", tune::noises)];
    let each = |found: Agreement| {
        lines.push((found.what.clone(), found.passed()));
        Ok::<_, ()>(())
    };
    run_checks(&checks, &Device::Cpu, each).unwrap();
    let expected = [
        "before, f32",
        "broken, f32",
        "noise on embeddings, f32",
        "before, bf16",
        "broken, bf16",
        "noise on embeddings, bf16",
    ];
    assert_eq!(lines.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), expected);
    assert!(lines.iter().all(|(what, passed)| *passed != what.starts_with("broken")), "{lines:?}");
    let stopped = run_checks(&checks, &Device::Cpu, |_| Err("stdout is closed"));
    assert_eq!(stopped, Err("stdout is closed"));
}
