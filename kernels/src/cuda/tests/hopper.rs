//! ptx90.cuh and its emulation: suite_hopper.cu against what the layouts are defined to be.

use super::dice::Dice;
use super::*;
use crate::cuda::driver::{Grid, Kernel, launch};
use crate::cuda::source::SUITE_HOPPER;
use crate::cuda::tensor_map::{Axis, TensorMap, TensorMapSpec};
use crate::reference::error;

const SHARED_BYTES: usize = 2 * 32768 + 8;

/// Mirrors `CopiedTile`.
#[repr(C)]
struct CopiedTile {
    map: TensorMap,
    out: DevicePointer,
    words: u32,
    dimensions: u32,
    at: [i32; 3],
}

/// Mirrors `TileProduct`.
#[repr(C)]
struct TileProduct {
    a: TensorMap,
    b: TensorMap,
    plain: DevicePointer,
    out: DevicePointer,
    k: u32,
}

/// Mirrors `TileRing`.
#[repr(C)]
struct TileRing {
    map: TensorMap,
    out: DevicePointer,
    tiles: u32,
}

const fn axis(size: usize, stride: usize, taken: usize) -> Axis {
    Axis { size, stride, taken }
}

/// A tensor of 2-byte elements, each its own index, and the boxes copied of it.
struct Boxes<'a> {
    axes: &'a [Axis],
    swizzled: bool,
}

impl Boxes<'_> {
    /// Element `i` of the box at `at`; 0 outside the tensor.
    fn element(&self, at: [i32; 3], mut i: usize) -> u16 {
        let mut offset = 0;
        for (axis, first) in self.axes.iter().zip(at) {
            let place = first + (i % axis.taken) as i32;
            i /= axis.taken;
            if place < 0 || place >= axis.size as i32 {
                return 0;
            }
            offset += place as usize * axis.stride;
        }
        offset as u16 / 2
    }

    /// Whether the box at `at` lies in shared memory as it should.
    fn lands(&self, bed: &Bed, at: [i32; 3]) -> Result<bool, KernelError> {
        let elements: usize = self.axes.iter().map(|axis| axis.taken).product();
        let bytes: Vec<u8> = (0..4096u16).flat_map(u16::to_le_bytes).collect();
        let tensor = bed.bytes(&bytes);
        let out = bed.poison(elements / 2);
        let spec = TensorMapSpec {
            address: tensor.pointer(),
            format: DType::Bf16,
            axes: self.axes,
            swizzled: self.swizzled,
        };
        let parameters = CopiedTile {
            map: bed.driver.tensor_map(&spec)?,
            out: out.pointer(),
            words: elements as u32 / 2,
            dimensions: self.axes.len() as u32,
            at,
        };
        let kernel = Kernel::new(&SUITE_HOPPER, "copied_tile", 128);
        let grid = Grid { blocks: [1, 1, 1], shared_bytes: SHARED_BYTES };
        // SAFETY: buffers of this tensor and this box.
        unsafe { launch(&*bed.driver, &kernel, grid, &parameters) }?;
        let words = read_words(&out, elements / 2);
        let lies = |i| lying(&words, if self.swizzled { place_of(i) } else { i });
        Ok((0..elements).all(|i| lies(i) == self.element(at, i)))
    }
}

/// Where element `i` of lines of 64 lies among those that are swizzled: of each eight lines, line l has
/// its piece p of eight elements at place p ^ l.
fn place_of(i: usize) -> usize {
    let (line, piece) = (i / 64, i / 8 % 8);
    line * 64 + (piece ^ (line % 8)) * 8 + i % 8
}

/// Element `i` of `words`.
fn lying(words: &[u32], i: usize) -> u16 {
    (words[i / 2] >> (i % 2 * 16)) as u16
}

/// A tensor of up to 8 KiB, and a box that may lie in it, half outside or beyond it.
pub(in crate::cuda) fn random_tile(_: &Bed, dice: &mut Dice, _: usize) -> Drawn {
    let swizzled = !dice.once_in(3);
    let across = if swizzled { 64 } else { 8 * (1 + dice.below(16)) };
    let columns = 1 + dice.below(100);
    let stride = (columns * 2).next_multiple_of(16) + 16 * dice.below(2);
    let rows = 1 + dice.below((8192 / stride).min(40));
    let mut axes = vec![axis(columns, 2, across), axis(rows, stride, 1 + dice.below(64))];
    if dice.once_in(2) {
        axes[1].taken = 1 + dice.below(8);
        let plane = rows * stride;
        axes.push(axis(1 + dice.below((8192 / plane).min(5)), plane, 1 + dice.below(3)));
    }
    let mut at = [0; 3];
    for (place, axis) in at.iter_mut().zip(&axes) {
        *place = dice.below(axis.size + 2 * axis.taken) as i32 - axis.taken as i32;
    }
    let case = format!("{axes:?} at {at:?}, swizzled: {swizzled}");
    (case, Box::new(move |bed: &Bed| Boxes { axes: &axes, swizzled }.lands(bed, at)))
}

