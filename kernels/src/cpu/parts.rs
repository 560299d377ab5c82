//! Ways to cut mutable storage into disjoint parts, one for each task of a [`Pool`](super::pool::Pool).

use std::{marker::PhantomData, ops::Range};

/// Storage cut into `count` parts.
///
/// # Safety
/// Parts of different indices share no memory.
pub(crate) unsafe trait Parts: Sync {
    /// One part.
    type Part;

    /// Number of parts.
    fn count(&self) -> usize;

    /// Part `index`.
    ///
    /// # Safety
    /// `index < count()`, and no earlier part of this index is still in use.
    unsafe fn part(&self, index: usize) -> Self::Part;
}

/// A slice cut into runs of `unit` elements, the last one shorter.
pub(crate) struct Runs<'a, T> {
    start: *mut T,
    len: usize,
    unit: usize,
    storage: PhantomData<&'a mut [T]>,
}

impl<'a, T> Runs<'a, T> {
    pub(crate) fn new(slice: &'a mut [T], unit: usize) -> Self {
        assert!(unit > 0, "a part has elements");
        Self { start: slice.as_mut_ptr(), len: slice.len(), unit, storage: PhantomData }
    }
}

// SAFETY: it hands out `&mut [T]` to other threads, which asks for `T: Send`.
unsafe impl<T: Send> Sync for Runs<'_, T> {}

// SAFETY: the runs follow one another without overlap.
unsafe impl<'a, T: Send> Parts for Runs<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.len.div_ceil(self.unit)
    }

    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        let from = index * self.unit;
        // SAFETY: `from` lies in the slice by the caller's promise, and so does the run; the promise
        // also makes it the only reference to these elements.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), self.unit.min(self.len - from)) }
    }
}

// SAFETY: both halves keep their parts apart.
unsafe impl<A: Parts, B: Parts> Parts for (A, B) {
    type Part = (A::Part, B::Part);

    fn count(&self) -> usize {
        self.0.count().min(self.1.count())
    }

    unsafe fn part(&self, index: usize) -> Self::Part {
        // SAFETY: the promise of the caller covers both halves.
        unsafe { (self.0.part(index), self.1.part(index)) }
    }
}

// SAFETY: the parts of one element lie in its storage, and each is handed out once.
unsafe impl<P: Parts, const N: usize> Parts for [P; N] {
    /// The element's index and its part.
    type Part = (usize, P::Part);

    fn count(&self) -> usize {
        self.iter().map(Parts::count).sum()
    }

    unsafe fn part(&self, mut index: usize) -> Self::Part {
        let mut element = 0;
        while index >= self[element].count() {
            index -= self[element].count();
            element += 1;
        }
        // SAFETY: an index below the sum of the counts is one below the count of this element.
        (element, unsafe { self[element].part(index) })
    }
}

/// A rectangle of a row-major matrix, to which nobody else has access.
pub(crate) struct Window<'a, T = f32> {
    start: *mut T,
    stride: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    storage: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a set of `&mut [T]`.
unsafe impl<T: Send> Send for Window<'_, T> {}

impl<'a, T> Window<'a, T> {
    /// The whole of `values`, `[rows][stride]`.
    pub(crate) fn new(values: &'a mut [T], stride: usize) -> Self {
        assert!(stride > 0 && values.len().is_multiple_of(stride), "the matrix has whole rows");
        let rows = 0..values.len() / stride;
        Self { start: values.as_mut_ptr(), stride, rows, columns: 0..stride, storage: PhantomData }
    }

    /// The first `columns` columns.
    pub(crate) fn narrow(mut self, columns: usize) -> Self {
        assert!(columns <= self.columns.len(), "the columns lie in the window");
        self.columns.end = self.columns.start + columns;
        self
    }

    /// The rows covered, as indices of the whole matrix.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The columns covered, as indices of the whole matrix.
    pub(crate) fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// The covered columns of `row`, an index of the whole matrix.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "the row lies in the window");
        // SAFETY: the row and the columns lie in the matrix, and `self` alone reaches them.
        unsafe {
            let start = self.start.add(row * self.stride + self.columns.start);
            std::slice::from_raw_parts_mut(start, self.columns.len())
        }
    }
}

/// A matrix cut into tiles, `columns` wide and `rows` high, counted along a row of tiles first.
pub(crate) struct Tiles<'a, T = f32> {
    whole: Window<'a, T>,
    rows: usize,
    columns: usize,
}

impl<'a, T> Tiles<'a, T> {
    pub(crate) fn new(whole: Window<'a, T>, rows: usize, columns: usize) -> Self {
        assert!(rows > 0 && columns > 0, "a tile has an area");
        Self { whole, rows, columns }
    }

    fn across(&self) -> usize {
        self.whole.columns.len().div_ceil(self.columns)
    }
}

// SAFETY: it hands out `Window`s, which are `Send`.
unsafe impl<T: Send> Sync for Tiles<'_, T> {}

// SAFETY: the tiles of a grid do not overlap.
unsafe impl<'a, T: Send> Parts for Tiles<'a, T> {
    type Part = Window<'a, T>;

    fn count(&self) -> usize {
        self.whole.rows.len().div_ceil(self.rows) * self.across()
    }

    unsafe fn part(&self, index: usize) -> Window<'a, T> {
        let cut = |range: &Range<usize>, unit: usize, index: usize| {
            let start = range.start + index * unit;
            start..range.end.min(start + unit)
        };
        Window {
            start: self.whole.start,
            stride: self.whole.stride,
            rows: cut(&self.whole.rows, self.rows, index / self.across()),
            columns: cut(&self.whole.columns, self.columns, index % self.across()),
            storage: PhantomData,
        }
    }
}

/// Parts with their indices.
pub(crate) struct Indexed<P>(pub(crate) P);

// SAFETY: as the parts within.
unsafe impl<P: Parts> Parts for Indexed<P> {
    type Part = (usize, P::Part);

    fn count(&self) -> usize {
        self.0.count()
    }

    unsafe fn part(&self, index: usize) -> Self::Part {
        // SAFETY: the promise of the caller is passed on.
        (index, unsafe { self.0.part(index) })
    }
}
