//! AMX on a processor that lacks it: each of its instructions traps, and the handler of the signal carries it out.
//!
//! Slow, but the instructions are those that a processor with AMX gets. The arithmetic is that of Intel's manual (TDPBF16PS): per pair of a row
//! and a column two chains of fused multiply-adds, one over the first and one over the second elements of the pairs, added together and then to the
//! destination; denormal numbers count as 0.

use std::cell::RefCell;
use std::sync::OnceLock;

const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

/// A thread's tile registers, and how much of each is in use.
struct Tiles {
    data: [[u8; ROWS * ROW_BYTES]; 8],
    rows: [usize; 8],
    row_bytes: [usize; 8],
}

thread_local! {
    static TILES: RefCell<Tiles> =
        const { RefCell::new(Tiles { data: [[0; ROWS * ROW_BYTES]; 8], rows: [0; 8], row_bytes: [0; 8] }) };
}

/// Handles illegal instructions from now on. True if that could be set up.
pub(crate) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: all zero is a valid sigaction; the handler uses nothing but its own thread's tiles and the memory that the trapped
        // instruction names.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) == 0
        }
    })
}

extern "C" fn handle(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO the registers at the trap; the instruction that trapped is at `rip`.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let code = std::slice::from_raw_parts(registers[libc::REG_RIP as usize] as *const u8, 16);
        match TILES.with_borrow_mut(|tiles| tiles.execute(code, registers)) {
            Some(length) => registers[libc::REG_RIP as usize] += length as i64,
            None => {
                // An instruction that is truly illegal: the process ends as it would have.
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// An operand in memory: where its bytes are, and the distance of a tile's rows.
struct Memory {
    address: *mut u8,
    stride: isize,
    /// Bytes of the instruction after the opcode.
    length: usize,
}

impl Tiles {
    /// Carries out the instruction at `code`. Returns its length; none if it is not one of AMX.
    ///
    /// # Safety
    /// The instruction is about to be executed with these registers.
    unsafe fn execute(&mut self, code: &[u8], registers: &[i64; 23]) -> Option<usize> {
        // A three-byte VEX prefix of the map 0F38, without W, of 128 bits.
        let [0xc4, map, rest, opcode, modrm, ..] = *code else { return None };
        if map & 0x1f != 2 || rest & 0x84 != 0 {
            return None;
        }
        let prefix = rest & 3;
        let in_register = modrm >> 6 == 3;
        let reg = usize::from(modrm >> 3 & 7);
        // SAFETY: the instruction's own operand.
        let memory = || unsafe { memory_operand(&code[4..], map, registers) };
        match (opcode, prefix, in_register) {
            (0x49, 0, false) => {
                let memory = memory();
                // SAFETY: LDTILECFG reads 64 bytes.
                self.configure(unsafe { std::slice::from_raw_parts(memory.address, 64) });
                Some(4 + memory.length)
            }
            (0x49, 0, true) if modrm == 0xc0 => {
                (self.rows, self.row_bytes) = ([0; 8], [0; 8]);
                Some(5)
            }
            (0x49, 3, true) => {
                self.data[reg].fill(0);
                Some(5)
            }
            (0x4b, 3 | 2, false) => {
                let memory = memory();
                // SAFETY: the rows of the configured tile at the operand's address.
                unsafe { self.copy(reg, &memory, prefix == 3) };
                Some(4 + memory.length)
            }
            (0x5c, 2, true) => {
                self.multiply(reg, usize::from(modrm & 7), usize::from(!(rest >> 3) & 7));
                Some(5)
            }
            _ => None,
        }
    }

    fn configure(&mut self, config: &[u8]) {
        assert_eq!(config[0], 1, "palette 1 is the only one");
        for tile in 0..8 {
            self.row_bytes[tile] = usize::from(u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]));
            self.rows[tile] = usize::from(config[48 + tile]);
            assert!(self.row_bytes[tile] <= ROW_BYTES && self.rows[tile] <= ROWS, "a tile is larger than a register");
            self.data[tile].fill(0);
        }
    }

    /// TILELOADD or, in the other direction, TILESTORED.
    ///
    /// # Safety
    /// The tile's rows are at the operand's address.
    unsafe fn copy(&mut self, tile: usize, memory: &Memory, load: bool) {
        let bytes = self.row_bytes[tile];
        assert!(self.rows[tile] > 0, "a tile is used without a configuration");
        if load {
            self.data[tile].fill(0);
        }
        for row in 0..self.rows[tile] {
            let here = self.data[tile][row * ROW_BYTES..].as_mut_ptr();
            let there = memory.address.wrapping_offset(row as isize * memory.stride);
            let (from, to) = if load { (there.cast_const(), here) } else { (here.cast_const(), there) };
            // SAFETY: the caller's promise; a register has room for the row.
            unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
        }
    }

    /// TDPBF16PS: `dst += a · b`, where a row of `b` holds a pair of terms for each column.
    fn multiply(&mut self, dst: usize, a: usize, b: usize) {
        let pairs = self.row_bytes[a] / 4;
        let columns = self.row_bytes[dst] / 4;
        assert!(pairs <= self.rows[b] && self.rows[dst] <= self.rows[a], "the tiles of a product do not fit");
        for row in 0..self.rows[dst] {
            for column in 0..columns {
                let mut chains = [0f32; 2];
                for pair in 0..pairs {
                    for (half, chain) in chains.iter_mut().enumerate() {
                        let x = bf16(&self.data[a][row * ROW_BYTES + 4 * pair + 2 * half..]);
                        let y = bf16(&self.data[b][pair * ROW_BYTES + 4 * column + 2 * half..]);
                        *chain = flushed(x.mul_add(y, *chain));
                    }
                }
                let sum = &mut self.data[dst][row * ROW_BYTES + 4 * column..][..4];
                let old = flushed(f32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]));
                sum.copy_from_slice(&flushed(old + flushed(chains[0] + chains[1])).to_le_bytes());
            }
        }
    }
}