#[test]
fn tiles_land_as_they_are_defined() {
    let flat = [axis(100, 2, 64), axis(19, 208, 16)];
    let deep = [axis(40, 2, 64), axis(9, 80, 8), axis(4, 720, 3)];
    let plain = [axis(24, 2, 24), axis(19, 48, 32)];
    for seed in SEEDS {
        let bed = Bed::new(seed, None);
        let lands = |axes: &[Axis], swizzled, at| Boxes { axes, swizzled }.lands(&bed, at).unwrap();
        for at in [[0, 0, 0], [64, 16, 0], [-8, -3, 0], [200, 0, 0]] {
            assert!(lands(&flat, true, at), "{at:?}");
        }
        for at in [[0, 0, 0], [8, 5, 2], [-1, 3, -1]] {
            assert!(lands(&deep, true, at), "{at:?}");
        }
        assert!(lands(&plain, false, [0, 0, 0]) && lands(&plain, false, [3, 17, 0]));
    }
}

#[test]
fn a_map_beyond_its_buffer_is_refused() {
    let bed = Bed::new(1, None);
    let tensor = bed.bytes(&[0; 4096]);
    let map = |rows| {
        let axes = [axis(64, 2, 64), axis(rows, 128, 8)];
        let address = tensor.pointer();
        let spec = TensorMapSpec { address, format: DType::Bf16, axes: &axes, swizzled: true };
        bed.driver.tensor_map(&spec).is_ok()
    };
    assert!(map(32) && !map(33));
}

/// A kind of product, as the kernel's name says.
#[derive(Clone, Copy, Debug)]
struct Product {
    name: &'static str,
    columns: usize,
    format: DType,
    is_transposed: bool,
}

const fn product(name: &'static str, columns: usize, format: DType) -> Product {
    Product { name, columns, format, is_transposed: false }
}

const fn transposed(name: &'static str, columns: usize, format: DType) -> Product {
    Product { name, columns, format, is_transposed: true }
}

const PRODUCTS: [Product; 12] = [
    product("tile_product_bf16_64", 64, DType::Bf16),
    product("tile_product_bf16_128", 128, DType::Bf16),
    product("tile_product_bf16_256", 256, DType::Bf16),
    transposed("tile_product_bf16_64_transposed", 64, DType::Bf16),
    transposed("tile_product_bf16_128_transposed", 128, DType::Bf16),
    transposed("tile_product_bf16_256_transposed", 256, DType::Bf16),
    product("tile_product_f16_64", 64, DType::F16),
    product("tile_product_f16_128", 128, DType::F16),
    product("tile_product_f16_256", 256, DType::F16),
    transposed("tile_product_f16_64_transposed", 64, DType::F16),
    transposed("tile_product_f16_128_transposed", 128, DType::F16),
    transposed("tile_product_f16_256_transposed", 256, DType::F16),
];

/// Rows of a product.
const ROWS: usize = 64;

/// Whether sums of a product are exact.
#[derive(Clone, Copy, Debug)]
enum Numbers {
    /// Whole, and small enough that every sum is exact in any order.
    Whole,
    /// Any: sums are rounded, and a card may cut where the emulation rounds.
    Rounded,
}

impl Numbers {
    fn draw(self, seed: u64, len: usize, format: DType) -> Vec<f32> {
        let number = |value: f32| match (self, format) {
            (Numbers::Whole, _) => (value * 8.0).round(),
            (Numbers::Rounded, DType::F16) => f16::from_f32(value).to_f32(),
            (Numbers::Rounded, _) => bf16::from_f32(value).to_f32(),
        };
        noises(seed, len).into_iter().map(number).collect()
    }

    /// The largest relative error.
    fn bound(self) -> f64 {
        match self {
            Numbers::Whole => 0.0,
            Numbers::Rounded => 2e-5,
        }
    }
}

