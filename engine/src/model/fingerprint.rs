//! The hash by which two machines know that they mean the same model in the same arithmetic.

use kernels::rope::{RopeScaling, RopeSpec};

use super::{
    Quantisation,
    open::NUMERICS,
    plan::{Layout, Target},
    table::TensorTable,
};

/// Feeds values to a hash so that no two sequences of values give the same bytes.
struct Writer(blake3::Hasher);

impl Writer {
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn size(&mut self, size: usize) {
        self.number(size as u64);
    }

    fn real(&mut self, value: f64) {
        self.number(value.to_bits());
    }

    fn optional(&mut self, value: Option<f64>) {
        self.number(u64::from(value.is_some()));
        self.real(value.unwrap_or(0.0));
    }

    fn rope(&mut self, rope: &RopeSpec) {
        self.real(rope.theta);
        self.size(rope.dimensions);
        match &rope.scaling {
            RopeScaling::Default => self.text("default"),
            RopeScaling::Linear { factor } => {
                self.text("linear");
                self.real(*factor);
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                self.text("llama3");
                self.real(*factor);
                self.real(*low_freq_factor);
                self.real(*high_freq_factor);
                self.number(u64::from(*original_max_positions));
            }
            RopeScaling::Yarn {
                factor,
                original_max_positions,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                self.text("yarn");
                self.real(*factor);
                self.number(u64::from(*original_max_positions));
                self.real(*beta_fast);
                self.real(*beta_slow);
                self.optional(*attention_factor);
                self.number(u64::from(*truncate));
            }
            RopeScaling::Divisors(divisors) => {
                self.text("divisors");
                self.size(divisors.len());
                divisors.iter().for_each(|&divisor| self.real(f64::from(divisor)));
            }
        }
    }

    /// A tensor that lies elsewhere counts like one that is here, if its format is known.
    fn tensor(&mut self, name: &str, table: &TensorTable) {
        let here = table.tensors.get(name).map(|info| (info.dtype, &info.shape));
        let elsewhere = table.absent.get(name).and_then(|absent| absent.stored.as_ref());
        self.text(name);
        let Some((dtype, shape)) = here.or(elsewhere.map(|(dtype, shape)| (*dtype, shape))) else {
            return self.text("absent");
        };
        self.text(&dtype.to_string());
        self.size(shape.len());
        shape.iter().for_each(|&n| self.size(n));
    }
}

pub(crate) fn of(layout: &Layout, table: &TensorTable, quantisation: Quantisation) -> [u8; 32] {
    let config = &layout.description.config;
    let mut writer = Writer(blake3::Hasher::new_derive_key("dolphin model fingerprint 1"));
    writer.text(NUMERICS);
    writer.text(&quantisation.to_string());
    writer.text(&config.family);
    let sizes = [config.hidden, config.intermediate, config.layers, config.heads, config.kv_heads];
    sizes.into_iter().for_each(|size| writer.size(size));
    writer.size(config.head_dim);
    writer.size(config.vocabulary);
    writer.number(u64::from(config.norm_eps.to_bits()));
    writer.rope(&config.rope);
    writer.number(u64::from(config.max_positions));
    config.windows.iter().for_each(|window| writer.optional(window.map(f64::from)));
    writer.number(u64::from(config.attention_scale.to_bits()));
    writer.optional(config.embedding_scale.map(f64::from));
    writer.number(u64::from(config.tied));
    for unit in layout.units() {
        for item in layout.items(unit, quantisation, table) {
            writer.tensor(&item.name, table);
            writer.text(match item.target {
                Target::Matrix(format) => format.name(),
                Target::Vector => "vector",
            });
        }
    }
    *writer.0.finalize().as_bytes()
}
