//! Stop strings in a stream of text: what may be the beginning of one is held back until more text decides it.

pub(super) struct Stops {
    strings: Vec<String>,
    held: String,
    found: bool,
}

impl Stops {
    pub(super) fn new(strings: &[String]) -> Self {
        let strings = strings.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { strings, held: String::new(), found: false }
    }

    /// Adds `piece`. Returns the text that certainly belongs to no stop string, and whether one was found (after which there is no more
    /// text).
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        if self.found {
            return (String::new(), true);
        }
        self.held.push_str(piece);
        // The earliest, because one piece may complete several.
        let first = self.strings.iter().filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = first {
            self.found = true;
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        // An end that may be the beginning of a stop string is held back until more text decides.
        let keep = self.strings.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Whether a stop string was found, which ends the text.
    pub(super) fn has_stopped(&self) -> bool {
        self.found
    }

    /// The text that was held back and turned out not to be a stop string.
    pub(super) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest proper prefix of `stop` with which `text` ends.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).filter(|&at| at > 0 && at <= text.len());
    ends.filter(|&n| text.ends_with(&stop[..n])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let strings: Vec<String> = stops.iter().map(|&s| s.into()).collect();
        let mut stops = Stops::new(&strings);
        let out = pieces.iter().map(|piece| stops.push(piece).0).collect();
        (out, stops.has_stopped(), stops.rest())
    }

    #[test]
    fn nothing_of_a_stop_string_gets_out() {
        assert_eq!(
            run(&["\nUser:"], &["Hi\n", "Us", "er: x", "y"]),
            (vec!["Hi".into(), "".into(), "".into(), "".into()], true, "".into())
        );
        assert_eq!(run(&["END", "N"], &["aE", "N"]).0, ["a", "E"], "the earlier one counts");
        assert_eq!(run(&["ab"], &["a", "a", "b"]), (vec!["".into(), "a".into(), "".into()], true, "".into()));
    }

    #[test]
    fn what_was_held_for_nothing_comes_after_all() {
        assert_eq!(
            run(&["\nUser:"], &["a\n", "Us", "ual"]),
            (vec!["a".into(), "".into(), "\nUsual".into()], false, "".into())
        );
        assert_eq!(run(&["\nUser:"], &["a\nUs"]), (vec!["a".into()], false, "\nUs".into()));
        assert_eq!(run(&["", "éé"], &["né", "é"]), (vec!["n".into(), "".into()], true, "".into()));
        assert_eq!(run(&[], &["a", "b"]).0, ["a", "b"]);
    }
}
