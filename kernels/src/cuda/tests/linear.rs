//! linear.cu and linear_tiled.cu; what linear_tensor.rs checks as well.

use super::dice::Dice;
use super::*;
use crate::cuda::CudaOptions;
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::{Cut, Method, ProductShape, Target, choose, is_in_bytes};
use crate::cuda::linear_hopper::{HOPPER_TILINGS, HopperTiling, narrowed_bytes};
use crate::cuda::linear_hopper_quantized::{QUANTIZED_TILINGS, placed_bytes};
use crate::cuda::linear_tensor::{Meeting, TensorLinear};
use crate::cuda::products::Products;
use crate::cuda::quantize_rows::{ByteRows, byte_rows_bytes};
use crate::ops::{Activation, Epilogue};
use crate::reference::{self, Matrix, error};
use crate::weight_format::{Quantization, WeightFormat};

/// A product to check.
#[derive(Clone, Copy, Debug)]
pub(in crate::cuda) struct Case {
    pub(in crate::cuda) rows: usize,
    pub(in crate::cuda) n: usize,
    pub(in crate::cuda) k: usize,
    pub(in crate::cuda) format: WeightFormat,
    pub(in crate::cuda) biased: bool,
    pub(in crate::cuda) epilogue: Epilogue,
    pub(in crate::cuda) method: Method,
    /// Multiprocessors of the device: with few of them a block that stays takes several turns.
    pub(in crate::cuda) blocks: u32,
    /// Of so many rows one is compared, since float64 takes its time.
    pub(in crate::cuda) one_in: usize,
}

/// A product and its buffers.
pub(in crate::cuda) struct Held {
    pub(in crate::cuda) linear: Linear,
    out: DeviceBuffer,
    len: usize,
    _others: (DeviceBuffer, StoredWeight, Option<DeviceBuffer>),
}

impl Held {
    /// What is in the last of them.
    pub(in crate::cuda) fn read(&self) -> Vec<f32> {
        read_floats(&self.out, self.len)
    }

    /// Puts there what was there before the product of `case`, which it was made for.
    pub(in crate::cuda) fn reset(&self, case: &Case) -> Result<(), KernelError> {
        let before = case.before(self.len);
        let bytes: Vec<u8> = before.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.out.upload(0, &bytes)
    }
}

impl Case {
    pub(in crate::cuda) fn plain(
        rows: usize,
        n: usize,
        k: usize,
        format: impl Into<WeightFormat>,
    ) -> Self {
        let (biased, epilogue, method) = (false, Epilogue::Store, Method::Rows);
        let format = format.into();
        Case { rows, n, k, format, biased, epilogue, method, blocks: 3, one_in: 1 }
    }

    /// What `len` results find in their places.
    fn before(&self, len: usize) -> Vec<f32> {
        if self.epilogue == Epilogue::Add { noises(4, len) } else { vec![f32::NAN; len] }
    }

    fn out_cols(&self) -> usize {
        if matches!(self.epilogue, Epilogue::Glu(_)) { self.n / 2 } else { self.n }
    }

    pub(super) fn run(&self, bed: &Bed) -> Result<Vec<f32>, KernelError> {
        self.run_on(bed, &self.x())
    }

    fn x(&self) -> Vec<f32> {
        noises(1, self.rows * self.k)
    }

    /// With rows of its own.
    pub(super) fn run_on(&self, bed: &Bed, x: &[f32]) -> Result<Vec<f32>, KernelError> {
        self.run_by(bed, x, |linear| match self.method {
            Method::HopperQuantized(tiling, quantization) => {
                let placed = bed.poison(placed_bytes(self.rows, self.k) / 4);
                let placed = (placed.pointer(), quantization);
                // SAFETY: buffers of these shapes.
                unsafe { tiling.launch(&*bed.driver, linear, placed, self.blocks) }
            }
            // SAFETY: buffers of these shapes.
            Method::Rows => unsafe { linear.launch_few(&*bed.driver, self.format, self.blocks) },
            // SAFETY: as above.
            Method::Tiled => unsafe { linear.launch_tiled(&*bed.driver) },
            Method::Tensor(cut) => self.run_cut(bed, *linear, &cut),
            Method::Hopper(tiling, format) => self.run_hopper(bed, linear, &tiling, format),
        })
    }

