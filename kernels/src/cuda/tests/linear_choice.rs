//! How products are cut: shapes of real models on a device of an H200's size.

use crate::cuda::CudaOptions;
use crate::cuda::few_rows::rows_at_once;
use crate::cuda::linear_choice::{
    BYTE_TILINGS, Cut, Method, ProductShape, TILINGS, Target, WIDE, choose, choose_grouped,
};
use crate::dtype::DType;
use crate::weight_format::{Quantization, WeightFormat};

const MULTIPROCESSORS: u32 = 132;
/// Rows and columns of weights: a router, projections of 1B and 8B models, a head.
const WEIGHTS: [(u32, u32); 9] = [
    (8, 64),
    (128, 2048),
    (2048, 2048),
    (3072, 2048),
    (4096, 14336),
    (6144, 4096),
    (28672, 4096),
    (128_256, 4096),
    (4096, 40),
];

fn target(deterministic: bool) -> Target {
    let options = CudaOptions { deterministic };
    let shared_bytes_max = 232_448;
    let (is_hopper, has_library) = (false, false);
    Target { multiprocessors: MULTIPROCESSORS, shared_bytes_max, is_hopper, has_library, options }
}

fn shape(rows: u32, (n, k): (u32, u32), format: impl Into<WeightFormat>) -> ProductShape {
    ProductShape { rows, n, k, format: format.into() }
}

fn cut(target: &Target, shape: ProductShape) -> Cut {
    match choose(target, shape) {
        Method::Tensor(cut) => cut,
        other => panic!("{other:?} for {shape:?}"),
    }
}

#[test]
fn rows_choose_the_kernel() {
    let method = |rows, format| choose(&target(false), shape(rows, (4096, 4096), format));
    for format in [DType::Bf16, DType::F16] {
        assert_eq!([1, 4].map(|rows| method(rows, format)), [Method::Rows; 2]);
        for (rows, tile) in [(5, 16), (16, 16), (17, 32), (33, 64), (64, 64), (65, 128)] {
            let cut = cut(&target(false), shape(rows, (4096, 4096), format));
            assert_eq!(cut.tiling.rows, tile, "{rows}");
        }
    }
    assert_eq!([1, 16].map(|rows| method(rows, DType::F32)), [Method::Rows; 2]);
    assert_eq!([17, 4000].map(|rows| method(rows, DType::F32)), [Method::Tiled; 2]);
    assert_eq!(choose(&target(true), shape(4000, (4096, 4096), DType::F32)), Method::Rows);
}

/// All but f32.
const FORMATS: [WeightFormat; 5] = [
    WeightFormat::Plain(DType::Bf16),
    WeightFormat::Plain(DType::F16),
    WeightFormat::Quantized(Quantization::Q8_0),
    WeightFormat::Quantized(Quantization::Q4_0),
    WeightFormat::Quantized(Quantization::Fp8),
];

#[test]
fn quantized_weights_meet_matrix_units_too() {
    for quantization in Quantization::ALL {
        let shape = |rows| shape(rows, (4096, 4096), quantization);
        assert_eq!([1, 4].map(|rows| choose(&target(false), shape(rows))), [Method::Rows; 2]);
        for (rows, tile) in [(5, 16), (17, 32), (64, 64), (65, 128), (5000, 128)] {
            let cut = cut(&target(false), shape(rows));
            assert_eq!(cut.tiling.rows, tile, "{rows} {quantization:?}");
            let is_of_bytes = BYTE_TILINGS.contains(&cut.tiling);
            assert_eq!(is_of_bytes, quantization.quantizes_rows());
            assert!(cut.tiling.kernel(quantization.into()).contains(quantization.name()));
        }
        // Asked for one order of sums, a row alone goes the same way.
        assert_eq!(cut(&target(true), shape(1)).chunks, cut(&target(true), shape(5000)).chunks);
    }
}

#[test]
fn large_products_fill_the_device_with_the_largest_tiles() {
    let wide = |rows, n| cut(&target(false), shape(rows, (n, 4096), DType::Bf16)).tiling == WIDE;
    assert!(wide(2048, 4096) && wide(512, 28672));
    assert!(!wide(512, 4096) && !wide(64, 128_256));
}

#[test]
fn many_rows_go_the_way_of_hopper_where_it_is() {
    let hopper = |rows, weight, format| {
        let target = Target { is_hopper: true, ..target(false) };
        match choose(&target, shape(rows, weight, format)) {
            Method::Hopper(tiling, _) => tiling.columns,
            _ => 0,
        }
    };
    for format in [DType::Bf16, DType::F16] {
        // Large ones by the largest tiles, smaller ones so that all are busy.
        assert_eq!(hopper(4096, (4096, 4096), format), 256);
        assert_eq!(hopper(256, (6144, 4096), format), 128);
        assert_eq!(hopper(65, (28672, 4096), format), 256);
        // A last turn of few tiles costs less than what smaller tiles read.
        assert_eq!(hopper(512, (28672, 4096), format), 256);
        // Too few rows, or tiles.
        assert_eq!(hopper(64, (28672, 4096), format), 0);
        assert_eq!(hopper(128, (4096, 14336), format), 0);
    }
    assert_eq!(hopper(4096, (4096, 4096), DType::F32), 0);
    let bound = Target { is_hopper: true, ..target(true) };
    let method = choose(&bound, shape(4096, (4096, 4096), DType::Bf16));
    assert!(matches!(method, Method::Tensor(_)), "{method:?}");
}