impl Product {
    fn is_right(&self, bed: &Bed, k: usize) -> Result<bool, KernelError> {
        self.multiplies(bed, k, (Numbers::Whole, 1))
    }

    /// Whether a product over `k`, of numbers that are drawn by a seed, is what it is defined to be.
    fn multiplies(
        &self,
        bed: &Bed,
        k: usize,
        (numbers, seed): (Numbers, u64),
    ) -> Result<bool, KernelError> {
        let Product { name, columns, format, is_transposed } = *self;
        let a = numbers.draw(2 * seed, ROWS * k, format);
        let b = numbers.draw(2 * seed + 1, columns * k, format);
        let b_at = |column: usize, i: usize| {
            if is_transposed { b[i * columns + column] } else { b[column * k + i] }
        };
        let want: Vec<f64> = (0..ROWS * columns)
            .map(|at| {
                let (row, column) = (at / columns, at % columns);
                (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b_at(column, i))).sum()
            })
            .collect();
        let (on_a, on_b) = (bed.numbers(&a, format), bed.numbers(&b, format));
        let out = bed.poison(ROWS * columns);
        let map = |address, (lines, length), taken| {
            let axes = [axis(length, 2, 64), axis(lines, length * 2, taken)];
            bed.driver.tensor_map(&TensorMapSpec { address, format, axes: &axes, swizzled: true })
        };
        let parameters = TileProduct {
            a: map(on_a.pointer(), (ROWS, k), ROWS)?,
            b: if is_transposed {
                map(on_b.pointer(), (k, columns), 64)?
            } else {
                map(on_b.pointer(), (columns, k), columns)?
            },
            plain: on_a.pointer(),
            out: out.pointer(),
            k: k as u32,
        };
        let kernel = Kernel::new(&SUITE_HOPPER, name, 128);
        let grid = Grid { blocks: [1, 1, 1], shared_bytes: SHARED_BYTES };
        // SAFETY: buffers of these shapes.
        unsafe { launch(&*bed.driver, &kernel, grid, &parameters) }?;
        Ok(error(&read_floats(&out, ROWS * columns), &want) <= numbers.bound())
    }
}

/// A product of any kind over up to 512 k.
pub(in crate::cuda) fn random_product(_: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let product = dice.of(&PRODUCTS);
    let k = 64 * (1 + dice.below(most.clamp(1, 8)));
    let numbers = dice.of(&[Numbers::Whole, Numbers::Rounded]);
    let seed = dice.below(1 << 16) as u64;
    let case = format!("{} over {k}, {numbers:?}, seed {seed}", product.name);
    (case, Box::new(move |bed: &Bed| product.multiplies(bed, k, (numbers, seed))))
}

/// Up to sixteen tiles, one after another through a ring.
pub(in crate::cuda) fn random_ring(_: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let tiles = 1 + dice.below(most.clamp(1, 16));
    (format!("{tiles} tiles"), Box::new(move |bed: &Bed| turns(bed, tiles)))
}

/// Whether so many tiles come out of a ring as they went in, in their order.
fn turns(bed: &Bed, tiles: usize) -> Result<bool, KernelError> {
    const ELEMENTS: usize = 64 * 64;
    let element = |i: usize| (i as u16).wrapping_mul(40_503);
    let bytes: Vec<u8> = (0..tiles * ELEMENTS).flat_map(|i| element(i).to_le_bytes()).collect();
    let tensor = bed.bytes(&bytes);
    let out = bed.poison(tiles * ELEMENTS / 2);
    let axes = [axis(64, 2, 64), axis(64 * tiles, 128, 64)];
    let spec = TensorMapSpec {
        address: tensor.pointer(),
        format: DType::Bf16,
        axes: &axes,
        swizzled: true,
    };
    let map = bed.driver.tensor_map(&spec)?;
    let parameters = TileRing { map, out: out.pointer(), tiles: tiles as u32 };
    let kernel = Kernel::new(&SUITE_HOPPER, "tile_ring", 3 * 128);
    // Two barriers for each of three slots.
    let grid = Grid { blocks: [1, 1, 1], shared_bytes: 2 * 32768 + 6 * 8 };
    // SAFETY: buffers of so many tiles.
    unsafe { launch(&*bed.driver, &kernel, grid, &parameters) }?;
    let words = read_words(&out, tiles * ELEMENTS / 2);
    Ok((0..tiles * ELEMENTS).all(|i| lying(&words, place_of(i)) == element(i)))
}

