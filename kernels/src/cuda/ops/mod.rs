//! What each operation's kernels take: layouts, parameter blocks and launch shapes. Pure: no driver is
//! called here, so the same launches run on a card and in the PTX machine of the tests.

pub mod attention;
pub mod copy;
pub mod draw;
pub mod embed;
pub mod heads;
pub mod linear;
pub mod norm;
pub mod pack;
