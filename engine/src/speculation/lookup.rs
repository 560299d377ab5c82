//! Guesses from text: what followed the longest earlier occurrence of the last tokens, in the request
//! itself ([`Lookup`]) or in what was written for the same tenant before ([`Shared`]).

use std::mem;

/// Contexts are compared up to this length; longer agreement says nothing more.
pub const LONGEST_MATCH: usize = 32;

/// A shorter agreement is not worth a guess.
pub const SHORTEST_MATCH: usize = 2;

/// Lengths of the contexts that are indexed, the most telling first.
const GRAMS: [usize; 2] = [6, SHORTEST_MATCH];

/// Earlier occurrences that are compared per index.
const CANDIDATES: usize = 32;

/// Stands between texts in [`Shared`]; no vocabulary reaches it.
const SEPARATOR: u32 = u32::MAX;

/// Bytes that a token costs at most, the spare room of growing buffers included: itself, and in each
/// index its link and two slots.
const TOKEN_BYTES: usize = size_of::<u32>() * (2 + 4 * GRAMS.len());

/// One text and where its contexts stand. A token is taken in amortised constant time and at most 40
/// bytes; a guess compares at most 64 earlier places.
#[derive(Clone, Debug)]
pub struct Lookup {
    tokens: Vec<u32>,
    indices: [Index; GRAMS.len()],
}

impl Lookup {
    /// Takes in a request's prompt.
    pub fn new(prompt: &[u32]) -> Self {
        let mut lookup = Self { tokens: Vec::with_capacity(prompt.len()), indices: GRAMS.map(Index::new) };
        prompt.iter().for_each(|&token| lookup.push(token));
        lookup
    }

    /// Takes in the next token.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        for index in &mut self.indices {
            index.push(&self.tokens);
        }
    }

    /// Tokens taken in.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Writes up to `max` guesses at what follows the text and then `tail` (guesses already made) into
    /// `out`, which is cleared first. Returns the length of the context that the guesses follow, at most
    /// [`LONGEST_MATCH`]; 0 if there is none. The longest earlier context wins, the latest among equals.
    pub fn propose(&self, tail: &[u32], max: usize, out: &mut Vec<u32>) -> usize {
        self.follow(Context { own: true, tokens: &self.tokens, tail }, max, out)
    }

    /// As [`Lookup::propose`], after a context that need not be part of this text.
    fn follow(&self, context: Context<'_>, max: usize, out: &mut Vec<u32>) -> usize {
        out.clear();
        let Some((matched, place)) = self.longest(context) else { return 0 };
        for next in place..place.saturating_add(max) {
            // Past the end of the text goes on what is being written: a repetition repeats itself.
            let guess = match self.tokens.get(next) {
                Some(&token) => Some(token),
                None if context.own => context.at(next).or_else(|| out.get(next - context.len()).copied()),
                None => None,
            };
            match guess {
                Some(token) if token != SEPARATOR => out.push(token),
                _ => break,
            }
        }
        if out.is_empty() { 0 } else { matched }
    }

    /// The longest agreement with the end of `context`, and the place after it.
    fn longest(&self, context: Context<'_>) -> Option<(usize, usize)> {
        let end = context.len();
        self.indices.iter().find_map(|index| {
            let gram = context.last(index.length)?;
            let earlier = index.ends(&gram[..index.length]).filter(|&place| !context.own || place < end);
            let agreed = earlier.take(CANDIDATES).map(|place| (self.agreement(place, context), place));
            // The candidates come latest first, and the first of equals stands.
            let best = agreed.fold((0, 0), |best, other| if other.0 > best.0 { other } else { best });
            (best.0 >= index.length).then_some(best)
        })
    }

    /// Whether the text has all of a full `stretch` of [`LONGEST_MATCH`] tokens in one piece.
    fn has(&self, stretch: &[u32]) -> bool {
        let context = Context { own: false, tokens: &[], tail: stretch };
        self.longest(context).is_some_and(|(matched, _)| matched == LONGEST_MATCH)
    }

    /// Tokens before `place` that equal the last ones of `context`.
    fn agreement(&self, place: usize, context: Context<'_>) -> usize {
        let before = self.tokens[..place].iter().rev().take(LONGEST_MATCH);
        before
            .zip(context.backwards())
            .take_while(|&(&ours, theirs)| ours == theirs && ours != SEPARATOR)
            .count()
    }
}

