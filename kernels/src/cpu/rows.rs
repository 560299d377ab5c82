//! Rows of activations: plain f32, and ready for a linear layer.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    kquants::Wide,
    simd::{Full, LANES},
};
use crate::{
    backend::{BackendError, Grouping, Profile},
    tensor::{GROUP, SEGMENT},
};

/// `count` zeroed elements, or the typed refusal.
pub(crate) fn allocate<T: bytemuck::Pod>(
    count: Option<usize>,
    what: &'static str,
) -> Result<Vec<T>, BackendError> {
    let bytes = count.and_then(|count| count.checked_mul(size_of::<T>())).unwrap_or(usize::MAX);
    let refusal = BackendError::OutOfMemory { what, bytes };
    let Some(count) = count else { return Err(refusal) };
    let mut storage = Vec::new();
    storage.try_reserve_exact(count).map_err(|_| refusal)?;
    storage.resize(count, T::zeroed());
    Ok(storage)
}

/// The f32 values of `rows`.
pub(crate) fn floats(rows: &[Full]) -> &[f32] {
    bytemuck::cast_slice(rows)
}

/// The f32 values of `rows`, to write.
pub(crate) fn floats_mut(rows: &mut [Full]) -> &mut [f32] {
    bytemuck::cast_slice_mut(rows)
}

/// f32 rows `[rows][width]`, each padded to whole vectors. The padding is zero, or rubbish in a faulty row.
#[derive(Debug)]
pub struct Buffer {
    pub(crate) width: usize,
    pub(crate) values: Vec<Full>,
    /// Of each row, whether a check of it failed.
    faulty: Vec<AtomicBool>,
}

impl Buffer {
    pub(crate) fn new(rows: usize, width: usize) -> Result<Self, BackendError> {
        let values = allocate(rows.checked_mul(width.div_ceil(LANES)), "a buffer of rows")?;
        Ok(Self { width, values, faulty: (0..rows).map(|_| AtomicBool::new(false)).collect() })
    }

    /// Vectors from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.width.div_ceil(LANES)
    }

    /// The first `rows` rows, padding included.
    pub(crate) fn first_mut(&mut self, rows: usize) -> &mut [Full] {
        let len = rows * self.stride();
        &mut self.values[..len]
    }

    /// The first `rows` rows, padding included, with the outcome of their last check.
    pub(crate) fn checked(&mut self, rows: usize) -> (&mut [Full], &[AtomicBool]) {
        let len = rows * self.stride();
        (&mut self.values[..len], &self.faulty[..rows])
    }

    /// Row `row` without padding.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &floats(&self.values[row * self.stride()..][..self.stride()])[..self.width]
    }

    /// Row `row` without padding, which becomes zero.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let stride = self.stride();
        let values = floats_mut(&mut self.values[row * stride..][..stride]);
        let (values, padding) = values.split_at_mut(self.width);
        padding.fill(0.0);
        values
    }
}

/// A quantised group of an activation row.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Group {
    pub(crate) q: [i8; GROUP],
    pub(crate) scale: f32,
    /// Sum of `q`, which undoes the bias of packed weights.
    pub(crate) sum: i32,
}

impl Group {
    pub(crate) const ZERO: Self = Self { q: [0; GROUP], scale: 0.0, sum: 0 };
}

/// Rows as the input of a linear layer: the f32 values, padded with zeros to whole groups, and under
/// [`Profile::Quantised`] their int8 groups.
#[derive(Debug)]
pub struct Activation {
    pub(crate) width: usize,
    pub(crate) profile: Profile,
    /// None under [`Profile::F32`].
    pub(crate) grouping: Grouping,
    pub(crate) values: Vec<Full>,
    /// Groups of 32.
    pub(crate) groups: Vec<Group>,
    /// Groups of 256.
    pub(crate) wide: Vec<Wide>,
    /// Of each row, whether a value is not finite.
    pub(crate) faulty: Vec<AtomicBool>,
}

impl Activation {
    pub(crate) fn new(
        rows: usize,
        width: usize,
        profile: Profile,
        grouping: Grouping,
    ) -> Result<Self, BackendError> {
        let grouping = if profile == Profile::Quantised { grouping } else { Grouping::default() };
        assert!(!grouping.wide || width.is_multiple_of(SEGMENT), "groups of 256 are whole");
        let groups = rows.checked_mul(width.div_ceil(GROUP));
        let wide = rows.checked_mul(width / SEGMENT);
        let what = "rows of activations";
        Ok(Self {
            width,
            profile,
            grouping,
            values: allocate(groups.and_then(|groups| groups.checked_mul(GROUP / LANES)), what)?,
            groups: if grouping.narrow { allocate(groups, what)? } else { Vec::new() },
            wide: if grouping.wide { allocate(wide, what)? } else { Vec::new() },
            faulty: (0..rows).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    /// Groups from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.width.div_ceil(GROUP)
    }

    /// Values of row `row`, padding included.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        let stride = self.stride() * (GROUP / LANES);
        floats(&self.values[row * stride..][..stride])
    }

    /// Groups of row `row`.
    #[inline(always)]
    pub(crate) fn groups(&self, row: usize) -> &[Group] {
        let stride = self.stride();
        &self.groups[row * stride..][..stride]
    }

    /// Groups of 256 of row `row`.
    #[inline(always)]
    pub(crate) fn wide(&self, row: usize) -> &[Wide] {
        let stride = self.width / SEGMENT;
        &self.wide[row * stride..][..stride]
    }

    /// Those of `rows` that are faulty.
    pub(crate) fn faulty_rows(&self, rows: Range<usize>) -> impl Iterator<Item = usize> {
        rows.filter(|&row| self.faulty[row].load(Ordering::Relaxed))
    }
}
