//! The scalar definition of every operation, as near to the words of the numerics page as code can
//! be. Where page and code disagree, this code decides.
//!
//! Read in this order: [`math`](exp) (exp and its family), `linear` (quantiser and dot products),
//! `norm`, `rotate`, `attention`, `backend` (the operations over rows and pages), `draw`.

mod attention;
mod backend;
mod draw;
mod linear;
mod math;
mod norm;
mod rotate;

pub use attention::{Fold, attend_block};
pub use backend::{Activation, Buffer, Kv, Reference};
pub use draw::{Change, Choice, Edit, LEAST_TEMPERATURE, draw, draw_in, edit, fixed};
pub use linear::{dot, dot_float, dot_wide, quantise_group};
pub use math::{exp, max, sigmoid, silu};
pub use norm::{rms_norm, sum_of_squares};
pub use rotate::rotate;

/// Constants of the definition that vector code shares.
pub(crate) mod constants {
    pub(crate) use super::{
        linear::QUANTISE_FLOOR,
        math::{EXP_FLOOR, EXP_LN2, EXP_POLYNOMIAL, EXP_SCALE, EXP_SHIFT},
    };
}
