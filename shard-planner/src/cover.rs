//! Finding a pipeline among nodes that hold ranges of the model.

use std::ops::Range;

use thiserror::Error;

/// What one node holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Layers, may be empty for a node that holds an end alone.
    pub layers: Range<usize>,
    /// Holds the embedding.
    pub embedding: bool,
    /// Holds the head.
    pub head: bool,
    /// How busy the node is, 0 (idle) upwards; a pipeline through idle nodes is preferred.
    pub load: f64,
}

/// One stage of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Index of the span.
    pub span: usize,
    /// Layers it runs.
    pub layers: Range<usize>,
    /// It runs the embedding.
    pub embedding: bool,
    /// It runs the head.
    pub head: bool,
}

/// The first part of the model that no usable node holds.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Gap {
    /// The embedding.
    #[error("the embedding")]
    Embedding,
    /// Layers.
    #[error("layers {}..{}", .0.start, .0.end)]
    Layers(Range<usize>),
    /// The final norm and the head.
    #[error("the head")]
    Head,
}

impl Span {
    /// Units held: 0 is the embedding, 1..=layers the layers, then the head. Ends count only where they
    /// join the span's layers.
    fn units(&self, layers: usize) -> Range<usize> {
        if self.layers.is_empty() {
            return match (self.embedding, self.head) {
                (true, _) => 0..1,
                (false, true) => layers + 1..layers + 2,
                (false, false) => 0..0,
            };
        }
        let from = if self.embedding && self.layers.start == 0 { 0 } else { self.layers.start + 1 };
        let to = if self.head && self.layers.end == layers { layers + 2 } else { self.layers.end + 1 };
        from..to
    }
}

/// The pipeline of fewest stages that covers a model of `layers` layers, the least loaded among
/// those; every span appears at most once.
pub fn cover(layers: usize, spans: &[Span]) -> Result<Vec<Leg>, Gap> {
    let units = layers + 2;
    let held: Vec<Range<usize>> = spans.iter().map(|span| span.units(layers)).collect();
    // best[u]: (stages, load, span that ends at u) of the best way to cover units 0..u. A span is always
    // used to its end: stopping earlier never saves a stage.
    let mut best: Vec<Option<(usize, f64, usize, usize)>> = vec![None; units + 1];
    best[0] = Some((0, 0.0, 0, 0));
    for at in 0..units {
        let Some((stages, load, ..)) = best[at] else { continue };
        for (index, range) in held.iter().enumerate().filter(|(_, range)| range.contains(&at)) {
            let next = (stages + 1, load + spans[index].load, index, at);
            let better = best[range.end].is_none_or(|old| (next.0, next.1) < (old.0, old.1));
            if better {
                best[range.end] = Some(next);
            }
        }
    }
    if best[units].is_none() {
        return Err(gap(layers, &held));
    }
    let mut legs = Vec::new();
    let mut end = units;
    while end > 0 {
        let Some((_, _, span, start)) = best[end] else { break };
        legs.push(Leg {
            span,
            layers: start.saturating_sub(1)..(end - 1).min(layers),
            embedding: start == 0,
            head: end == units,
        });
        end = start;
    }
    legs.reverse();
    Ok(legs)
}

fn gap(layers: usize, held: &[Range<usize>]) -> Gap {
    let missing = |unit: &usize| !held.iter().any(|range| range.contains(unit));
    let first = (0..layers + 2).find(missing).unwrap_or(0);
    match first {
        0 => Gap::Embedding,
        unit if unit == layers + 1 => Gap::Head,
        unit => Gap::Layers(unit - 1..(unit..=layers).take_while(missing).last().unwrap_or(unit)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(layers: Range<usize>, embedding: bool, head: bool) -> Span {
        Span { layers, embedding, head, load: 0.0 }
    }

    #[test]
    fn thirds_make_a_pipeline() {
        let spans = [span(4..6, false, true), span(0..2, true, false), span(2..4, false, false)];
        let legs = cover(6, &spans).unwrap();
        assert_eq!(legs.iter().map(|leg| leg.span).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(legs.iter().map(|leg| leg.layers.clone()).collect::<Vec<_>>(), [0..2, 2..4, 4..6]);
        assert!(legs[0].embedding && legs[2].head);
    }

    #[test]
    fn overlapping_nodes_are_cut_where_they_meet() {
        let legs = cover(6, &[span(0..4, true, false), span(2..6, false, true)]).unwrap();
        assert_eq!(legs.iter().map(|leg| leg.layers.clone()).collect::<Vec<_>>(), [0..4, 4..6]);
    }

    #[test]
    fn ends_may_stand_alone() {
        let spans = [span(0..0, true, false), span(0..6, false, false), span(6..6, false, true)];
        let legs = cover(6, &spans).unwrap();
        assert_eq!(legs.iter().map(|leg| leg.layers.clone()).collect::<Vec<_>>(), [0..0, 0..6, 6..6]);
    }

    #[test]
    fn the_idle_of_two_equal_nodes_is_chosen() {
        let spans =
            [Span { load: 3.0, ..span(0..6, true, true) }, Span { load: 1.0, ..span(0..6, true, true) }];
        assert_eq!(cover(6, &spans).unwrap()[0].span, 1);
    }

    #[test]
    fn a_gap_is_named() {
        assert_eq!(cover(6, &[]), Err(Gap::Embedding));
        assert_eq!(cover(6, &[span(0..2, true, false), span(4..6, false, true)]), Err(Gap::Layers(2..4)));
        assert_eq!(cover(6, &[span(0..6, true, false)]), Err(Gap::Head));
        assert_eq!(Gap::Layers(2..4).to_string(), "layers 2..4");
    }

    proptest! {
        #[test]
        fn a_pipeline_covers_everything_once_or_something_is_missing(
            layers in 1usize..10,
            raw in prop::collection::vec((0usize..10, 0usize..10, any::<bool>(), any::<bool>(), 0.0f64..9.0), 0..8),
        ) {
            let spans: Vec<Span> = raw.into_iter().map(|(a, b, embedding, head, load)| {
                let (a, b) = (a.min(layers), b.min(layers));
                Span { layers: a.min(b)..a.max(b), embedding, head, load }
            }).collect();
            match cover(layers, &spans) {
                Ok(legs) => {
                    prop_assert!(legs[0].embedding && legs.last().unwrap().head);
                    let covered: Vec<usize> = legs.iter().flat_map(|leg| leg.layers.clone()).collect();
                    prop_assert_eq!(covered, (0..layers).collect::<Vec<_>>());
                    for leg in &legs {
                        let held = &spans[leg.span];
                        prop_assert!(leg.layers.is_empty() || (held.layers.start <= leg.layers.start && leg.layers.end <= held.layers.end));
                        prop_assert!((!leg.embedding || held.embedding) && (!leg.head || held.head));
                    }
                    let mut used: Vec<usize> = legs.iter().map(|leg| leg.span).collect();
                    used.sort_unstable();
                    used.dedup();
                    prop_assert_eq!(used.len(), legs.len());
                }
                Err(_) => {
                    let held: Vec<_> = spans.iter().map(|s| s.units(layers)).collect();
                    prop_assert!((0..layers + 2).any(|u| !held.iter().any(|r| r.contains(&u))));
                }
            }
        }
    }
}
