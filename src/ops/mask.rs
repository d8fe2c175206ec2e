//! Which keys a query sees besides being no later than itself.

use crate::ops::positions::DocumentStarts;
use candle_core::{Result, bail};
use std::borrow::Cow;

/// What hides earlier keys of a batch from a query. By default: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mask<'a> {
    /// A query sees the keys of its own document only.
    pub documents: Option<&'a DocumentStarts>,
    /// A query sees this many keys, its own included (sliding window, Beltagy et al. 2020).
    pub window: Option<usize>,
}

impl<'a> Mask<'a> {
    pub fn of_documents(documents: Option<&'a DocumentStarts>) -> Self {
        Self { documents, window: None }
    }

    /// # Errors
    /// If it is that of another batch than `b` rows of `t`; `op` is named in the message.
    pub(in crate::ops) fn check(&self, op: &str, b: usize, t: usize) -> Result<()> {
        if self.documents.is_some_and(|documents| !documents.fits(b, t)) {
            bail!("{op}: documents of another batch than ({b}, {t})");
        }
        if self.window == Some(0) {
            bail!("{op}: a window of no keys");
        }
        Ok(())
    }

    /// The first key that each query of sequence `i` sees, of rows of `t`: rising, each at most its own place. None: all see the first.
    pub(in crate::ops) fn first_keys(&self, i: usize, t: usize) -> Option<Cow<'a, [u32]>> {
        let starts = self.documents.map(|documents| documents.row(i));
        match (starts, window_first_keys(self.window, 0, t)) {
            (starts, None) => starts.map(Cow::Borrowed),
            (None, Some(first)) => Some(Cow::Owned(first)),
            (Some(starts), Some(mut first)) => {
                first.iter_mut().zip(starts).for_each(|(first, start)| *first = (*first).max(*start));
                Some(Cow::Owned(first))
            }
        }
    }

    /// [`first_keys`](Self::first_keys) of all `b` sequences, one after the other.
    #[cfg(any(test, feature = "cuda"))]
    pub(in crate::ops) fn all_first_keys(&self, b: usize, t: usize) -> Option<Cow<'a, [u32]>> {
        if self.window.is_none_or(|window| window >= t) {
            return self.documents.map(|documents| Cow::Borrowed(documents.starts()));
        }
        let rows: Option<Vec<_>> = (0..b).map(|i| self.first_keys(i, t)).collect();
        rows.map(|rows| Cow::Owned(rows.concat()))
    }
}

/// The first key that each of `queries` at positions from `start` on sees; none if `window` hides nothing from them.
pub(in crate::ops) fn window_first_keys(window: Option<usize>, start: usize, queries: usize) -> Option<Vec<u32>> {
    let window = window.filter(|window| *window < start + queries)?;
    Some((start..start + queries).map(|query| (query + 1).saturating_sub(window) as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_documents_hide_together() {
        let documents = DocumentStarts::new(vec![0, 0, 0, 3, 3, 0, 1, 1, 1, 1], 5).unwrap();
        let mask = |documents, window| Mask { documents, window };
        let both = mask(Some(&documents), Some(2));
        assert_eq!(both.first_keys(0, 5).unwrap(), vec![0, 0, 1, 3, 3]);
        assert_eq!(both.first_keys(1, 5).unwrap(), vec![0, 1, 1, 2, 3]);
        assert_eq!(both.all_first_keys(2, 5).unwrap(), vec![0, 0, 1, 3, 3, 0, 1, 1, 2, 3]);
        assert_eq!(mask(None, Some(3)).first_keys(1, 5).unwrap(), vec![0, 0, 0, 1, 2]);
        assert_eq!(mask(None, Some(3)).all_first_keys(2, 5).unwrap().len(), 10);
        // A window as long as the row hides nothing.
        assert_eq!(mask(None, Some(5)).first_keys(0, 5), None);
        assert_eq!(mask(Some(&documents), Some(5)).first_keys(1, 5).unwrap(), documents.row(1));
        assert_eq!(window_first_keys(Some(4), 6, 2).unwrap(), [3, 4]);
        assert!(both.check("test", 2, 5).is_ok() && both.check("test", 1, 5).is_err());
        assert!(mask(None, Some(0)).check("test", 2, 5).is_err());
    }
}
