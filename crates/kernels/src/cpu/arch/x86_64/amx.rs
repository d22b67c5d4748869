//! AMX: products of `bf16` pairs on eight tile registers of sixteen rows of sixteen words, since
//! Sapphire Rapids. In: strips of `A` and panels of `B`, both already in the order of tiles. Out:
//! `C += A B`. Everything else comes from AVX-512, which such a processor has.
//!
//! A tile of `A` is sixteen words of sixteen rows, and a strip has two of them one after the other:
//! `[depth / 16][32][16]`. A tile of `B` is sixteen words of depth of sixteen columns: a panel
//! `[depth][16]` is a row of them. So a tile lies in one piece of 1 KB. Rows of a tile that were
//! 4 KB apart would all want the same place in the first cache.

use std::arch::asm;
use std::ops::Range;

use crate::cpu::kernels::{AVX512BF16, PairKernels};
use crate::cpu::ops::panel::{PANEL, Start};
use crate::cpu::product::{Blocking, Pairs};
use crate::cpu::rect::Rect;

/// Rows of a tile, and words of a row.
const TILE: usize = 16;
/// Rows of a strip: two tiles.
const STRIP: usize = 2 * TILE;
/// Columns of two tiles.
const WIDTH: usize = 2 * TILE;

const _: () = assert!(PANEL == TILE);

/// A chunk of `B` is two panels, 32 KB for a step of 256 words. A part is 256 rows, 256 KB of `A`
/// for a step, times 512 columns, 512 KB of `C`.
///
/// Nothing of this was measured with this code, which has only run under emulation. The numbers
/// are those of a prototype on a Sapphire Rapids core (48 KB and 2 MB of cache), in nanoseconds for
/// one turn of the loop of [`Quad::multiply`]: 24 with both operands in the first cache, 25 to 27
/// with `B` there (32 KB) and `A` coming from the second with the hint T1, 33 without the hint, for
/// `A` then evicts `B`; 31 to 33 with both in the second; 70 with `A` in the third, hence the 256
/// rows. Its parts had 256 columns up to 2,048 values of depth and 512 above.
const BLOCKING: Blocking = Blocking::of::<STRIP, TILE>(WIDTH, (8 * STRIP, 16 * WIDTH));

/// Products in tiles. The rows that are few are of the same prototype: 8 for weights of 4 bits
/// (those of 8 bits were equal at 4). Its dots multiplied one byte for an activation
/// and ours two, and its expansion of weights was twice as fast as the kind that ours is.
pub(crate) static AMX: Pairs =
    Pairs { path: "bf16 pair tiles", kernels: &KERNELS, blocking: BLOCKING, few_integer: 8 };

static KERNELS: PairKernels = PairKernels { multiply_adds, multiply, ..*AVX512BF16.kernels };

/// Whether this processor multiplies `bf16` in tiles and the system lets the program use them.
pub(crate) fn is_available() -> bool {
    has_tiles() && may_use_tiles()
}

/// Whether the processor has tiles of `bf16`, and the system saves them with a thread.
fn has_tiles() -> bool {
    /// Of CPUID leaf 7: AMX-BF16 and AMX-TILE.
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    /// Of XCR0: the configuration and the data of tiles.
    const SAVED: u64 = 0b11 << 17;
    // AVX is reported only where the system has switched `xgetbv` on (OSXSAVE), and only
    // processors that have leaf 7 have AVX2.
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("xsave") {
        return false;
    }
    // SAFETY: `xsave` and what switches it on were just seen.
    let saved = unsafe { std::arch::x86_64::_xgetbv(0) };
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    saved & SAVED == SAVED && features & FEATURES == FEATURES
}

/// Asks the system for tiles on behalf of all threads. Asking again changes nothing.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    /// `ARCH_REQ_XCOMP_PERM`, since Linux 5.16.
    const REQUEST: libc::c_long = 0x1023;
    /// Number of the tiles' data in XCR0.
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers, and no memory of the program.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

/// Other systems have rules of their own, which Puna does not know.
#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// What `ldtilecfg` reads: the bytes of a row and the rows of each register, under palette 1.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Config>() == 64);

