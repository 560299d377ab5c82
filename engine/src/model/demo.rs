//! The model inside the program: small enough to carry, so that everything can be tried at once.

pub(super) const NAME: &str = "dolphin-demo";
pub(super) const CONFIG: &[u8] = include_bytes!("../../demo/config.json");
pub(super) const GENERATION: &[u8] = include_bytes!("../../demo/generation_config.json");
pub(super) const TOKENIZER: &[u8] = include_bytes!("../../demo/tokenizer.json");
pub(super) const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../demo/tokenizer_config.json");
pub(super) const WEIGHTS: &[u8] = include_bytes!("../../demo/model.safetensors");
