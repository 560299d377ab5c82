//! The model to be served: what its parts weigh and cost.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A model as the planner sees it: a line of layers between an embedding and a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its name, for people.
    pub name: String,
    /// Bytes of one token's row as it crosses from stage to stage.
    pub row_bytes: u64,
    /// KV bytes per token of each layer, in order. Its length is the number of layers.
    pub kv_bytes: Vec<u64>,
    /// What the parts weigh, for each format that the model can be loaded in.
    pub weights: Vec<Weights>,
    /// Floating point operations for one token in one layer, where known; else two for each byte at 8 bits.
    #[serde(default)]
    pub layer_flops: Option<f64>,
    /// Experts of its layers, for a mixture of experts.
    #[serde(default)]
    pub experts: Option<Experts>,
}

/// Bytes of the parts in one format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Name of the format, such as `q4`.
    pub format: String,
    /// The embedding, held by the first stage.
    pub embedding: u64,
    /// Each layer in order.
    pub layers: Vec<u64>,
    /// Final norm and head, held by the last stage.
    pub head: u64,
}

/// A mixture of experts: a decoding step reads only the experts that its tokens chose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts of a layer.
    pub count: u32,
    /// Experts that one token goes through.
    pub active: u32,
    /// Part of a layer's bytes that are experts, 0 to 1.
    pub share: f64,
}

/// What is wrong with a model.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ModelError {
    /// There is nothing to cut.
    #[error("model {0} has no layers")]
    NoLayers(String),
    /// No format.
    #[error("model {0} has no weights in any format")]
    NoWeights(String),
    /// The parts disagree about their number.
    #[error("model {model} has {layers} layers, but {given} sizes at {format}")]
    Count {
        /// Which.
        model: String,
        /// Format.
        format: String,
        /// Layers by their KV.
        layers: usize,
        /// Layers by their weights.
        given: usize,
    },
    /// A layer weighs nothing.
    #[error("layer {layer} of model {model} has no bytes at {format}")]
    EmptyLayer {
        /// Which model.
        model: String,
        /// Format.
        format: String,
        /// Which layer.
        layer: usize,
    },
    /// A number that cannot be.
    #[error("model {model}: {what} cannot be {value}")]
    Number {
        /// Which.
        model: String,
        /// Field.
        what: &'static str,
        /// Value as given.
        value: f64,
    },
    /// Not offered.
    #[error("model {model} cannot be loaded at {format}; it has {known}")]
    UnknownFormat {
        /// Which.
        model: String,
        /// Format asked for.
        format: String,
        /// Formats it has.
        known: String,
    },
}

impl Model {
    /// A model of equal layers in one format.
    pub fn uniform(name: &str, layers: usize, layer_bytes: u64, kv_bytes: u64, row_bytes: u64) -> Self {
        let weights =
            Weights { format: "q8".to_owned(), embedding: 0, layers: vec![layer_bytes; layers], head: 0 };
        Self {
            name: name.to_owned(),
            row_bytes,
            kv_bytes: vec![kv_bytes; layers],
            weights: vec![weights],
            layer_flops: None,
            experts: None,
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.kv_bytes.len()
    }

    /// The weights at `format`.
    pub fn at(&self, format: &str) -> Result<&Weights, ModelError> {
        let known = || self.weights.iter().map(|w| w.format.as_str()).collect::<Vec<_>>().join(", ");
        self.weights.iter().find(|weights| weights.format == format).ok_or_else(|| {
            ModelError::UnknownFormat { model: self.name.clone(), format: format.to_owned(), known: known() }
        })
    }

    /// Refuses what cannot be a model.
    pub fn check(&self) -> Result<(), ModelError> {
        let (model, layers) = (self.name.clone(), self.layers());
        if layers == 0 {
            return Err(ModelError::NoLayers(model));
        }
        if self.weights.is_empty() {
            return Err(ModelError::NoWeights(model));
        }
        let number = |what, value| ModelError::Number { model: model.clone(), what, value };
        if self.row_bytes == 0 {
            return Err(number("row_bytes", 0.0));
        }
        if let Some(flops) = self.layer_flops.filter(|flops| !(flops.is_finite() && *flops > 0.0)) {
            return Err(number("layer_flops", flops));
        }
        if let Some(experts) = &self.experts {
            if !(0.0..=1.0).contains(&experts.share) {
                return Err(number("experts.share", experts.share));
            }
            if experts.active == 0 || experts.active > experts.count {
                return Err(number("experts.active", f64::from(experts.active)));
            }
        }
        for weights in &self.weights {
            let (format, given) = (weights.format.clone(), weights.layers.len());
            if given != layers {
                return Err(ModelError::Count { model, format, layers, given });
            }
            if let Some(layer) = weights.layers.iter().position(|&bytes| bytes == 0) {
                return Err(ModelError::EmptyLayer { model, format, layer });
            }
        }
        Ok(())
    }

    /// Part of the weights that a step of `batch` sequences reads, 0 to 1.
    pub fn read_share(&self, batch: f64) -> f64 {
        let Some(experts) = &self.experts else { return 1.0 };
        let untouched = (1.0 - f64::from(experts.active) / f64::from(experts.count)).powf(batch.max(1.0));
        1.0 - experts.share * untouched
    }
}

impl Weights {
    /// Bytes of all parts.
    pub fn total(&self) -> u64 {
        self.of(&(0..self.layers.len()))
    }

    /// Bytes of a range of layers, with the embedding if it begins the model and the head if it ends it.
    pub fn of(&self, layers: &Range<usize>) -> u64 {
        let ends = [(layers.start == 0, self.embedding), (layers.end == self.layers.len(), self.head)];
        let ends: u64 = ends.iter().filter(|(held, _)| *held).map(|(_, bytes)| bytes).sum();
        ends + self.layers[layers.clone()].iter().sum::<u64>()
    }
}