    /// Multiplies in buffers of its own.
    fn run_by(
        &self,
        bed: &Bed,
        x: &[f32],
        multiply: impl Fn(&Linear) -> Result<(), KernelError>,
    ) -> Result<Vec<f32>, KernelError> {
        let held = self.on_rows(bed, x);
        multiply(&held.linear)?;
        Ok(held.read())
    }

    /// Makes the buffers.
    pub(in crate::cuda) fn on(&self, bed: &Bed) -> Held {
        self.on_rows(bed, &self.x())
    }

    fn on_rows(&self, bed: &Bed, x: &[f32]) -> Held {
        let Case { rows, n, k, format, .. } = *self;
        let weight = StoredWeight::new(bed, format, &noises(2, n * k), k);
        let len = rows * self.out_cols();
        let out = bed.floats(&self.before(len));
        let x = bed.floats(x);
        let bias = self.biased.then(|| bed.floats(&noises(3, n)));
        let at = bias.as_ref().map_or(DevicePointer::NULL, DeviceBuffer::pointer);
        let linear = weight.linear([x.pointer(), out.pointer()], rows, (n, k));
        let linear = Linear { bias: at, ..linear }.with_epilogue(self.epilogue);
        Held { linear, out, len, _others: (x, weight, bias) }
    }

    /// With room for chunks that is all NaN, and arrivals that must be zeros again.
    fn run_cut(&self, bed: &Bed, linear: Linear, cut: &Cut) -> Result<(), KernelError> {
        let partials = bed.poison(cut.partial_floats(linear.rows, linear.n));
        let tiles = cut.tiling.tiles(linear.rows, linear.n) as usize;
        let arrivals = bed.words(&vec![0; tiles]);
        let meeting = Meeting { partials: partials.pointer(), arrivals: arrivals.pointer() };
        let product = TensorLinear::dense(linear, cut, meeting);
        let (driver, size) = (&*bed.driver, (linear.rows, linear.k));
        if is_in_bytes(self.format) {
            let room = bed.poison(byte_rows_bytes(self.rows, self.k).div_ceil(4));
            // SAFETY: buffers of these shapes.
            unsafe {
                let x = ByteRows::launch(driver, linear.x, size, room.pointer(), 2)?;
                product.launch_bytes(driver, cut, self.format, x)?;
            }
        } else {
            // SAFETY: buffers of these shapes.
            unsafe { product.launch(driver, cut, self.format) }?;
        }
        if read_words(&arrivals, tiles).iter().any(|&word| word != 0) {
            return Err(KernelError::Fault("arrivals were left behind".into()));
        }
        Ok(())
    }

    /// With room for rows that is all NaN, on three multiprocessors.
    fn run_hopper(
        &self,
        bed: &Bed,
        linear: &Linear,
        tiling: &HopperTiling,
        format: DType,
    ) -> Result<(), KernelError> {
        let bytes = narrowed_bytes(self.rows, linear.stride as usize, format);
        let narrowed = bed.poison(bytes.div_ceil(4));
        // SAFETY: buffers of these shapes.
        unsafe { tiling.launch(&*bed.driver, linear, (narrowed.pointer(), format), self.blocks) }
    }

    pub(in crate::cuda) fn reference(&self) -> Vec<f64> {
        let Case { rows, n, k, format, .. } = *self;
        let wide =
            |seed, len| -> Vec<f64> { noises(seed, len).into_iter().map(f64::from).collect() };
        let mut weight = Matrix { rows: n, cols: k, data: wide(2, n * k) }.stored(format);
        let (mut x, bias) = (wide(1, rows * k), wide(3, n));
        let before = wide(4, rows * self.out_cols());
        let mut format = format;
        if let Method::HopperQuantized(_, quantization) = self.method {
            // Rows and values become bf16; a row's scale comes later.
            x.iter_mut().for_each(|x| *x = reference::round(*x, DType::Bf16));
            if quantization.quantizes_rows() {
                weight = weight.rounded(DType::Bf16);
            }
            format = DType::F32.into();
        }
        x.chunks(k)
            .zip(before.chunks(self.out_cols()))
            .step_by(self.one_in)
            .flat_map(|(x, before)| {
                let bias = self.biased.then_some(bias.as_slice());
                let values = reference::linear(x, &weight, bias, format);
                reference::epilogue(&values, before, self.epilogue)
            })
            .collect()
    }

