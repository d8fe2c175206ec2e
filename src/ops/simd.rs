//! Which of the processor's vector instructions the operations use: found once, at run time.
//!
//! f32 results do not depend on it, except that a processor without fused multiply-add rounds twice. bf16 products do: each of their kernels
//! adds in an order of its own, which the arithmetic fingerprint tells apart. What a processor has is not always what is fastest there: the
//! choice is by its maker, never by a measurement, so that equal processors compute equal bits.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(all(target_arch = "x86_64", target_os = "linux", any(test, feature = "emulated-amx")))]
pub(crate) mod emulated_amx;

use std::sync::OnceLock;

/// Sets of instructions, each of which includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimdLevel {
    /// What the compilation target has by itself: SSE2 or NEON.
    Baseline,
    /// AVX2, and FMA beside it.
    Avx2,
    Avx512,
    Avx512Bf16,
    /// Products of bf16 tiles.
    Amx,
}

/// The environment variable that names the highest permitted level.
pub const VARIABLE: &str = "LLAMA_LITE_SIMD";

const NAMES: [(&str, SimdLevel); 5] = [
    ("baseline", SimdLevel::Baseline),
    ("avx2", SimdLevel::Avx2),
    ("avx512", SimdLevel::Avx512),
    ("avx512bf16", SimdLevel::Avx512Bf16),
    ("amx", SimdLevel::Amx),
];

impl SimdLevel {
    /// The level in use: the fastest that the processor has, or a lower one that [`VARIABLE`] names.
    pub fn in_use() -> Self {
        static LEVEL: OnceLock<SimdLevel> = OnceLock::new();
        // The processor is asked last: permission to use tiles is requested only where they may be used.
        *LEVEL.get_or_init(|| Self::of_processor(permitted().ok().flatten().unwrap_or(Self::Amx)))
    }

    /// The level for a processor that may use those up to `most`.
    #[cfg(target_arch = "x86_64")]
    fn of_processor(most: Self) -> Self {
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let level = if !has_avx2 {
            Self::Baseline
        } else if !has_avx512 {
            Self::Avx2
        } else if !is_x86_feature_detected!("avx512bf16") {
            Self::Avx512
        } else if most == Self::Amx && has_tiles() {
            Self::Amx
        } else if most == Self::Avx512Bf16 || multiplies_pairs_fast() {
            Self::Avx512Bf16
        } else {
            Self::Avx512
        };
        level.min(most)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_processor(most: Self) -> Self {
        most.min(Self::Baseline)
    }

    /// How bf16 products are computed at this level.
    pub fn bf16_products(self) -> &'static str {
        match self {
            Self::Amx => "AMX",
            Self::Avx512Bf16 => "AVX512_BF16",
            _ => "rounded to bf16, multiplied in f32",
        }
    }

    /// Whether the processor multiplies bf16 itself.
    pub fn multiplies_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }
}

impl std::fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Baseline if cfg!(target_arch = "aarch64") => "NEON",
            Self::Baseline => "baseline",
            Self::Avx2 => "AVX2 and FMA",
            _ => "AVX-512",
        })
    }
}

/// Whether VDPBF16PS does more in a given time than multiplications of f32. AMD's processors start as many of both. On Intel's (Emerald Rapids,
/// without AMX) products took 1.65 times as long as in f32, and a training step 1.38 times as long as with operands that are
/// rounded to bf16 and multiplied in f32.
#[cfg(target_arch = "x86_64")]
fn multiplies_pairs_fast() -> bool {
    let cpuid = std::arch::x86_64::__cpuid(0);
    let vendor = [cpuid.ebx, cpuid.edx, cpuid.ecx].map(u32::to_le_bytes);
    vendor.as_flattened() != b"GenuineIntel"
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tiles() -> bool {
    #[cfg(feature = "emulated-amx")]
    return amx::permit() || emulated_amx::install();
    #[cfg(not(feature = "emulated-amx"))]
    amx::permit()
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_tiles() -> bool {
    false
}

/// The level that [`VARIABLE`] names; none without the variable.
///
/// # Errors
/// Its value, where it is no level.
pub fn permitted() -> Result<Option<SimdLevel>, String> {
    std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map_or(Ok(None), |value| {
        let value = value.to_string_lossy().into_owned();
        level_named(&value).map(Some).ok_or(value)
    })
}

fn level_named(name: &str) -> Option<SimdLevel> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, level)| *level)
}

/// The names that [`VARIABLE`] may have, from the lowest level to the highest.
pub fn level_names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
}

/// What [`simd!`](super::cpu::simd) compiles loops for.
pub(crate) fn arch() -> pulp::Arch {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    *ARCH.get_or_init(|| arch_of(SimdLevel::in_use()))
}

#[cfg(target_arch = "x86_64")]
fn arch_of(level: SimdLevel) -> pulp::Arch {
    match (level, pulp::Arch::new()) {
        (SimdLevel::Baseline, _) => pulp::Arch::Scalar,
        (SimdLevel::Avx2, pulp::Arch::V4(_)) => pulp::x86::V3::try_new().map_or(pulp::Arch::Scalar, pulp::Arch::V3),
        (_, widest) => widest,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn arch_of(_: SimdLevel) -> pulp::Arch {
    pulp::Arch::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_level_can_be_asked_for_and_a_higher_one_cannot() {
        let own = SimdLevel::of_processor(SimdLevel::Amx);
        for (name, level) in NAMES {
            assert_eq!(level_named(name), Some(level));
            let given = SimdLevel::of_processor(level);
            // AVX512_BF16 can be asked for where it is not the fastest.
            assert!(
                given == level.min(own) || (own, given) == (SimdLevel::Avx512, SimdLevel::Avx512Bf16),
                "{name}: {given:?}"
            );
        }
        assert_eq!(level_named("AVX512"), None);
    }
}