#[test]
fn tiles_come_through_a_ring() {
    for seed in SEEDS {
        let bed = Bed::new(seed, None);
        for tiles in [1, 3, 4, 11] {
            assert!(turns(&bed, tiles).unwrap(), "{tiles} tiles");
        }
    }
}

#[test]
fn what_is_drawn_is_right() {
    for seed in SEEDS {
        let (bed, mut dice) = (Bed::new(seed, None), Dice(seed));
        for random in [random_tile, random_product, random_ring] {
            for _ in 0..4 {
                let (case, run) = random(&bed, &mut dice, 3);
                assert!(run(&bed).unwrap(), "{case}");
            }
        }
    }
}

#[test]
fn faults_in_a_ring_show() {
    let faults = [
        Fault { from: "(i / RING_SLOTS + 1) % 2", to: "i / RING_SLOTS % 2" },
        Fault { from: "wait_phase(full + slot, i / RING_SLOTS % 2);", to: "" },
        Fault {
            from: "        wait_phase(empty + slot",
            to: "        if (0) wait_phase(empty + slot",
        },
        Fault { from: "        arrive(empty + slot);\n", to: "" },
        Fault { from: "init_barrier(empty + i, RING_READERS)", to: "init_barrier(empty + i, 1)" },
        Fault { from: "full + slot, 0, i * 64", to: "full + slot, 0, i * 32" },
        Fault { from: "give_registers<40>();", to: "" },
        Fault { from: "take_registers<232>();", to: "take_registers<248>();" },
    ];
    assert_caught(&faults, |bed| turns(bed, 11));
}

#[test]
fn products_of_every_kind() {
    for (product, seed) in PRODUCTS.into_iter().zip(1..) {
        for k in [64, 192] {
            assert!(product.is_right(&Bed::new(seed, None), k).unwrap(), "{product:?} {k}");
        }
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        // Barriers.
        Fault { from: "wait_phase(barrier, k / K_AT_ONCE % 2);", to: "" },
        Fault { from: "wait_phase(barrier, k / K_AT_ONCE % 2);", to: "wait_phase(barrier, 0);" },
        Fault { from: "* LINE_BYTES);\n            if (FROM", to: ");\n            if (FROM" },
        Fault { from: "        publish_barriers();\n", to: "" },
        // What must be told, and waited for.
        Fault { from: "        fence_products();\n", to: "" },
        Fault { from: "        commit_products();\n", to: "" },
        Fault { from: "    publish_stores();\n", to: "" },
        Fault { from: "wait_products<0>", to: "wait_products<1>" },
        Fault { from: "        // Operands are used again.\n        sync_block();", to: "" },
        // Layouts.
        Fault { from: "step * STEP_BYTES), on_b", to: "step * LINE_BYTES), on_b" },
        Fault { from: "(piece ^ row % 8) * 16", to: "piece * 16" },
        Fault { from: "LINES_BYTES, 64 * LINE_BYTES)", to: "LINES_BYTES, 16)" },
        Fault {
            from: "i % 2 * 8;\n        const u16* from = p.plain",
            to: "i / 2 * 8;\n        const u16* from = p.plain",
        },
        Fault { from: "i / 4 * 8 + lane_index() % 4 * 2", to: "i / 4 * 8 + lane_index() / 4 * 2" },
    ];
    // Stored, copied and register operands, each way.
    let kinds = [1, 5, 10].map(|i| PRODUCTS[i]);
    assert_caught(&faults, |bed| {
        for product in kinds {
            if !product.is_right(bed, 192)? {
                return Ok(false);
            }
        }
        Ok(true)
    });
}

#[test]
fn what_the_device_leaves_undefined_ends_the_launch() {
    let cases = [
        ("hold_sums(sums);\n        fence_products();", "a product without a fence"),
        ("        commit_products();\n", "changes sums of a product under way"),
        ("publish_barriers();", "told of a barrier without a fence"),
        ("bool is_first = k + step == 0;", "a warpgroup parts"),
    ];
    let replacements = [
        "",
        "        commit_products();\n        sums[0] = 1.0f;\n",
        "",
        "bool is_first = k + step + thread_index() / 64 == 0;",
    ];
    for ((from, want), to) in cases.into_iter().zip(replacements) {
        // Seed 2: nothing happens early.
        let bed = Bed::new(2, Some(Fault { from, to }));
        match PRODUCTS[4].is_right(&bed, 128) {
            Err(KernelError::Fault(text)) => assert!(text.contains(want), "{text}"),
            other => panic!("{want}: {other:?}"),
        }
    }
}