    /// Whether a program's products, which choose their way, give the right result.
    pub(in crate::cuda) fn is_right_through(
        &self,
        bed: &Bed,
        products: &Products,
    ) -> Result<bool, KernelError> {
        // SAFETY: buffers of these shapes, for which there is room.
        let multiply = |linear: &Linear| unsafe { products.launch(linear, self.format) };
        let got = self.run_by(bed, &self.x(), multiply)?;
        Ok(self.matches_what(&got, &self.reference(), self.library_bound(bed)))
    }

    pub(super) fn is_right(&self, bed: &Bed) -> Result<bool, KernelError> {
        let got = self.run(bed)?;
        Ok(self.matches_what(&got, &self.reference(), bound(bed, self.chain())))
    }

    /// How far results may be apart whichever kernel gave them: after the longest chain that there can be.
    pub(in crate::cuda) fn library_bound(&self, bed: &Bed) -> f64 {
        bound(bed, self.k.div_ceil(MATRIX_K) * self.parts())
    }

    /// Sums of matrix units that are added one to the next.
    fn chain(&self) -> usize {
        let k = match self.method {
            // In f32 on other units.
            Method::Rows | Method::Tiled => return 0,
            // Sums of bytes are whole numbers.
            Method::Tensor(_) if is_in_bytes(self.format) => return 0,
            Method::Tensor(cut) => self.k.div_ceil(cut.chunks as usize).next_multiple_of(64),
            Method::Hopper(..) | Method::HopperQuantized(..) => self.k,
        };
        k.div_ceil(MATRIX_K) * self.parts()
    }

    /// Into how many parts rows are split that meet a weight of this format.
    fn parts(&self) -> usize {
        match (self.format, self.method) {
            (_, Method::HopperQuantized(..)) | (WeightFormat::Plain(DType::Bf16), _) => 1,
            _ => 2,
        }
    }

    /// Whether results are those of a reference of as many rows or more, as exact as `bound` says, and all
    /// of them numbers.
    pub(in crate::cuda) fn matches_what(&self, got: &[f32], want: &[f64], bound: f64) -> bool {
        let rows = got.chunks(self.out_cols()).step_by(self.one_in);
        let compared: Vec<f32> = rows.flatten().copied().collect();
        got.iter().all(|value| value.is_finite())
            && error(&compared, &want[..compared.len()]) < bound
    }
}

/// Products that a matrix unit sums at once, before it adds to what it has.
const MATRIX_K: usize = 16;
/// What sums in f32 are apart by, beside values.
const SUMS: f64 = 2e-5;
/// What a matrix unit of a card may lose in each step, at most: it cuts its sum toward zero where the
/// emulation rounds, so that what is lost grows with the number of steps.
const STEP_LOSS: f64 = 3e-7;

/// How far results may be apart on this device after a chain of so many steps.
pub(in crate::cuda) fn bound(bed: &Bed, chain: usize) -> f64 {
    if bed.is_card() { SUMS + STEP_LOSS * chain as f64 } else { SUMS }
}

/// Formats to draw from.
pub(super) const FORMATS: [WeightFormat; 7] = [
    WeightFormat::Plain(DType::Bf16),
    WeightFormat::Plain(DType::Bf16),
    WeightFormat::Plain(DType::F16),
    WeightFormat::Plain(DType::F32),
    WeightFormat::Quantized(Quantization::Q8_0),
    WeightFormat::Quantized(Quantization::Q4_0),
    WeightFormat::Quantized(Quantization::Fp8),
];