impl Config {
    /// Registers 0 to 3 are tiles of `C`, two by two, of `rows` rows and `cols` columns; 4 and 5
    /// the tiles of `A` beside them, 6 and 7 those of `B` above them.
    fn of(rows: [usize; 2], cols: [usize; 2]) -> Self {
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let c = [(rows[0], cols[0]), (rows[0], cols[1]), (rows[1], cols[0]), (rows[1], cols[1])];
        let a_and_b = [(rows[0], TILE), (rows[1], TILE), (TILE, cols[0]), (TILE, cols[1])];
        for (i, (rows, words)) in c.into_iter().chain(a_and_b).enumerate() {
            config.rows[i] = rows as u8;
            config.row_bytes[i] = 4 * words as u16;
        }
        config
    }

    /// # Safety
    /// [`is_available`] said yes. Until [`release`], no code runs on this thread that has tiles of
    /// its own.
    unsafe fn load(&self) {
        // SAFETY: the caller's promise; the operand is 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                config = in(reg) self,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Leaves the tiles as a thread has them at its start, so that nobody need save them.
///
/// # Safety
/// [`is_available`] said yes.
unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }
}

/// Four tiles of `C`, two by two, and what is added to them.
struct Quad {
    /// The first tiles of `A`.
    a: [*const f32; 2],
    /// The first tiles of `B`.
    b: [*const f32; 2],
    /// Bytes from a tile of `B` to the next; of `A` it is twice as many.
    next: usize,
    /// Quad of depth.
    depth: usize,
    c: [[*mut f32; 2]; 2],
    /// Bytes from a row of `C` to the next.
    stride: usize,
    start: Start,
}

