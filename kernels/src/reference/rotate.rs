//! Rotary embedding (section 6).

/// Rotates the pairs `(i, i + R/2)` of one head in place, `R / 2` being the length of `cos` and `sin`;
/// dimensions past R stay.
///
/// # Panics
/// If the head is narrower than R.
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, rest) = head.split_at_mut(cos.len());
    for (((a, b), c), s) in first.iter_mut().zip(&mut rest[..cos.len()]).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}
