//! Norms (section 4).

/// Lanes of the sum over a row.
pub(crate) const LANES: usize = 256;

/// Sum of squares over 256 lanes and a halving tree.
pub fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for chunk in x.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = value.mul_add(*value, *lane);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Root-mean-square norm of `x` in place.
///
/// # Panics
/// If there are not as many weights as values.
pub fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len(), "one weight for each value");
    let r = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x = (*x * r) * w;
    }
}
