//! Whether this process may use AMX's tiles. Linux gives each process the 8 KiB of state for them only when it asks.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

const ARCH_PRCTL: usize = 158;
const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
/// The number of the tiles' data among the states that the processor saves.
const XTILEDATA: usize = 18;

/// Asks for the tiles. False without AMX_BF16, under a kernel or hypervisor that hides it, and where the request is refused (an alternate
/// signal stack without room for the tiles).
pub(super) fn permit() -> bool {
    // SAFETY: the request touches no memory of this process.
    in_processor() && saved_by_system() && unsafe { arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
}

fn in_processor() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE
}

/// Whether the operating system saves the tiles and their configuration with a thread.
fn saved_by_system() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u64 = 0b11 << 17;
    // SAFETY: the operating system has turned XGETBV on, as the first condition says.
    __cpuid(1).ecx & OSXSAVE != 0 && unsafe { states_saved() } & TILES == TILES
}

#[target_feature(enable = "xsave")]
fn states_saved() -> u64 {
    // SAFETY: register 0 exists wherever the instruction does.
    unsafe { _xgetbv(0) }
}

/// The system call of that name, for which the libraries in use have no function.
///
/// # Safety
/// `code` and `argument` are a request that leaves memory alone.
unsafe fn arch_prctl(code: usize, argument: usize) -> isize {
    let mut result = ARCH_PRCTL as isize;
    // SAFETY: the calling convention of Linux: number and result in rax, arguments in rdi and rsi; rcx and r11 are overwritten.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") code, in("rsi") argument, out("rcx") _, out("r11") _, options(nostack));
    }
    result
}
