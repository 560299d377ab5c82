//! Embedding rows (`embed.cu`).

use bytemuck::{Pod, Zeroable};

use crate::{
    cuda::launch::{DevicePtr, Launch, Source},
    tensor::Format,
};

/// Parameters of [`embed`].
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Embed {
    /// u32: rows in use.
    pub step: DevicePtr,
    /// u32 `[rows]`: token ids, each below the rows of the table.
    pub tokens: DevicePtr,
    /// Canonical bytes, aligned to 16; pinned memory of the host will do, for a step reads a few rows of it.
    pub table: DevicePtr,
    /// f32 `[rows][columns]`.
    pub out: DevicePtr,
    /// Bytes of a row of the table.
    pub row_bytes: u32,
    /// Values of a row.
    pub columns: u32,
    /// Factor on the values, if `scaled`.
    pub scale: f32,
    /// 1: `scale` counts.
    pub scaled: u32,
    /// 1: the values are rounded to bf16.
    pub rounded: u32,
    /// Nothing.
    pub zero: u32,
}

/// Decodes the rows of tokens. `rows` is the bucket.
pub fn embed(params: Embed, format: Format, rows: u32) -> Launch {
    let kernel = match format {
        Format::Q8 => "embed_q8",
        Format::Q4 => "embed_q4",
        Format::Bf16 => "embed_bf16",
        Format::F32 => "embed_f32",
        Format::Q4K => "embed_q4_k",
        Format::Q6K => "embed_q6_k",
    };
    Launch::new(Source::Embed, kernel, [params.columns.div_ceil(1024), rows, 1], 256, 0, &params)
}
