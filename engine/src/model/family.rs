//! Model families as data: which norms and biases a layer has, what its tensors are called, and
//! which layers have a window. A new family is a row in [`FAMILIES`].

/// Whether a bias stands beside a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// The family has none.
    Never,
    /// The family always has it.
    Always,
    /// A flag of `config.json` says it; a GGUF says it by having the tensor.
    Flag(&'static str),
}

/// Which layers see only a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Windows {
    /// None, unless the file lists layer types.
    Never,
    /// All, with `sliding_window` (this default where the key is absent, none where it is null).
    All {
        /// Window if the key is absent.
        absent: u32,
    },
    /// With `use_sliding_window`, those from `max_window_layers` on.
    Upper {
        /// Window if the key is absent.
        absent: u32,
        /// `max_window_layers` if the key is absent.
        first: u64,
    },
}

/// A model family.
#[derive(Debug)]
pub(crate) struct Family {
    /// `model_type` in `config.json`.
    pub(crate) name: &'static str,
    /// `general.architecture` of GGUF files, if llama.cpp has one of its own for the family.
    pub(crate) gguf: Option<&'static str>,
    /// Bias of the query, key and value projections.
    pub(crate) qkv_bias: Presence,
    /// Bias of the output projection.
    pub(crate) output_bias: Presence,
    /// Bias of gate, up and down.
    pub(crate) mlp_bias: Presence,
    /// Whether queries and keys are normed per head.
    pub(crate) qk_norm: bool,
    /// Sliding windows.
    pub(crate) windows: Windows,
    /// Whether GGUF files have the rows of Q and K ordered for pairs `(2i, 2i + 1)`.
    pub(crate) gguf_interleaved: bool,
}

const QWEN_WINDOWS: Windows = Windows::Upper { absent: 4096, first: 28 };

/// The families that are understood.
pub(crate) const FAMILIES: [Family; 4] = [
    Family {
        name: "llama",
        gguf: Some("llama"),
        qkv_bias: Presence::Flag("attention_bias"),
        output_bias: Presence::Flag("attention_bias"),
        mlp_bias: Presence::Flag("mlp_bias"),
        qk_norm: false,
        windows: Windows::Never,
        gguf_interleaved: true,
    },
    Family {
        name: "mistral",
        gguf: None,
        qkv_bias: Presence::Never,
        output_bias: Presence::Never,
        mlp_bias: Presence::Never,
        qk_norm: false,
        windows: Windows::All { absent: 4096 },
        gguf_interleaved: true,
    },
    Family {
        name: "qwen2",
        gguf: Some("qwen2"),
        qkv_bias: Presence::Always,
        output_bias: Presence::Never,
        mlp_bias: Presence::Never,
        qk_norm: false,
        windows: QWEN_WINDOWS,
        gguf_interleaved: false,
    },
    Family {
        name: "qwen3",
        gguf: Some("qwen3"),
        qkv_bias: Presence::Flag("attention_bias"),
        output_bias: Presence::Flag("attention_bias"),
        mlp_bias: Presence::Never,
        qk_norm: true,
        windows: QWEN_WINDOWS,
        gguf_interleaved: false,
    },
];

/// What the layers of one particular model consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Bias of the query, key and value projections.
    pub(crate) qkv_bias: bool,
    /// Bias of the output projection.
    pub(crate) output_bias: bool,
    /// Bias of gate, up and down.
    pub(crate) mlp_bias: bool,
    /// Per-head norms of queries and keys.
    pub(crate) qk_norm: bool,
}

impl Family {
    /// The family called `name` in `config.json`.
    pub(crate) fn of_config(name: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// The family of the GGUF architecture `name`.
    pub(crate) fn of_gguf(name: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.gguf == Some(name))
    }

    /// The parts of a layer. What the family leaves open is decided by `present`, given the flag of
    /// `config.json` and the GGUF name of the part.
    pub(crate) fn parts<E>(
        &self,
        mut present: impl FnMut(&'static str, &'static str) -> Result<bool, E>,
    ) -> Result<Parts, E> {
        let mut bias = |presence, part| match presence {
            Presence::Never => Ok(false),
            Presence::Always => Ok(true),
            Presence::Flag(flag) => present(flag, part),
        };
        Ok(Parts {
            qkv_bias: bias(self.qkv_bias, GGUF.query)?,
            output_bias: bias(self.output_bias, GGUF.output)?,
            mlp_bias: bias(self.mlp_bias, GGUF.gate)?,
            qk_norm: self.qk_norm,
        })
    }
}

/// What the tensors are called. `.weight` and `.bias` are appended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Naming {
    pub(crate) embedding: &'static str,
    pub(crate) final_norm: &'static str,
    pub(crate) head: &'static str,
    /// Stands before the layer's number; a dot follows it.
    pub(crate) layer: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) query_norm: &'static str,
    pub(crate) key_norm: &'static str,
    pub(crate) output: &'static str,
    pub(crate) mlp_norm: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
}

/// Names in published safetensors checkpoints.
pub(crate) const CHECKPOINT: Naming = Naming {
    embedding: "model.embed_tokens",
    final_norm: "model.norm",
    head: "lm_head",
    layer: "model.layers.",
    attention_norm: "input_layernorm",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    output: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
};

/// Names in GGUF files.
pub(crate) const GGUF: Naming = Naming {
    embedding: "token_embd",
    final_norm: "output_norm",
    head: "output",
    layer: "blk.",
    attention_norm: "attn_norm",
    query: "attn_q",
    key: "attn_k",
    value: "attn_v",
    query_norm: "attn_q_norm",
    key_norm: "attn_k_norm",
    output: "attn_output",
    mlp_norm: "ffn_norm",
    gate: "ffn_gate",
    up: "ffn_up",
    down: "ffn_down",
};
