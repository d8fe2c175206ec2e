//! Where documents begin in a stream of tokens: at the separator before each, or behind the separator after each.

/// The separator between documents, and its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The id that no document's text encodes to.
    pub separator: u32,
    /// Whether it ends documents instead of beginning them.
    pub after: bool,
}

impl Boundary {
    /// For each token of `row`, the position in the row where its document begins. The row may begin inside a document.
    pub fn starts<'r>(&self, row: &'r [u32]) -> impl Iterator<Item = u32> + use<'r> {
        let Self { separator, after } = *self;
        let mut start = 0;
        row.iter().enumerate().map(move |(i, &id)| {
            // A separator that ends documents still belongs to the one before it.
            let begins = if after { i > 0 && row[i - 1] == separator } else { id == separator };
            if begins {
                start = i as u32;
            }
            start
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_begin_with_or_behind_the_separator() {
        let row = [5, 9, 1, 2, 9, 9, 3];
        let starts = |after| Boundary { separator: 9, after }.starts(&row).collect::<Vec<_>>();
        assert_eq!(starts(false), [0, 1, 1, 1, 4, 5, 5]);
        assert_eq!(starts(true), [0, 0, 2, 2, 2, 5, 6]);
    }
}
