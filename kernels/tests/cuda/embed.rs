//! Embedding rows.

use kernels::{
    cuda::ops::embed::{Embed, embed},
    round::{bf16_from_f32, f32_from_bf16},
    tensor::{Format, WeightMatrix},
};

use crate::{
    card::on_every_card,
    rng::{Flavour, Rng},
    rows::{Rows, assert_bits},
};

#[test]
fn rows_of_every_format_are_decoded() {
    on_every_card(|card| {
        for format in Format::ALL {
            let columns = if format.is_wide() { 1280 } else { 1100 };
            let mut rng = Rng(format as u64);
            let table =
                WeightMatrix::quantise(format, 5, columns, &rng.values(5 * columns, Flavour::Plain)).unwrap();
            for (scale, rounded) in [(None, true), (Some(33.9f32), true), (Some(0.3), false)] {
                let tokens = [4u32, 0, 3, 3];
                let rows = Rows::new(card, &[(0, 0); 3], &[0], 4);
                let params = Embed {
                    step: rows.step,
                    tokens: card.upload(&tokens),
                    table: card.upload(table.bytes()),
                    out: card.zeros::<f32>(4 * columns),
                    row_bytes: format.row_bytes(columns) as u32,
                    columns: columns as u32,
                    scale: scale.unwrap_or(0.0),
                    scaled: scale.is_some().into(),
                    rounded: rounded.into(),
                    zero: 0,
                };
                card.launch(&embed(params, format, 4));
                let mut expected = vec![0.0; 4 * columns];
                for (out, &token) in expected.chunks_exact_mut(columns).zip(&tokens[..3]) {
                    table.decode_row(token as usize, out);
                    for value in out {
                        *value = scale.map_or(*value, |scale| *value * scale);
                        *value = if rounded { f32_from_bf16(bf16_from_f32(*value)) } else { *value };
                    }
                }
                assert_bits(&card.download(params.out, 4 * columns), &expected);
            }
        }
    });
}
