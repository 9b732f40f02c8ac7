//! Stop strings across deltas: text that could begin one is held back, and none ever leaks.
//!
//! The stop string that is complete first ends the text; of several complete at the same byte, the
//! one that begins first. So the outcome depends on the text alone, never on how it was cut into
//! deltas, and it is the text that a model generating byte by byte would have been stopped at.

/// Searches a stream of text for stop strings.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Seen but not passed on, since a stop string may begin in it.
    held: String,
    include_stop: bool,
}

impl StopMatcher {
    /// Looks for `stops` (empty strings stop nothing); with `include_stop` the stop string found
    /// stays in the text.
    pub fn new(stops: &[String], include_stop: bool) -> Self {
        let patterns = stops.iter().map(|stop| Pattern::new(stop)).collect();
        Self { patterns, held: String::new(), include_stop }
    }

    /// Takes more text and appends to `out` what is certain not to belong to a stop string.
    /// Returns the index of the stop string that is now complete; then nothing follows.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        let searched = self.held.len();
        self.held.push_str(text);
        for end in searched..self.held.len() {
            let byte = self.held.as_bytes()[end];
            if let Some((index, stop_bytes)) = self.advance(byte) {
                let end = end + 1;
                let keep = if self.include_stop { end } else { end - stop_bytes };
                out.push_str(&self.held[..keep]);
                self.held.clear();
                return Some(index);
            }
        }
        self.let_go(out);
        None
    }

    /// [`StopMatcher::push`] of text in which no stop string may end, but one that ends later may
    /// begin.
    pub fn pass(&mut self, text: &str, out: &mut String) {
        self.held.push_str(text);
        for byte in text.bytes() {
            self.advance(byte);
        }
        self.let_go(out);
    }

    /// Appends what no stop string begins in.
    fn let_go(&mut self, out: &mut String) {
        let may_begin = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let safe = self.held.len() - may_begin;
        if safe > 0 {
            out.push_str(&self.held[..safe]);
            self.held.drain(..safe);
        }
    }

    /// Appends what was held back: the text has ended and it was no stop string.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.patterns.iter_mut().for_each(|pattern| pattern.matched = 0);
    }

    /// The longest stop string complete with this byte: its index and length.
    fn advance(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut found: Option<(usize, usize)> = None;
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            let stop_bytes = pattern.bytes.len();
            if pattern.advance(byte) && found.is_none_or(|(_, longest)| longest < stop_bytes) {
                found = Some((index, stop_bytes));
            }
        }
        found
    }
}

/// One stop string with the automaton of Knuth, Morris and Pratt. `matched` is the length of the
/// longest end of the text that begins the stop string: exactly what must be held back for it.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `[bytes.len()]`; `border[i]`: length of the longest proper border of `bytes[..=i]`.
    border: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut border = vec![0; bytes.len()];
        for i in 1..bytes.len() {
            let mut length = border[i - 1];
            while length > 0 && bytes[length] != bytes[i] {
                length = border[length - 1];
            }
            border[i] = length + usize::from(bytes[length] == bytes[i]);
        }
        Self { bytes, border, matched: 0 }
    }

    /// Takes a byte; true when the stop string is complete.
    fn advance(&mut self, byte: u8) -> bool {
        if self.bytes.is_empty() {
            return false;
        }
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.border[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        let complete = self.matched == self.bytes.len();
        if complete {
            // The end of one may begin another.
            self.matched = self.border[self.matched - 1];
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule over the whole text: smallest end, then smallest begin.
    fn naive(text: &str, stops: &[String]) -> Option<(usize, usize, usize)> {
        let found = stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        found
            .filter_map(|(i, stop)| text.find(stop.as_str()).map(|at| (at + stop.len(), at, i)))
            .min()
    }

    fn run(deltas: &[&str], stops: &[String], include: bool) -> (String, Option<usize>, String) {
        let mut matcher = StopMatcher::new(stops, include);
        let (mut out, mut before_end) = (String::new(), String::new());
        for delta in deltas {
            if let Some(hit) = matcher.push(delta, &mut out) {
                return (out.clone(), Some(hit), out);
            }
            before_end.clone_from(&out);
        }
        matcher.finish(&mut out);
        (out, None, before_end)
    }

    fn stops(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn a_stop_across_three_deltas_never_leaks() {
        let (text, hit, _) = run(&["one\n", "Us", "er: two"], &stops(&["\nUser:"]), false);
        assert_eq!((text.as_str(), hit), ("one", Some(0)));
        let (text, hit, _) = run(&["one\n", "Us", "er: two"], &stops(&["\nUser:"]), true);
        assert_eq!((text.as_str(), hit), ("one\nUser:", Some(0)));
    }

    #[test]
    fn what_only_looked_like_a_stop_comes_out() {
        let (text, hit, _) = run(&["a", "ab", "aab"], &stops(&["aaaa"]), false);
        assert_eq!((text.as_str(), hit), ("aabaab", None));
        let (text, hit, held) = run(&["end<|"], &stops(&["<|x|>", ""]), false);
        assert_eq!((text.as_str(), hit, held.as_str()), ("end<|", None, "end"));
    }

    #[test]
    fn the_stop_complete_first_wins_then_the_longer() {
        let (text, hit, _) = run(&["xabcdef"], &stops(&["abcdef", "cd"]), false);
        assert_eq!((text.as_str(), hit), ("xab", Some(1)));
        let (text, hit, _) = run(&["xabcd"], &stops(&["cd", "abcd"]), false);
        assert_eq!((text.as_str(), hit), ("x", Some(1)));
    }

    #[test]
    fn a_stop_ends_after_the_text_that_is_passed_and_may_begin_in_it() {
        for (passed, pushed, told) in [
            ("xa", "bc", ("x", Some(0))),
            ("xab", "c", ("xabc", None)),
            ("xabaa", "bc", ("xaba", Some(0))),
            ("xab", "zab", ("xabz", Some(0))),
            ("ababa", "b", ("abab", Some(0))),
        ] {
            let (mut matcher, mut out) = (StopMatcher::new(&stops(&["ab"]), false), String::new());
            matcher.pass(passed, &mut out);
            let hit = matcher.push(pushed, &mut out);
            matcher.finish(&mut out);
            assert_eq!((out.as_str(), hit), told, "{passed} {pushed}");
        }
        let (mut matcher, mut out) = (StopMatcher::new(&stops(&["aa"]), false), String::new());
        matcher.pass("aaa", &mut out);
        assert_eq!((matcher.push("a", &mut out), out.as_str()), (Some(0), "aa"));
    }

    proptest! {
        #[test]
        fn every_split_gives_what_the_whole_text_gives(
            text in "[abé]{0,40}",
            list in prop::collection::vec("[abé]{0,5}", 0..4),
            cuts in prop::collection::vec(0usize..60, 0..8),
            include: bool,
        ) {
            let mut cuts: Vec<usize> =
                cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let deltas: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let (out, hit, before_end) = run(&deltas, &list, include);
            match naive(&text, &list) {
                Some((end, begin, _)) => {
                    let index = hit.expect("a stop string is in the text");
                    prop_assert_eq!(list[index].as_str(), &text[begin..end]);
                    prop_assert_eq!(out.as_str(), &text[..if include { end } else { begin }]);
                }
                None => {
                    prop_assert_eq!(hit, None);
                    prop_assert_eq!(&out, &text);
                    // Held back is no more than what a stop string could begin with.
                    let tail = &text[before_end.len()..];
                    prop_assert!(tail.is_empty() || list.iter().any(|s| s.starts_with(tail)));
                }
            }
        }
    }
}
