//! What a model is loaded in: units (the embedding, a layer, the head), each a list of tensors with
//! their names, shapes and target formats.

use kernels::{backend::Profile, tensor::Format};

use super::{
    ModelConfig, Quantisation, Shard,
    config::Description,
    error::ModelError,
    family::Naming,
    table::{TensorInfo, TensorTable},
};

/// What is planned, read, cached and assembled as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Embedding,
    Layer(usize),
    FinalNorm,
    /// Not for a tied head, which is the embedding.
    Head,
}

/// What a tensor becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A weight matrix `[rows][columns]`.
    Matrix(Format),
    /// f32 values: norms and biases.
    Vector,
}

/// One tensor of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Name in the file.
    pub(crate) name: String,
    /// Shape that follows from the configuration.
    pub(crate) shape: Vec<usize>,
    /// What it becomes.
    pub(crate) target: Target,
    /// Heads whose rows stand in the order of interleaved rotary pairs and have to be put back.
    pub(crate) interleaved_heads: Option<usize>,
}

impl Item {
    pub(crate) fn rows(&self) -> usize {
        match self.target {
            Target::Matrix(_) => self.shape[0],
            Target::Vector => 1,
        }
    }

    pub(crate) fn columns(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Bytes in canonical form.
    pub(crate) fn target_bytes(&self) -> usize {
        match self.target {
            Target::Matrix(format) => self.rows() * format.row_bytes(self.columns()),
            Target::Vector => self.columns() * 4,
        }
    }
}

/// A description with the names of its tensors.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) description: Description,
    pub(crate) naming: &'static Naming,
    /// Rows of Q and K are in the order of interleaved pairs.
    pub(crate) interleaved: bool,
}

impl Layout {
    fn config(&self) -> &ModelConfig {
        &self.description.config
    }

    /// All units of the model in order.
    pub(crate) fn units(&self) -> Vec<Unit> {
        let mut units = vec![Unit::Embedding];
        units.extend((0..self.config().layers).map(Unit::Layer));
        units.push(Unit::FinalNorm);
        if !self.config().tied {
            units.push(Unit::Head);
        }
        units
    }

    /// The units that `shard` is loaded from, in order. A tied head is the embedding, and not loaded twice.
    pub(crate) fn units_of(&self, shard: &Shard) -> Vec<Unit> {
        let tied = self.config().tied;
        let apart = shard.head && !(tied && shard.embedding);
        let mut units: Vec<Unit> = Vec::new();
        units.extend(shard.embedding.then_some(Unit::Embedding));
        units.extend(shard.layers.clone().map(Unit::Layer));
        units.extend(shard.head.then_some(Unit::FinalNorm));
        units.extend(apart.then_some(if tied { Unit::Embedding } else { Unit::Head }));
        units
    }

    /// The tensors of `unit`. A matrix that `table` has in a format worth keeping becomes that format, unless
    /// the profile is unquantised.
    pub(crate) fn items(&self, unit: Unit, quantisation: Quantisation, table: &TensorTable) -> Vec<Item> {
        let mut items = self.uniform(unit, quantisation);
        if quantisation.profile() == Profile::Quantised {
            for Item { name, target, .. } in &mut items {
                let kept = table.tensors.get(name).and_then(|info| info.dtype.kept());
                if let (Target::Matrix(format), Some(kept)) = (target, kept) {
                    *format = kept;
                }
            }
        }
        items
    }

    /// The tensors of `unit` of a checkpoint that is not quantised yet.
    pub(crate) fn uniform(&self, unit: Unit, quantisation: Quantisation) -> Vec<Item> {
        let config = self.config();
        let ends = Target::Matrix(quantisation.ends());
        let table = vec![config.vocabulary, config.hidden];
        let single = |name: &str, shape: Vec<usize>, target| {
            vec![Item { name: format!("{name}.weight"), shape, target, interleaved_heads: None }]
        };
        match unit {
            Unit::Embedding => single(self.naming.embedding, table, ends),
            Unit::FinalNorm => single(self.naming.final_norm, vec![config.hidden], Target::Vector),
            Unit::Head => single(self.naming.head, table, ends),
            Unit::Layer(layer) => self.layer(layer, quantisation),
        }
    }

    /// The order is that in which the assembly takes them.
    fn layer(&self, layer: usize, quantisation: Quantisation) -> Vec<Item> {
        let (config, parts, naming) = (self.config(), self.description.parts, self.naming);
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let heads = |count| self.interleaved.then_some(count);
        let mut items = LayerItems {
            prefix: format!("{}{layer}.", naming.layer),
            format: quantisation.layers(),
            items: Vec::with_capacity(20),
        };
        items.norm(naming.attention_norm, hidden);
        items.linear(naming.query, [queries, hidden], parts.qkv_bias, heads(config.heads));
        items.linear(naming.key, [keys, hidden], parts.qkv_bias, heads(config.kv_heads));
        items.linear(naming.value, [keys, hidden], parts.qkv_bias, None);
        if parts.qk_norm {
            items.norm(naming.query_norm, config.head_dim);
            items.norm(naming.key_norm, config.head_dim);
        }
        items.linear(naming.output, [hidden, queries], parts.output_bias, None);
        items.norm(naming.mlp_norm, hidden);
        items.linear(naming.gate, [intermediate, hidden], parts.mlp_bias, None);
        items.linear(naming.up, [intermediate, hidden], parts.mlp_bias, None);
        items.linear(naming.down, [hidden, intermediate], parts.mlp_bias, None);
        items.items
    }

    /// Bytes of `unit` in canonical form.
    pub(crate) fn unit_bytes(&self, unit: Unit, quantisation: Quantisation, table: &TensorTable) -> u64 {
        self.items(unit, quantisation, table).iter().map(|item| item.target_bytes() as u64).sum()
    }

    /// The tensors of `unit` with where they lie.
    pub(crate) fn placed<'a>(
        &self,
        unit: Unit,
        quantisation: Quantisation,
        table: &'a TensorTable,
    ) -> Result<Vec<(Item, &'a TensorInfo)>, ModelError> {
        let place = |item: Item| {
            let info = table.checked(&item.name, &item.shape)?;
            Ok((item, info))
        };
        self.items(unit, quantisation, table).into_iter().map(place).collect()
    }
}

struct LayerItems {
    prefix: String,
    format: Format,
    items: Vec<Item>,
}

impl LayerItems {
    fn push(&mut self, name: &str, part: &str, shape: Vec<usize>, target: Target, heads: Option<usize>) {
        let name = format!("{}{name}.{part}", self.prefix);
        self.items.push(Item { name, shape, target, interleaved_heads: heads });
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.push(name, "weight", vec![width], Target::Vector, None);
    }

    fn linear(&mut self, name: &str, [rows, columns]: [usize; 2], bias: bool, heads: Option<usize>) {
        self.push(name, "weight", vec![rows, columns], Target::Matrix(self.format), heads);
        if bias {
            self.push(name, "bias", vec![rows], Target::Vector, heads);
        }
    }
}