/// What guesses follow: two slices one after the other.
#[derive(Clone, Copy)]
struct Context<'a> {
    /// Whether `tokens` is the searched text itself, so that places in it are places in the context.
    own: bool,
    tokens: &'a [u32],
    tail: &'a [u32],
}

impl Context<'_> {
    fn len(&self) -> usize {
        self.tokens.len() + self.tail.len()
    }

    fn at(&self, index: usize) -> Option<u32> {
        self.tokens.get(index).or_else(|| self.tail.get(index - self.tokens.len())).copied()
    }

    fn backwards(&self) -> impl Iterator<Item = u32> {
        self.tail.iter().rev().chain(self.tokens.iter().rev()).copied()
    }

    /// The last `length` tokens in order, at the front of an array.
    fn last(&self, length: usize) -> Option<[u32; GRAMS[0]]> {
        let mut gram = [0; GRAMS[0]];
        let from = self.len().checked_sub(length)?;
        for (slot, index) in gram.iter_mut().zip(from..self.len()) {
            *slot = self.at(index)?;
        }
        Some(gram)
    }
}

/// Where contexts of one length end: chains of places with the same hash, the latest first. Whoever
/// follows a chain compares the tokens, so a collision costs a comparison and nothing else.
#[derive(Clone, Debug)]
struct Index {
    length: usize,
    /// By hash: the place after the latest such context; 0 is none.
    latest: Vec<u32>,
    /// By place less one: the next place of the chain.
    earlier: Vec<u32>,
}

impl Index {
    fn new(length: usize) -> Self {
        Self { length, latest: vec![0; 16], earlier: Vec::new() }
    }

    /// Enters the context that ends with the last of `tokens`.
    fn push(&mut self, tokens: &[u32]) {
        if self.earlier.len() == self.latest.len() {
            self.latest = vec![0; self.latest.len() * 2];
            self.earlier.clear();
            (1..tokens.len()).for_each(|end| self.enter(&tokens[..end]));
        }
        self.enter(tokens);
    }

    fn enter(&mut self, tokens: &[u32]) {
        let mut next = 0;
        if let Some(start) = tokens.len().checked_sub(self.length) {
            let slot = self.slot(&tokens[start..]);
            next = mem::replace(&mut self.latest[slot], tokens.len() as u32);
        }
        self.earlier.push(next);
    }

    fn slot(&self, gram: &[u32]) -> usize {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let hash =
            gram.iter().fold(0u64, |hash, &token| (hash.rotate_left(5) ^ u64::from(token)).wrapping_mul(ODD));
        // The high bits are the well mixed ones; the table's size is a power of two.
        (hash >> (64 - self.latest.len().trailing_zeros())) as usize
    }

    /// Places after contexts that may equal `gram`, the latest first.
    fn ends(&self, gram: &[u32]) -> impl Iterator<Item = usize> {
        let mut place = self.latest[self.slot(gram)];
        std::iter::from_fn(move || {
            let current = place as usize;
            place = *self.earlier.get(current.checked_sub(1)?)?;
            Some(current)
        })
    }
}

/// What was written for one tenant, within bounds: guesses where the request's own text has none.
///
/// Texts stand in two generations. When the newer one is full it becomes the older one, which is dropped:
/// what is written again in the meantime is in the newer one by then. A stretch that it has is not taken
/// in twice, so a system prompt that every request repeats costs its room once.
#[derive(Debug)]
pub struct Shared {
    newer: Lookup,
    older: Lookup,
    /// Tokens of one generation.
    capacity: usize,
}