fn bf16(bytes: &[u8]) -> f32 {
    flushed(f32::from_le_bytes([0, 0, bytes[0], bytes[1]]))
}

fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0 } else { x }
}

/// The operand that a ModRM byte and what follows it name.
///
/// # Safety
/// They are part of an instruction; `registers` are those at its execution.
unsafe fn memory_operand(code: &[u8], map: u8, registers: &[i64; 23]) -> Memory {
    // The VEX prefix holds the high bits of register numbers inverted.
    let high_index = usize::from(map & 0x40 == 0) * 8;
    let high_base = usize::from(map & 0x20 == 0) * 8;
    let modrm = code[0];
    let has_index = modrm & 7 == 4;
    let (base, stride, mut length) = if has_index {
        let sib = code[1];
        let index = usize::from(sib >> 3 & 7) + high_index;
        let stride = if index == 4 { 0 } else { register(registers, index) << (sib >> 6) };
        (usize::from(sib & 7), stride, 2)
    } else {
        (usize::from(modrm & 7), 0, 1)
    };
    let displacement = match modrm >> 6 {
        0 => {
            assert!(base != 5, "addresses relative to the instruction are not emulated");
            0
        }
        1 => i64::from(code[length].cast_signed()),
        _ => i64::from(i32::from_le_bytes([code[length], code[length + 1], code[length + 2], code[length + 3]])),
    };
    length += [0, 1, 4][usize::from(modrm >> 6)];
    let address = register(registers, base + high_base) + displacement;
    Memory { address: address as *mut u8, stride: stride as isize, length }
}

/// The general register with this number in the encoding of instructions.
fn register(registers: &[i64; 23], number: usize) -> i64 {
    use libc::*;
    const ORDER: [c_int; 16] = [
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
        REG_R12, REG_R13, REG_R14, REG_R15,
    ];
    registers[ORDER[number] as usize]
}
