//! Stop strings: where they end an answer, and what of it must wait because it may become one.

/// Watches the text of an answer for strings that end it. The text arrives in pieces of whole characters.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    strings: Vec<String>,
    /// Whether the string that ends the answer is part of the text.
    include: bool,
    /// The end of the text so far, which is the beginning of a stop string.
    held: String,
    matched: bool,
}

impl Stops {
    /// `strings` are not empty. With `include`, the string that ends the answer is part of the text.
    pub fn new(strings: &[String], include: bool) -> Self {
        Self { strings: strings.to_vec(), include, held: String::new(), matched: false }
    }

    /// Takes in a piece of the answer, and returns the text that can be released. After a match nothing more is.
    ///
    /// The string that is complete first ends the answer, and of several that are complete at the same place the
    /// longest. So where a text ends does not depend on the pieces in which it came.
    pub fn push(&mut self, piece: &str) -> String {
        if self.matched {
            return String::new();
        }
        if self.strings.is_empty() {
            return piece.to_string();
        }
        self.held.push_str(piece);
        let found = |string: &String| self.held.find(string.as_str()).map(|at| (at + string.len(), at));
        if let Some((end, start)) = self.strings.iter().filter_map(found).min() {
            self.held.truncate(if self.include { end } else { start });
            self.matched = true;
            return std::mem::take(&mut self.held);
        }
        let may_begin = |at: &usize| self.strings.iter().any(|string| string.starts_with(&self.held[*at..]));
        // No more than the longest string without its last character is ever held.
        let first = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(self.held.len());
        let held = self.held.split_off(first);
        std::mem::replace(&mut self.held, held)
    }

    /// Whether a stop string has ended the answer.
    pub fn matched(&self) -> bool {
        self.matched
    }

    /// Gives up waiting: returns what was held.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(strings: &[&str]) -> Vec<String> {
        strings.iter().map(|s| s.to_string()).collect()
    }

    /// The released text and whether a string matched, for a text in these pieces. Checks that nothing waits that
    /// cannot become a stop string.
    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (String, bool) {
        let longest = stops.iter().map(|s| s.len()).max().unwrap_or(1);
        let mut watched = Stops::new(&strings(stops), include);
        let mut text = String::new();
        for piece in pieces {
            text += &watched.push(piece);
            assert!(watched.held.len() < longest, "{:?}", watched.held);
        }
        let matched = watched.matched();
        text += &watched.rest();
        (text, matched)
    }

    #[test]
    fn a_string_across_pieces_ends_the_text_before_it() {
        assert_eq!(run(&["END"], false, &["a E", "N", "D b"]), ("a ".into(), true));
        assert_eq!(run(&["END"], true, &["a E", "N", "D b"]), ("a END".into(), true));
        assert_eq!(run(&["END"], false, &["a E", "N", "E"]), ("a ENE".into(), false));
        assert_eq!(run(&["aab"], false, &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&[], false, &["a", ""]), ("a".into(), false));
        assert_eq!(run(&["\n\n", "é!"], false, &["x\n", "é", "\n", "é", "!"]), ("x\né\n".into(), true));
    }

    #[test]
    fn the_first_to_be_complete_counts_and_of_those_the_longest() {
        assert_eq!(run(&["bcd", "c"], false, &["abcd"]), ("ab".into(), true));
        assert_eq!(run(&["c", "bc"], false, &["abcd"]), ("a".into(), true));
    }

    /// Short texts over two letters, cut in every way, against a search of the whole text.
    #[test]
    fn the_end_does_not_depend_on_the_pieces() {
        let stops = ["abba", "bb", "aab"];
        for code in 0..1 << 9 {
            let text: String = (0..9).map(|bit| if code >> bit & 1 == 1 { 'a' } else { 'b' }).collect();
            let first = (1..=9)
                .find_map(|end| stops.iter().filter(|s| text[..end].ends_with(**s)).map(|s| end - s.len()).min());
            let expected = (first.map_or(text.as_str(), |at| &text[..at]).to_string(), first.is_some());
            for cuts in 0..1 << 8 {
                let mut pieces = vec![];
                let mut from = 0;
                for at in (1..9).filter(|at| cuts >> (at - 1) & 1 == 1).chain([9]) {
                    pieces.push(&text[from..at]);
                    from = at;
                }
                assert_eq!(run(&stops, false, &pieces), expected, "{pieces:?}");
            }
        }
    }
}