impl Shared {
    /// A memory that uses at most `bytes`.
    pub fn new(bytes: usize) -> Self {
        let capacity = (bytes / TOKEN_BYTES / 2).min(u32::MAX as usize - 1);
        Self { newer: Lookup::new(&[]), older: Lookup::new(&[]), capacity }
    }

    /// Takes in a text: a finished reply, with its prompt before it where that should serve others too.
    pub fn insert(&mut self, tokens: &[u32]) {
        let mut joined = false;
        let mut left_out = None;
        for stretch in tokens.chunks(LONGEST_MATCH) {
            if self.newer.has(stretch) {
                left_out = Some(stretch);
                joined = false;
                continue;
            }
            if !joined {
                self.append(&[SEPARATOR]);
            }
            // What was left out is the context of what comes now.
            if let Some(before) = left_out.take() {
                self.append(before);
            }
            self.append(stretch);
            joined = true;
        }
    }

    /// As [`Lookup::propose`], for guesses at what follows `context` (its last [`LONGEST_MATCH`] tokens
    /// are enough).
    pub fn propose(&self, context: &[u32], max: usize, out: &mut Vec<u32>) -> usize {
        let context = Context { own: false, tokens: &[], tail: context };
        match self.newer.follow(context, max, out) {
            0 => self.older.follow(context, max, out),
            matched => matched,
        }
    }