/// A product of any shape on a device; `most` multiply-adds.
pub(in crate::cuda) fn random(bed: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let rows = dice.size(300.min(most / 16));
    let k = dice.size(8192.min(most / rows / 2));
    let mut n = dice.size(8192.min(most / rows / k));
    let glu = Epilogue::Glu(dice.of(&[Activation::Silu, Activation::GeluTanh, Activation::Gelu]));
    let soft_cap = dice.of(&[None, Some(0.5)]);
    let scale = Epilogue::Scale { scale: 0.3, soft_cap };
    let epilogue = dice.of(&[Epilogue::Store, Epilogue::Add, glu, scale]);
    if matches!(epilogue, Epilogue::Glu(_)) {
        n = n.next_multiple_of(2);
    }
    let format = dice.of(&FORMATS);
    // As a small device and a large one would choose, and with chunks that are joined.
    let options = CudaOptions { deterministic: dice.once_in(2) };
    let blocks = dice.of(&[8, 132]);
    let target = Target { options, ..Target::of(&*bed.driver, blocks) };
    let shape = ProductShape { rows: rows as u32, n: n as u32, k: k as u32, format };
    let method = choose(&target, shape);
    let biased = dice.once_in(2);
    let case = Case { biased, epilogue, method, blocks, ..Case::plain(rows, n, k, format) };
    (format!("{case:?}"), Box::new(move |bed: &Bed| case.is_right(bed)))
}

/// What becomes of results, where each of Hopper's kernels meets all.
const ENDS: [Epilogue; 4] = [
    Epilogue::Store,
    Epilogue::Add,
    Epilogue::Glu(Activation::Silu),
    Epilogue::Scale { scale: 0.3, soft_cap: Some(0.5) },
];

/// Every tiling of linear_hopper.cu with every type and end.
pub(in crate::cuda) const EACH_OF_HOPPER: Numbered =
    (2 * HOPPER_TILINGS.len() * ENDS.len(), |_, dice, most, number| {
        let format = [DType::Bf16, DType::F16][number % 2];
        let tiling = HOPPER_TILINGS[number / 2 % HOPPER_TILINGS.len()];
        let epilogue = ENDS[number / 2 / HOPPER_TILINGS.len()];
        on_hopper(dice, most, (format.into(), Method::Hopper(tiling, format), epilogue))
    });

/// Every tiling of linear_hopper_quantized.cu with every format and end.
pub(in crate::cuda) const EACH_QUANTIZED_OF_HOPPER: Numbered =
    (3 * QUANTIZED_TILINGS.len() * ENDS.len(), |_, dice, most, number| {
        let format = Quantization::ALL[number % 3];
        let tiling = QUANTIZED_TILINGS[number / 3 % QUANTIZED_TILINGS.len()];
        let epilogue = ENDS[number / 3 / QUANTIZED_TILINGS.len()];
        on_hopper(dice, most, (format.into(), Method::HopperQuantized(tiling, format), epilogue))
    });

/// A product of many rows with a weight of `most` elements, in up to some three turns of all blocks.
fn on_hopper(
    dice: &mut Dice,
    most: usize,
    (format, method, epilogue): (WeightFormat, Method, Epilogue),
) -> Drawn {
    // A card's, or as few as a small case keeps busy.
    let blocks = (most / 60_000).clamp(3, 132);
    let k = 1 + dice.below(4096.min(most / 256));
    let n = 2 * (1 + dice.below(4096.min(most / k / 2)));
    // Of tiles of 128 rows and 256 columns, or of as many elements.
    let rows = 1 + dice.below((3 * blocks * 128 * 256 / n).clamp(200, 10 * blocks + 170));
    // Odd, so that rows of every place in a tile are met.
    let one_in = rows.div_ceil(12) | 1;
    let plain = Case::plain(rows, n, k, format);
    let (biased, blocks) = (dice.once_in(2), blocks as u32);
    let case = Case { biased, epilogue, method, blocks, one_in, ..plain };
    (format!("{case:?}"), Box::new(move |bed: &Bed| case.is_right(bed)))
}

#[test]
fn shapes_formats_and_rows() {
    for format in [DType::F32, DType::Bf16, DType::F16] {
        for (rows, n, k) in
            [(1, 1, 1), (1, 9, 300), (2, 16, 64), (3, 7, 1000), (8, 33, 40), (19, 10, 136)]
        {
            for seed in SEEDS {
                let case = Case::plain(rows, n, k, format);
                assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
            }
        }
    }
}

