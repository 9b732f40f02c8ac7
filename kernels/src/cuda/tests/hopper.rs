//! ptx90.cuh and its emulation: suite_hopper.cu against what the layouts are defined to be.

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
        let lies = |i: usize| {
            // Of each eight lines of 64 elements, line l has its piece p of eight at place p ^ l.
            let (line, piece) = (i / 64, i / 8 % 8);
            let from = if self.swizzled { line * 64 + (piece ^ (line % 8)) * 8 + i % 8 } else { i };
            (words[from / 2] >> (from % 2 * 16)) as u16
        };
        Ok((0..elements).all(|i| lies(i) == self.element(at, i)))
    }
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

impl Product {
    fn is_right(&self, bed: &Bed, k: usize) -> Result<bool, KernelError> {
        let Product { name, columns, format, is_transposed } = *self;
        // Whole numbers, small enough that every sum is exact in any order.
        let whole = |seed, len| -> Vec<f32> {
            noises(seed, len).iter().map(|value| (value * 8.0).round()).collect()
        };
        let (a, b) = (whole(1, ROWS * k), whole(2, columns * k));
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
        Ok(error(&read_floats(&out, ROWS * columns), &want) == 0.0)
    }
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