#[test]
fn few_tiles_are_spread_over_the_device() {
    for rows in [8, 64, 128] {
        let cut = cut(&target(false), shape(rows, (4096, 14336), DType::Bf16));
        assert_eq!((cut.chunks, cut.is_spread), (4, true));
    }
    // A chunk keeps the ring busy, and there are only so many.
    assert_eq!(cut(&target(false), shape(8, (128, 2048), DType::Bf16)).chunks, 8);
    assert_eq!(cut(&target(false), shape(8, (128, 20480), DType::Bf16)).chunks, 16);
    assert_eq!(cut(&target(false), shape(8, (4096, 40), DType::Bf16)).chunks, 1);
}

#[test]
fn deterministic_products_have_one_order_for_all_rows() {
    for weight in WEIGHTS {
        for format in FORMATS {
            let chunks = |rows| cut(&target(true), shape(rows, weight, format)).chunks;
            let one = chunks(1);
            assert!((2..5000).all(|rows| chunks(rows) == one), "{weight:?}");
        }
        let f32 = |rows| choose(&target(true), shape(rows, weight, DType::F32));
        assert!((1..5000).all(|rows| f32(rows) == Method::Rows));
    }
}

#[test]
fn what_is_chosen_can_run() {
    let small = |target: Target| Target { shared_bytes_max: 101_376, ..target };
    for target in [target(false), target(true), small(target(false)), small(target(true))] {
        for weight in WEIGHTS {
            for format in FORMATS {
                for rows in 5..3000 {
                    let cut = cut(&target, shape(rows, weight, format));
                    let (n, k) = weight;
                    let tiles = cut.tiling.tiles(rows, n);
                    assert!(cut.shared_bytes(format) <= target.shared_bytes_max);
                    assert!(cut.chunks <= k.div_ceil(64), "an empty chunk: {cut:?}");
                    assert!(!cut.is_spread || tiles <= target.meetings_max());
                    // Within what is cheap to keep: a few tiles for each block of the device.
                    let bytes = cut.partial_floats(rows, n) * 4;
                    assert!(bytes <= (target.meetings_max() as usize) << 16, "{bytes} {cut:?}");
                }
            }
        }
    }
}

/// Rows that do not fit a block's memory go by tiles, which bring them piece by piece.
#[test]
fn few_rows_go_together_as_far_as_they_fit() {
    let large = target(false);
    let small = Target { shared_bytes_max: 101_376, ..large };
    let most = |target: &Target, k, format: WeightFormat| {
        let is_few = |rows: &u32| choose(target, shape(*rows, (4096, k), format)) == Method::Rows;
        (1..64).take_while(is_few).count()
    };
    let f32 = WeightFormat::Plain(DType::F32);
    for format in FORMATS {
        assert_eq!(most(&large, 4096, format), 4, "{format:?}");
        for target in [large, small] {
            for k in [64, 896, 4096, 14336, 28672, 100_000] {
                let (rows, fitting) =
                    (most(&target, k, format), 4.min(at_once(&target, format, k)));
                assert_eq!(rows, fitting, "{k} {format:?}");
                let few = choose_grouped(&target, 1, 8, (format, k)).is_none();
                assert_eq!(few, rows > 0, "{k} {format:?}");
            }
        }
    }
    assert_eq!([14336, 28672].map(|k| most(&large, k, FORMATS[0])), [4, 2]);
    assert_eq!([14336, 28672].map(|k| most(&large, k, FORMATS[4])), [2, 1]);
    assert_eq!([8192, 14336].map(|k| most(&small, k, FORMATS[4])), [1, 0]);
    // f32 has tiles of its own, whatever is asked for.
    for target in [small, Target { options: CudaOptions { deterministic: true }, ..small }] {
        assert_eq!(choose(&target, shape(1, (64, 100_000), f32)), Method::Tiled);
    }
}

fn at_once(target: &Target, format: WeightFormat, k: u32) -> usize {
    rows_at_once(target.shared_bytes_max, format, k) as usize
}

#[test]
fn tilings_ascend() {
    assert!(TILINGS.is_sorted_by_key(|tiling| tiling.rows));
    assert!(BYTE_TILINGS.is_sorted_by_key(|tiling| tiling.rows));
}