pub(in crate::cuda) const EPILOGUES: [Epilogue; 7] = [
    Epilogue::Store,
    Epilogue::Add,
    Epilogue::Glu(Activation::Silu),
    Epilogue::Glu(Activation::GeluTanh),
    Epilogue::Glu(Activation::Gelu),
    Epilogue::Scale { scale: 0.3, soft_cap: Some(0.5) },
    Epilogue::Scale { scale: 2.0, soft_cap: None },
];

#[test]
fn biases_and_epilogues() {
    for epilogue in EPILOGUES {
        for (biased, n) in [(true, 22), (false, 10)] {
            let case = Case { biased, epilogue, ..Case::plain(5, n, 80, DType::Bf16) };
            assert!(case.is_right(&Bed::new(1, None)).unwrap(), "{case:?}");
        }
    }
}

#[test]
fn a_rows_bits_depend_neither_on_its_company_nor_on_the_device() {
    for format in FORMATS {
        let case = |rows, blocks| {
            let case = Case { blocks, ..Case::plain(rows, 27, 520, format) };
            case.run(&Bed::new(9, None)).unwrap()
        };
        let all = case(17, 2);
        for (rows, blocks) in [(1, 1), (2, 0), (3, 16), (8, 1), (16, 3)] {
            assert_eq!(case(rows, blocks), all[..rows * 27], "{rows} {format:?}");
        }
    }
}

/// On a card of 99 KiB fewer rows go together, and what does not fit alone is refused.
#[test]
fn a_small_card_takes_fewer_rows_at_once() {
    let small = |seed| {
        let driver = Emulated::new(&folder(), seed).at_once().limited_to(99 << 10);
        Bed { driver: Arc::new(driver) }
    };
    for format in FORMATS {
        // Four rows, two or one, of elements of one to four bytes.
        for (seed, k) in [(1, 520), (2, 4000), (3, 7000)] {
            let case = Case::plain(4, 5, k, format);
            assert!(case.is_right(&small(seed)).unwrap(), "{case:?}");
        }
        let wide = Case::plain(1, 1, 40_000, format);
        assert!(matches!(wide.run(&small(1)), Err(KernelError::Unsupported(_))), "{format:?}");
    }
}

/// Tails in every direction, a group that is not full, and warps that go round their ring.
pub(super) fn few(format: impl Into<WeightFormat>) -> impl Fn(&Bed) -> Result<bool, KernelError> {
    let format = format.into();
    let plain = |rows, n, k| Case { biased: true, ..Case::plain(rows, n, k, format) };
    let cases = [plain(3, 11, 1101), Case { blocks: 1, ..plain(1, 75, 1101) }, plain(5, 7, 45)];
    move |bed| {
        let mut right = cases.iter().map(|case| case.is_right(bed));
        right.try_fold(true, |all, right| Ok(all && right?))
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        Fault { from: "widen(T{(u16)(word >> 16)})", to: "widen(T{(u16)word})" },
        Fault { from: "k + i < cols ? row[k + i] : 0.0f", to: "row[k + i]" },
        Fault { from: "if (k >= p.stride) return;", to: "" },
        Fault { from: "wait_copies<SLOTS - 2>", to: "wait_copies<SLOTS - 1>" },
        Fault { from: "to = after(to);", to: "" },
        Fault { from: "from = after(from);", to: "" },
        Fault { from: "turn_to(column + next_column", to: "column = (column + next_column" },
        Fault {
            from: "gridDim.y * FEW_WARPS * COLUMNS;",
            to: "gridDim.y * FEW_WARPS * COLUMNS * 2;",
        },
        Fault { from: "rows[i] + step * STEP", to: "rows[i] + step * PIECE" },
        Fault { from: "if (piece >= pieces) continue;", to: "" },
        Fault { from: "if (lane_index() == row)", to: "if (lane_index() == 0)" },
        Fault {
            from: "values[i]);\n        }\n    }\n    sync_block();",
            to: "values[i]);\n        }\n    }",
        },
        Fault {
            from: "load_columns<COUNT>(p.bias, n, p.n)",
            to: "load_columns<COUNT>(p.bias, 0, p.n)",
        },
        Fault { from: " || row >= p.rows", to: "" },
        Fault { from: "if (column + i < num_columns) row[column + i]", to: "row[column + i]" },
    ];
    assert_caught(&faults, few(DType::Bf16));
}

