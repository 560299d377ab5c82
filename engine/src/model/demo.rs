//! The models inside the program, small enough to carry, so that everything can be tried at once: one to
//! talk to and one that drafts for it.

/// What a model of the program consists of, beside what all of them share.
pub(super) struct Demo {
    pub(super) name: &'static str,
    pub(super) config: &'static [u8],
    pub(super) weights: &'static [u8],
}

pub(super) const CHAT: Demo = Demo {
    name: "dolphin-demo",
    config: include_bytes!("../../demo/config.json"),
    weights: include_bytes!("../../demo/model.safetensors"),
};
pub(super) const DRAFT: Demo = Demo {
    name: "dolphin-demo-draft",
    config: include_bytes!("../../demo/draft/config.json"),
    weights: include_bytes!("../../demo/draft/model.safetensors"),
};

pub(super) const GENERATION: &[u8] = include_bytes!("../../demo/generation_config.json");
pub(super) const TOKENIZER: &[u8] = include_bytes!("../../demo/tokenizer.json");
pub(super) const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../demo/tokenizer_config.json");