    fn append(&mut self, tokens: &[u32]) {
        if tokens.len() > self.capacity {
            return;
        }
        if self.newer.tokens.len() + tokens.len() > self.capacity {
            self.older = mem::replace(&mut self.newer, Lookup::new(&[]));
        }
        tokens.iter().for_each(|&token| self.newer.push(token));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn propose(lookup: &Lookup, tail: &[u32], max: usize) -> (usize, Vec<u32>) {
        let mut out = vec![99];
        let matched = lookup.propose(tail, max, &mut out);
        (matched, out)
    }

    /// The same by comparing every place.
    fn by_force(tokens: &[u32], tail: &[u32], max: usize) -> (usize, Vec<u32>) {
        let mut all = [tokens, tail].concat();
        let end = all.len();
        let agreement = |place: usize| {
            (0..place.min(LONGEST_MATCH))
                .take_while(|back| all[place - 1 - back] == all[end - 1 - back])
                .count()
        };
        // Places after the text's own contexts alone are indexed, not those in the tail.
        let places = (SHORTEST_MATCH..=tokens.len()).filter(|&place| place < end);
        let Some(place) = places.max_by_key(|&place| (agreement(place), place)) else { return (0, vec![]) };
        let matched = agreement(place);
        if matched < SHORTEST_MATCH || max == 0 {
            return (0, vec![]);
        }
        (0..max).for_each(|step| all.push(all[place + step]));
        (matched, all.split_off(end))
    }

    #[test]
    fn the_longest_context_wins_and_then_the_latest() {
        let lookup = Lookup::new(&[1, 2, 3, 40, 9, 2, 3, 50, 8, 2, 3, 60, 7, 1, 2, 3]);
        assert_eq!(propose(&lookup, &[], 2), (3, vec![40, 9]), "1 2 3 is longer than 2 3");
        let lookup = Lookup::new(&[9, 2, 3, 50, 8, 2, 3, 60, 7, 2, 3]);
        assert_eq!(propose(&lookup, &[], 2), (2, vec![60, 7]), "the later one");
        assert_eq!(propose(&lookup, &[50], 2), (3, vec![8, 2]), "guesses already made belong to the context");
        assert_eq!(propose(&lookup, &[77], 2), (0, vec![]));
        assert_eq!(propose(&Lookup::new(&[5]), &[], 2), (0, vec![]));
    }

    #[test]
    fn a_repetition_goes_on_repeating() {
        let lookup = Lookup::new(&[4, 5, 6, 4, 5, 6]);
        assert_eq!(propose(&lookup, &[], 8), (3, vec![4, 5, 6, 4, 5, 6, 4, 5]));
        assert_eq!(propose(&lookup, &[4, 5], 4), (5, vec![6, 4, 5, 6]));
    }

    #[test]
    fn a_text_without_repetition_has_no_guess() {
        let lookup = Lookup::new(&(0..1000).collect::<Vec<_>>());
        assert_eq!(propose(&lookup, &[], 8), (0, vec![]));
    }

    #[test]
    fn a_long_text_of_one_token_is_searched_within_bounds() {
        let lookup = Lookup::new(&vec![7; 100_000]);
        let (matched, out) = propose(&lookup, &[7; 100], 50);
        assert_eq!((matched, out), (LONGEST_MATCH, vec![7; 50]));
    }

    #[test]
    fn texts_of_a_tenant_serve_another_request() {
        let mut shared = Shared::new(1 << 16);
        let mut out = Vec::new();
        assert_eq!(shared.propose(&[1, 2, 3], 4, &mut out), 0);
        shared.insert(&[1, 2, 3, 4, 5]);
        shared.insert(&[2, 3, 9, 9]);
        assert_eq!(shared.propose(&[0, 1, 2, 3], 4, &mut out), 3);
        assert_eq!(out, [4, 5], "a text ends where it ends");
        assert_eq!(shared.propose(&[7, 2, 3], 4, &mut out), 2);
        assert_eq!(out, [9, 9], "the later text");
        assert_eq!(shared.propose(&[4, 5], 4, &mut out), 0, "nothing followed");
    }

    #[test]
    fn what_is_repeated_costs_its_room_once_and_keeps_its_context() {
        let system: Vec<u32> = (0..20 * LONGEST_MATCH as u32).collect();
        let mut shared = Shared::new(1 << 20);
        for request in 0..100 {
            shared.insert(&[&system[..], &[5000 + request, 6000 + request]].concat());
        }
        assert!(
            shared.newer.tokens.len() < system.len() + 100 * (LONGEST_MATCH + 3),
            "{}",
            shared.newer.tokens.len()
        );
        let mut out = Vec::new();
        assert!(shared.propose(&system[100..110], 3, &mut out) > 0);
        assert_eq!(out, [110, 111, 112]);
        assert!(shared.propose(&[&system[630..], &[5042]].concat(), 3, &mut out) > 2);
        assert_eq!(out, [6042]);
    }

    #[test]
    fn a_tenant_stays_within_its_bytes() {
        let bytes = 1 << 14;
        let mut shared = Shared::new(bytes);
        let held = |lookup: &Lookup| {
            let indices =
                lookup.indices.iter().map(|index| index.latest.capacity() + index.earlier.capacity());
            (lookup.tokens.capacity() + indices.sum::<usize>()) * size_of::<u32>()
        };
        for text in 0..200u32 {
            shared.insert(&(text * 100..text * 100 + 57).collect::<Vec<_>>());
            assert!(held(&shared.newer) + held(&shared.older) <= bytes);
        }
        let mut out = Vec::new();
        assert!(shared.propose(&[19_901, 19_902, 19_903], 1, &mut out) > 0, "the latest is there");
        assert_eq!(shared.propose(&[1, 2, 3], 1, &mut out), 0, "the first is not");
        Shared::new(0).insert(&[1, 2, 3]);
    }

    proptest! {
        #[test]
        fn guesses_are_those_of_a_full_comparison(
            tokens in prop::collection::vec(0u32..3, 0..CANDIDATES), tail in prop::collection::vec(0u32..3, 0..5), max in 0usize..9,
        ) {
            prop_assert_eq!(propose(&Lookup::new(&tokens), &tail, max), by_force(&tokens, &tail, max));
        }

        #[test]
        fn a_text_that_grows_is_the_text_taken_in_whole(tokens in prop::collection::vec(0u32..4, 0..300)) {
            let mut grown = Lookup::new(&[]);
            tokens.iter().for_each(|&token| grown.push(token));
            prop_assert_eq!(propose(&grown, &[], 5), propose(&Lookup::new(&tokens), &[], 5));
        }
    }
}
