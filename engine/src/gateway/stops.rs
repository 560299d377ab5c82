//! Cutting a reply at its stop strings, whatever the token and chunk boundaries.

/// Holds back text that may turn out to be the start of a stop string.
///
/// The reply is cut before the stop string that is complete first; among those complete at the
/// same character, before the longest. The result does not depend on how the text is split.
#[derive(Clone, Debug)]
pub(super) struct StopScanner {
    stops: Vec<String>,
    /// Text seen and not released: the start of some stop string, hence shorter than the longest.
    held: String,
}

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// This text is safe to show; the reply goes on.
    Open(String),
    /// A stop string is complete; this is the last text of the reply.
    Cut(String),
}

impl StopScanner {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    pub(super) fn push(&mut self, text: &str) -> Scan {
        if self.stops.is_empty() {
            return Scan::Open(text.to_owned());
        }
        let mut window = std::mem::take(&mut self.held);
        window.push_str(text);
        if let Some(start) = self.first_match(&window) {
            window.truncate(start);
            return Scan::Cut(window);
        }
        self.held = window.split_off(window.len() - self.longest_open_prefix(&window));
        Scan::Open(window)
    }

    /// What was held back, once no more text follows.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn first_match(&self, window: &str) -> Option<usize> {
        let found = |stop: &String| window.find(stop.as_str()).map(|start| (start + stop.len(), start));
        self.stops.iter().filter_map(found).min().map(|(_, start)| start)
    }

    fn longest_open_prefix(&self, window: &str) -> usize {
        let open = |stop: &String| {
            let longest = window.len().min(stop.len() - 1);
            let is_open = |len: &usize| stop.is_char_boundary(*len) && window.ends_with(&stop[..*len]);
            (1..=longest).rev().find(is_open).unwrap_or(0)
        };
        self.stops.iter().map(open).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scanner = StopScanner::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut shown = String::new();
        for piece in pieces {
            match scanner.push(piece) {
                Scan::Open(text) => shown += &text,
                Scan::Cut(text) => return (shown + &text, true),
            }
        }
        (shown + &scanner.finish(), false)
    }

    /// Looks at every prefix of the whole text in turn.
    fn brute_force(stops: &[&str], text: &str) -> (String, bool) {
        for end in (1..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let complete = stops.iter().filter(|stop| text[..end].ends_with(**stop));
            if let Some(longest) = complete.map(|stop| stop.len()).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn a_stop_over_several_pieces_never_shows() {
        assert_eq!(run(&["STOP"], &["a S", "T", "O", "P b"]), ("a ".to_owned(), true));
        assert_eq!(run(&["STOP"], &["a S", "T", "O", "R b"]), ("a STOR b".to_owned(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".to_owned(), true));
        assert_eq!(run(&["日本"], &["x日", "本y"]), ("x".to_owned(), true));
        assert_eq!(run(&["abcd", "c"], &["ab", "cd"]), ("ab".to_owned(), true));
    }

    #[test]
    fn held_text_comes_out_at_the_end() {
        assert_eq!(run(&["\n\n"], &["line\n"]), ("line\n".to_owned(), false));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_brute_force_result(
            text in "[abé]{0,12}",
            stops in proptest::collection::vec("[abé]{1,4}", 0..4),
            cuts in proptest::collection::vec(0_usize..13, 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut at: Vec<usize> =
                cuts.into_iter().filter(|cut| *cut <= text.len() && text.is_char_boundary(*cut)).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let pieces: Vec<&str> = at.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(run(&stops, &pieces), brute_force(&stops, &text));
        }
    }
}
