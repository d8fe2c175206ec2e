//! `doctor`: what this machine and build offer, and whether every op computes what it should here.

use super::print;
use crate::ops::precision::Precision;
use crate::ops::{selftest, simd_level};
use crate::runtime::error::{Exit, fail};
use anyhow::Result;

pub(super) fn run() -> Result<()> {
    let mut text = format!(
        "llama-lite {}\nplatform   {} {}\ncpu        {} threads, {}, bf16 products: {}\ncuda       not in this build\n\nself-test  (largest relative difference \
         from candle's autograd, at most {:.0e})\n",
        crate::VERSION,
        std::env::consts::OS,
        std::env::consts::ARCH,
        rayon::current_num_threads(),
        simd_level(),
        if Precision::Bf16.supported() { "yes" } else { "no" },
        selftest::TOLERANCE,
    );
    let outcomes = selftest::run()?;
    for o in &outcomes {
        text += &format!("  {:<14} {:.1e}  {}\n", o.op, o.difference, if o.passed() { "ok" } else { "FAILED" });
    }
    print(&text)?;
    let failed: Vec<&str> = outcomes.iter().filter(|o| !o.passed()).map(|o| o.op).collect();
    if failed.is_empty() {
        return print("\nall operations compute what they should");
    }
    Err(fail(Exit::Internal, format!("self-test failed: {}", failed.join(", ")))
        .hint("do not trust training on this machine; please report this output")
        .into())
}
