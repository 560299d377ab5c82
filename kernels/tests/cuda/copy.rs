//! Moving rows about.

use kernels::cuda::ops::copy::{Gather, gather};

use ptx_machine::Fault;

use crate::card::on_every_card;

#[test]
fn gather_copies_the_listed_rows() {
    on_every_card(|card| {
        for (width, rows) in [(1, vec![0_u32]), (255, vec![2, 0, 2]), (513, vec![4, 3, 2, 1, 0])] {
            let values: Vec<f32> = (0..5 * width).map(|i| i as f32 - 7.5).collect();
            let count = rows.len();
            let params = Gather {
                from: card.upload(&values),
                rows: card.upload(&rows),
                out: card.blank::<f32>(count * width),
                width: width as u32,
                count: count as u32,
            };
            card.launch(&gather(params));
            let expected: Vec<f32> =
                rows.iter().flat_map(|&row| &values[row as usize * width..][..width]).copied().collect();
            assert_eq!(card.download::<f32>(params.out, count * width), expected);
        }
    });
}

#[test]
fn a_row_past_the_end_is_caught() {
    on_every_card(|card| {
        let from = card.zeros::<f32>(4 * 64);
        let rows = card.upload(&[3_u32, 4]);
        let out = card.blank::<f32>(2 * 64);
        let trap = card.try_launch(&gather(Gather { from, rows, out, width: 64, count: 2 })).unwrap_err();
        assert!(matches!(trap.fault, Fault::OutOfBounds { .. }), "{trap}");
    });
}