#[test]
fn planted_faults_of_wide_rows_show() {
    let faults = [
        Fault { from: "piece / WARP * PARTS + part", to: "piece / WARP + part" },
        Fault { from: "k % ELEMENTS / PART)", to: "0)" },
        Fault { from: "part_at<PARTS>(piece, part)]", to: "part_at<PARTS>(piece, 0)]" },
        Fault { from: "(part * COUNT + i)", to: "i" },
        Fault { from: "weight[i], part, w[i]", to: "weight[0], part, w[i]" },
    ];
    assert_caught(&faults, few(DType::F16));
    assert_caught(&faults, few(Quantization::Fp8));
}

/// Whether codes of subnormal numbers count, beside a large one that meets zero.
fn small_codes_count(bed: &Bed) -> Result<bool, KernelError> {
    let (n, k, fp8) = (4, 80, Quantization::Fp8);
    let (mut x, mut weight) = (noises(1, k), noises(2, n * k));
    x[0] = 0.0;
    weight.iter_mut().for_each(|value| *value *= 3e-5);
    weight.chunks_mut(k).for_each(|row| row[0] = 1.0);
    let (on_x, out) = (bed.floats(&x), bed.poison(n));
    let stored = StoredWeight::new(bed, fp8.into(), &weight, k);
    let linear = stored.linear([on_x.pointer(), out.pointer()], 1, (n, k));
    // SAFETY: buffers of these shapes.
    unsafe { linear.launch_few(&*bed.driver, fp8.into(), 1) }?;
    let wide = |values: &[f32]| -> Vec<f64> { values.iter().copied().map(f64::from).collect() };
    let weight = Matrix { rows: n, cols: k, data: wide(&weight) }.stored(fp8);
    let want = reference::linear(&wide(&x), &weight, None, fp8);
    Ok(error(&read_floats(&out, n), &want) < 2e-5)
}

#[test]
fn planted_faults_of_fp8_show() {
    assert!(small_codes_count(&Bed::new(1, None)).unwrap());

    let faults = [
        Fault { from: "word >> at % 4 * 8", to: "word" },
        Fault { from: "[weight_row] * 0x1p-8f", to: "[weight_row]" },
        Fault { from: "((const float*)p.scales)[weight_row]", to: "((const float*)p.scales)[0]" },
        Fault { from: "(int)exponent - 10", to: "(int)exponent - 9" },
        Fault { from: "ldexpf((float)fraction, -9)", to: "ldexpf((float)fraction, -8)" },
        Fault { from: "magnitude) | (code & 0x80) << 8", to: "magnitude) | (code & 0x80) << 7" },
    ];
    let right = few(Quantization::Fp8);
    assert_caught(&faults, |bed| Ok(right(bed)? && small_codes_count(bed)?));
}

#[test]
fn f32_weights_by_tiles() {
    for (rows, n, k) in [(17, 64, 64), (64, 10, 33), (65, 70, 50), (130, 131, 16)] {
        for seed in SEEDS {
            for epilogue in [Epilogue::Store, Epilogue::Add] {
                let plain = Case::plain(rows, n, k, DType::F32);
                let case = Case { method: Method::Tiled, biased: n > 64, epilogue, ..plain };
                assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
            }
        }
    }
}

#[test]
fn planted_faults_of_tiles_show() {
    let faults = [
        Fault { from: " && first_k + k < num_k", to: "" },
        Fault { from: "        sync_block();\n        load_tile(x", to: "        load_tile(x" },
        Fault { from: "p.stride);\n        sync_block();", to: "p.stride);" },
        Fault { from: "if (to >= p.rows) return;", to: "" },
        Fault { from: "sums[i][2], sums[i][3]", to: "sums[i][3], sums[i][2]" },
        Fault { from: "k += DEPTH", to: "k += 2 * DEPTH" },
        Fault { from: "first_column, k, p.stride", to: "first_row, k, p.stride" },
    ];
    let plain = Case::plain(123, 35, 50, DType::F32);
    let case = Case { method: Method::Tiled, biased: true, ..plain };
    assert_caught(&faults, |bed| case.is_right(bed));
}
