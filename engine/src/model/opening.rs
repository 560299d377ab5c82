//! Single weights and rotations with what proves them to be a model's: what a dispute opens.

use kernels::{
    rope::RopeTable,
    tensor::{Format, SEGMENT},
};
use ledger::merkle;

use super::{
    Model, ModelError, Quantisation,
    hash::{
        Part, VECTOR_SEGMENT, matrix_rows, rotations, segment_leaves, tensor_leaf, unit_leaves, vector_bytes,
    },
    plan::{Item, Unit},
    weights::Loaded,
};

/// A segment of a tensor, and what leads from it to the unit's root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenedSegment {
    /// Canonical bytes.
    pub bytes: Vec<u8>,
    /// Name of the format.
    pub format: &'static str,
    /// Rows of the tensor.
    pub rows: u64,
    /// Columns of the tensor.
    pub columns: u64,
    /// From the segment to the tensor's root.
    pub in_tensor: Vec<[u8; 32]>,
    /// From the tensor to the unit's root.
    pub in_unit: Vec<[u8; 32]>,
}

/// The rotations of a position, and what leads from them to the position encoding's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenedRotations {
    /// The position's number, cosines, sines.
    pub(crate) leaf: Vec<u8>,
    /// From them to the hash.
    pub(crate) in_rope: Vec<[u8; 32]>,
}

/// The weights of a layer, or of the embedding.
pub struct OpenUnit {
    description: Vec<u8>,
    items: Vec<Item>,
    tensors: Vec<Loaded>,
    /// Of the unit's tree, once something was opened.
    leaves: Vec<[u8; 32]>,
}

impl OpenUnit {
    /// Value `index` of a vector; tensors count from 1, 0 being the description.
    pub(crate) fn vector(&self, tensor: u32, index: u32) -> Option<f32> {
        match self.tensors.get((tensor as usize).checked_sub(1)?)? {
            Loaded::Vector(values) => values.get(index as usize).copied(),
            Loaded::Matrix(_) => None,
        }
    }

    /// Format of a matrix.
    pub(crate) fn format(&self, tensor: u32) -> Option<Format> {
        match self.tensors.get((tensor as usize).checked_sub(1)?)? {
            Loaded::Matrix(matrix) => Some(matrix.format()),
            Loaded::Vector(_) => None,
        }
    }

    /// A segment of a matrix's row, with its format.
    pub(crate) fn segment(&self, tensor: u32, row: u32, segment: u32) -> Option<(Format, &[u8])> {
        match self.tensors.get((tensor as usize).checked_sub(1)?)? {
            Loaded::Matrix(matrix) if (row as usize) < matrix.rows() => {
                let bytes = matrix.format().row_bytes(SEGMENT);
                let segment = matrix.row(row as usize).chunks(bytes).nth(segment as usize)?;
                Some((matrix.format(), segment))
            }
            _ => None,
        }
    }

    /// The description and what leads from it to the unit's root.
    pub(crate) fn description(&mut self) -> (Vec<u8>, Vec<[u8; 32]>) {
        let proof = merkle::proof(self.leaves(), 0);
        (self.description.clone(), proof.unwrap_or_default())
    }

    /// Opens a segment of a tensor.
    pub(crate) fn open(&mut self, tensor: u32, row: u32, segment: u32) -> Option<OpenedSegment> {
        let in_unit = merkle::proof(self.leaves(), tensor as usize)?;
        let index = (tensor as usize).checked_sub(1)?;
        let (item, segment) = (&self.items[index], segment as usize);
        let (format, size, bytes, mut above) = match &self.tensors[index] {
            Loaded::Vector(values) => (Format::F32, VECTOR_SEGMENT, vector_bytes(values), Vec::new()),
            Loaded::Matrix(matrix) => {
                let above = merkle::proof(&matrix_rows(matrix), row as usize)?;
                let size = matrix.format().row_bytes(SEGMENT);
                (matrix.format(), size, matrix.row(row as usize).to_vec(), above)
            }
        };
        let mut in_tensor = merkle::proof(&segment_leaves(row as usize, &[&bytes], size), segment)?;
        in_tensor.append(&mut above);
        Some(OpenedSegment {
            bytes: bytes.chunks(size).nth(segment)?.to_vec(),
            format: format.name(),
            rows: item.rows() as u64,
            columns: item.columns() as u64,
            in_tensor,
            in_unit,
        })
    }

    fn leaves(&mut self) -> &[[u8; 32]] {
        if self.leaves.is_empty() {
            let tensors = self.items.iter().zip(&self.tensors);
            let tensors: Vec<_> = tensors.map(|(item, tensor)| tensor_leaf(item, tensor)).collect();
            self.leaves = unit_leaves(&self.description, &tensors);
        }
        &self.leaves
    }
}

impl Model {
    /// The weights of a layer; of the embedding without one.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub(crate) fn open_unit(
        &self,
        layer: Option<usize>,
        quantisation: Quantisation,
    ) -> Result<OpenUnit, ModelError> {
        let (unit, part) = match layer {
            Some(layer) => (Unit::Layer(layer), Part::Layer(layer)),
            None => (Unit::Embedding, Part::Embedding),
        };
        Ok(OpenUnit {
            description: self.describe(part, quantisation),
            items: self.layout.items(unit, quantisation, &self.table),
            tensors: self.load_unit(unit, quantisation, &mut |_| ())?,
            leaves: Vec::new(),
        })
    }

    /// The rotations of a position; `None` past the positions that are hashed.
    ///
    /// # Errors
    /// If there is no such encoding.
    pub(crate) fn open_rotations(
        &self,
        table: &RopeTable,
        position: u32,
    ) -> Result<Option<OpenedRotations>, ModelError> {
        let proof = merkle::proof(self.rope_leaves()?, position as usize + 1);
        let opened = |in_rope| OpenedRotations { leaf: rotations(table, position as usize), in_rope };
        Ok(proof.map(opened))
    }

    /// Whether heads have norms, and which products have biases: q, k and v; o; gate, up and down.
    pub(crate) fn parts(&self) -> (bool, [bool; 3]) {
        let parts = self.layout.description.parts;
        (parts.qk_norm, [parts.qkv_bias, parts.output_bias, parts.mlp_bias])
    }
}
