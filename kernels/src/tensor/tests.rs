use proptest::prelude::*;

use super::*;

fn q8(scale: u16, values: [i8; GROUP]) -> Vec<u8> {
    let mut bytes = scale.to_le_bytes().to_vec();
    bytes.extend(values.map(|value| value as u8));
    bytes
}

#[test]
fn names_round_trip() {
    for format in Format::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert_eq!("q5".parse::<Format>(), Err(UnknownFormat("q5".to_owned())));
}

#[test]
fn impossible_shapes_are_refused() {
    for (rows, columns) in [(0, 1), (1, 0), (usize::MAX, 2), (2, usize::MAX), (1 << 33, 1 << 33)] {
        let error = TensorError::Shape { rows, columns };
        assert_eq!(WeightMatrix::from_bytes(Format::Q8, rows, columns, Vec::new()), Err(error));
        let error = TensorError::Shape { rows, columns };
        assert_eq!(WeightMatrix::quantise(Format::F32, rows, columns, &[]), Err(error));
    }
    assert_eq!(
        WeightMatrix::from_bytes(Format::Q4, 2, 33, vec![0; 71]),
        Err(TensorError::Length { rows: 2, columns: 33, expected: 72, actual: 71 })
    );
}

#[test]
fn values_outside_the_arithmetic_are_refused() {
    let mut values = [1; GROUP];
    values[7] = -128;
    assert_eq!(
        WeightMatrix::from_bytes(Format::Q8, 1, 32, q8(0x3c00, values)),
        Err(TensorError::OutOfRange { row: 0, column: 7 })
    );
    let two = [q8(0x3c00, [1; GROUP]), q8(0xfc00, [1; GROUP])].concat();
    assert_eq!(
        WeightMatrix::from_bytes(Format::Q8, 1, 64, two),
        Err(TensorError::NonFinite { row: 0, column: 32 })
    );
    for (format, bytes) in [
        (Format::Bf16, vec![0, 0, 0x80, 0xff]),
        (Format::F32, [0.0f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat()),
    ] {
        let error = TensorError::NonFinite { row: 1, column: 0 };
        assert_eq!(WeightMatrix::from_bytes(format, 2, 1, bytes), Err(error));
    }
    for (format, value) in
        [(Format::Q8, 127.0 * 65520.0), (Format::Q4, -8.0 * 65520.0), (Format::Bf16, f32::MAX)]
    {
        assert_eq!(
            WeightMatrix::quantise(format, 1, 1, &[value]),
            Err(TensorError::NonFinite { row: 0, column: 0 })
        );
    }
}

#[test]
fn q4_takes_the_first_of_equal_magnitudes() {
    let matrix = WeightMatrix::quantise(Format::Q4, 1, 2, &[2.0, -2.0]).unwrap();
    assert_eq!(matrix.bytes()[..2], f16_from_f32(-0.25).to_le_bytes());
    let mut row = [0.0; 2];
    matrix.decode_row(0, &mut row);
    assert_eq!(row, [2.0, -1.75]);
}

#[test]
fn tiny_groups_become_zero() {
    for format in [Format::Q8, Format::Q4] {
        let matrix = WeightMatrix::quantise(format, 1, 3, &[f32::from_bits(1), -1e-30, 0.0]).unwrap();
        let mut row = [1.0; 3];
        matrix.decode_row(0, &mut row);
        assert_eq!(row, [0.0; 3]);
    }
}

#[test]
fn super_blocks_are_whole() {
    for format in [Format::Q4K, Format::Q6K] {
        for columns in [1, 255, 257, 300] {
            let error = TensorError::Blocks { format, columns };
            assert!(error.to_string().contains(format.name()));
            let bytes = vec![0; format.row_bytes(columns)];
            assert_eq!(WeightMatrix::from_bytes(format, 1, columns, bytes), Err(error));
            let values = vec![0.0; columns];
            let error = TensorError::Blocks { format, columns };
            assert_eq!(WeightMatrix::quantise(format, 1, columns, &values), Err(error));
        }
    }
}

#[test]
fn super_blocks_with_scales_that_are_not_finite_are_refused() {
    for (format, places) in [(Format::Q4K, &[1, 3][..]), (Format::Q6K, &[209])] {
        let size = format.row_bytes(SEGMENT);
        for &place in places {
            for high in [0x7c, 0xfc, 0x7e] {
                let mut bytes = vec![0; 4 * size];
                bytes[3 * size + place] = high;
                let error = TensorError::NonFinite { row: 1, column: SEGMENT };
                assert_eq!(WeightMatrix::from_bytes(format, 2, 2 * SEGMENT, bytes), Err(error));
            }
        }
        let loud = [1.0, f32::MAX].repeat(SEGMENT);
        let error = TensorError::NonFinite { row: 0, column: 0 };
        assert_eq!(WeightMatrix::quantise(format, 1, 2 * SEGMENT, &loud), Err(error));
    }
}

/// Every field of a block at a place of its own, by hand from the layout.
#[test]
fn super_blocks_by_hand() {
    let mut block = vec![0; 144];
    block[..4].copy_from_slice(&[0x00, 0x40, 0x00, 0x3c]);
    block[4] = 5 | 0b10 << 6;
    block[8] = 9 | 0b11 << 6;
    block[12] = 7 | 1 << 4;
    block[16] = 3 | 12 << 4;
    block[16 + 64 + 1] = 15 | 2 << 4;
    let matrix = WeightMatrix::from_bytes(Format::Q4K, 1, SEGMENT, block).unwrap();
    let mut row = [0.0; SEGMENT];
    matrix.decode_row(0, &mut row);
    // Sub-block 0: scale 5, minimum 9. Sub-block 4: scale 7 + 32, minimum 1 + 48.
    assert_eq!(row[..2], [2.0 * 5.0 * 3.0 - 9.0, -9.0]);
    assert_eq!(row[32..34], [0.0, 0.0]);
    assert_eq!(row[128..131], [-49.0, 2.0 * 39.0 * 15.0 - 49.0, -49.0]);

    let mut block = vec![0; 210];
    block[208..].copy_from_slice(&[0x00, 0x38]);
    block[192 + 4] = 0x80;
    block[192 + 15] = 3;
    block[0] = 1 | 6 << 4;
    block[128] = 0b11 << 4;
    block[64 + 63] = 9 << 4;
    block[128 + 63] = 0b10 << 6;
    let matrix = WeightMatrix::from_bytes(Format::Q6K, 1, SEGMENT, block).unwrap();
    matrix.decode_row(0, &mut row);
    // Sub-block 4: scale -128. Sub-block 15: scale 3.
    assert_eq!(row[64..66], [0.5 * -128.0 * (6.0 + 48.0 - 32.0), 0.5 * -128.0 * -32.0]);
    assert_eq!(row[254..], [0.5 * 3.0 * -32.0, 0.5 * 3.0 * (9.0 + 32.0 - 32.0)]);
}

proptest! {
    #[test]
    fn quantised_rows_are_near_and_canonical(
        format in prop::sample::select(Format::ALL.to_vec()),
        columns in 1usize..100,
        exponent in -8i32..8,
        seed in any::<[i16; 99]>(),
    ) {
        let columns = if format.is_wide() { columns.div_ceil(50) * SEGMENT } else { columns };
        let values: Vec<f32> =
            (0..2 * columns).map(|i| f32::from(seed[i % 99]) * 2f32.powi(exponent - 15)).collect();
        let matrix = WeightMatrix::quantise(format, 2, columns, &values).unwrap();
        let again =
            WeightMatrix::from_bytes(format, 2, columns, matrix.bytes().to_vec()).unwrap();
        prop_assert_eq!(&again, &matrix);
        let mut row = vec![0.0; columns];
        for r in 0..2 {
            matrix.decode_row(r, &mut row);
            let size = if format.is_wide() { SEGMENT } else { GROUP };
            for (chunk, out) in values[r * columns..][..columns].chunks(size).zip(row.chunks(size)) {
                let amax = chunk.iter().fold(0.0f32, |max, value| max.max(value.abs()));
                let step = match format {
                    Format::Q8 => amax / 127.0 * 0.57,
                    // The side away from the largest value reaches only 7 of 8 steps.
                    Format::Q4 => amax / 8.0 * 1.01,
                    Format::Bf16 => amax / 256.0,
                    Format::F32 => 0.0,
                    // Half a step of 1/15 of a span of two, and what rounding step and minimum to 6 bits adds.
                    Format::Q4K => amax * 0.1,
                    // A step on the side away from the loudest value; 127 may stand for 128 in the scale.
                    Format::Q6K => amax / 32.0 * 1.3,
                };
                // A subnormal f16 scale is off by up to 2^-25, and what it is multiplied by goes up to this; for
                // `q4_k` scale and minimum, and either for half a step of its own.
                let multiple = match format {
                    Format::Q8 => 127.0,
                    Format::Q4 => 8.0,
                    Format::Bf16 | Format::F32 => 0.0,
                    Format::Q4K => 63.5 * 15.0 + 63.5,
                    Format::Q6K => 128.5 * 32.0,
                };
                let step = step + multiple * 2f32.powi(-25);
                for (&value, &out) in chunk.iter().zip(out) {
                    prop_assert!((value - out).abs() <= step, "{value} became {out}");
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        format in prop::sample::select(Format::ALL.to_vec()),
        columns in 0usize..80,
        mut bytes in prop::collection::vec(any::<u8>(), 0..450),
        fitting in any::<bool>(),
    ) {
        let columns = if format.is_wide() { columns / 40 * SEGMENT } else { columns };
        if fitting {
            bytes.resize(format.row_bytes(columns), 0);
        }
        if let Ok(matrix) = WeightMatrix::from_bytes(format, 1, columns, bytes) {
            let mut row = vec![0.0; columns];
            matrix.decode_row(0, &mut row);
            prop_assert!(row.iter().all(|value| value.is_finite()));
        }
    }
}