impl Quad {
    /// `C (+)= Σ A B`. A value is one chain of additions in the order of depth, of one term for
    /// each tile.
    ///
    /// # Safety
    /// A [`Config`] is loaded; memory of its tiles may be read, and at `c` written. There is some
    /// depth.
    unsafe fn multiply(&self) {
        let &Self { a: [a0, a1], b: [b0, b1], next, depth, c, stride, start } = self;
        let [[c0, c1], [c2, c3]] = c;
        // SAFETY: the caller's promise. It is one block because nothing would keep the tiles from
        // one block to another.
        unsafe {
            asm!(
                "test {held:e}, {held:e}",
                "jz 2f",
                "tileloadd tmm0, [{c0} + {stride}*1]",
                "tileloadd tmm1, [{c1} + {stride}*1]",
                "tileloadd tmm2, [{c2} + {stride}*1]",
                "tileloadd tmm3, [{c3} + {stride}*1]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm6, [{b0} + {row}*1]",
                "tileloaddt1 tmm4, [{a0} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloaddt1 tmm5, [{a1} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "lea {a0}, [{a0} + 2*{next}]",
                "lea {a1}, [{a1} + 2*{next}]",
                "add {b0}, {next}",
                "add {b1}, {next}",
                "dec {depth}",
                "jnz 3b",
                "tilestored [{c0} + {stride}*1], tmm0",
                "tilestored [{c1} + {stride}*1], tmm1",
                "tilestored [{c2} + {stride}*1], tmm2",
                "tilestored [{c3} + {stride}*1], tmm3",
                held = in(reg) u32::from(start == Start::Held),
                a0 = inout(reg) a0 => _,
                a1 = inout(reg) a1 => _,
                b0 = inout(reg) b0 => _,
                b1 = inout(reg) b1 => _,
                next = in(reg) next,
                depth = inout(reg) depth => _,
                c0 = in(reg) c0,
                c1 = in(reg) c1,
                c2 = in(reg) c2,
                c3 = in(reg) c3,
                stride = in(reg) stride,
                row = in(reg) 4 * TILE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// [`multiply`](crate::cpu::ops::panel::multiply) of pairs in strips `[depth / 16][32][16]`.
fn multiply(a: &[f32], panels: &[f32], start: Start, c: &mut Rect<'_, f32>) {
    let (rows, cols) = c.shape();
    if rows == 0 || cols == 0 {
        return;
    }
    let depth = panels.len() / cols.next_multiple_of(PANEL);
    let slot = a.len() / rows.div_ceil(STRIP);
    let whole = rows / STRIP;
    for from in (0..cols).step_by(WIDTH) {
        let cols = from..cols.min(from + WIDTH);
        let panels = &panels[from * depth..];
        if whole > 0 {
            StripRun { a, slot, panels, depth, start }.multiply(0..whole * STRIP, STRIP, &cols, c);
        }
        if rows > whole * STRIP {
            let a = &a[whole * slot..];
            let rows = whole * STRIP..rows;
            StripRun { a, slot, panels, depth, start }.multiply(rows.clone(), rows.len(), &cols, c);
        }
    }
}

/// StripRun of `A` and two panels.
struct StripRun<'a> {
    a: &'a [f32],
    /// Words from one strip to the next.
    slot: usize,
    panels: &'a [f32],
    /// Words of depth: whole tiles.
    depth: usize,
    start: Start,
}

impl StripRun<'_> {
    /// Adds the strips, of `height` rows each, times the panels to rows × cols of `c`.
    ///
    /// Quad end where those rows and columns end. One that would have none of its own is a row or
    /// a column of its neighbour, computed once more from the same values: no case needs another
    /// loop or memory to spare.
    fn multiply(
        &self,
        rows: Range<usize>,
        height: usize,
        cols: &Range<usize>,
        c: &mut Rect<'_, f32>,
    ) {
        let &Self { a, slot, panels, depth, start } = self;
        let strips = rows.len() / height;
        let second = |len: usize| if len > TILE { TILE } else { 0 };
        let (below, right) = (second(height), second(cols.len()));
        assert!(depth > 0 && depth.is_multiple_of(TILE) && strips > 0);
        assert!(a.len() >= (strips - 1) * slot + STRIP * depth);
        assert!(panels.len() >= (right + TILE) * depth);
        let b = [panels.as_ptr(), panels[right * depth..].as_ptr()];
        c.at(rows.end - 1, cols.end - 1);
        let (c, stride) = c.at(rows.start, cols.start);
        let sizes = |len: usize| [len.min(TILE), len.saturating_sub(TILE).max(1)];
        let config = Config::of(sizes(height), sizes(cols.len()));
        // SAFETY: this function is in no table but that of `is_available`. Between `load` and
        // `release` nothing is called. The operands were just seen to be long enough, and the first
        // and the last value of `c` to be there.
        unsafe {
            config.load();
            for strip in 0..strips {
                let a = a.as_ptr().add(strip * slot);
                let top = c.add(strip * STRIP * stride);
                let bottom = top.add(below * stride);
                let tiles = Quad {
                    a: [a, a.add(below * TILE)],
                    b,
                    next: 4 * TILE * TILE,
                    depth: depth / TILE,
                    c: [[top, top.add(right)], [bottom, bottom.add(right)]],
                    stride: 4 * stride,
                    start,
                };
                tiles.multiply();
            }
            release();
        }
    }
}

/// Turns of the loop of [`Quad::multiply`] over tiles that stay in the first cache, and how many
/// multiply-adds that is: see [`crate::cpu::measure`]. Its loads belong to it: no product does
/// without them.
fn multiply_adds(turns: usize) -> usize {
    #[repr(align(64))]
    struct Values([f32; STRIP * TILE]);
    assert!(turns > 0);
    let mut state = 1u32;
    let mut words = || {
        Values(std::array::from_fn(|_| {
            // Any signs and fractions under exponents of 1/2 and 1: zeros would flatter the unit.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(state & 0x80ff_80ff | 0x3f00_3f00)
        }))
    };
    let (a, b, mut c) = (words(), words(), [[0.0f32; WIDTH]; STRIP]);
    let (c0, stride) = (c.as_mut_ptr().cast::<f32>(), WIDTH);
    let config = Config::of([TILE; 2], [TILE; 2]);
    // SAFETY: as in `StripRun::multiply`; `a` and `b` hold two tiles each, `c` holds four.
    unsafe {
        config.load();
        let tiles = Quad {
            a: [a.0.as_ptr(), a.0.as_ptr().add(TILE * TILE)],
            b: [b.0.as_ptr(), b.0.as_ptr().add(TILE * TILE)],
            next: 0,
            depth: turns,
            c: [0, TILE * stride].map(|row| [c0.add(row), c0.add(row + TILE)]),
            stride: 4 * stride,
            start: Start::Zero,
        };
        tiles.multiply();
        release();
    }
    std::hint::black_box(c);
    turns * STRIP * WIDTH * 2 * TILE
}
