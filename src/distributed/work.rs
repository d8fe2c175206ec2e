//! Work that one rank does for all, or that all do together.

use super::group::ProcessGroup;
use super::message::garbled;
use crate::runtime::error::{Exit, fail};
use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Pieces that a rank does before it hears of the others: many enough that ranks hardly wait for each other, few enough that a request to
/// stop or a failure of one soon reaches all.
const ROUNDS: usize = 16;

impl ProcessGroup {
    /// The result of `work` on rank 0, on all ranks.
    ///
    /// # Errors
    /// That of `work`; those of the exchange.
    pub fn on_first<T: Serialize + DeserializeOwned>(
        &self,
        about: &str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if self.ranks() == 1 {
            return work();
        }
        // A list, because JSON does not tell a value that is nothing from no value.
        let own: Vec<T> =
            if self.is_first() { vec![work().map_err(|error| self.tell_error(about, error))?] } else { Vec::new() };
        let values = self.gather(about, &own)?;
        let first = values.into_iter().flatten().next();
        first.ok_or_else(|| fail(Exit::Internal, format!("rank 0 has not said anything about {about}")).into())
    }

    /// Does `work` on rank 0, and on the others once it has succeeded there: what it downloads or caches is then at hand.
    ///
    /// # Errors
    /// The first failure of any rank.
    pub fn first_then_others<T>(&self, about: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.ranks() == 1 {
            return work();
        }
        if self.is_first() {
            let own = work().map_err(|error| self.tell_error(about, error))?;
            self.gather::<()>(about, &())?;
            return self.agree(about, Ok(own));
        }
        self.gather::<()>(about, &())?;
        self.agree(about, work())
    }

    /// Makes sure that all ranks have the same `about`, by a fingerprint of it; one rank computes none.
    ///
    /// # Errors
    /// [`Exit::Data`] on all ranks, naming the first one that differs from rank 0; the first failure of any rank.
    pub fn ensure_same(&self, about: &str, fingerprint: impl FnOnce() -> Result<String>) -> Result<()> {
        if self.ranks() == 1 {
            return Ok(());
        }
        let own = fingerprint().map_err(|error| self.tell_error(about, error))?;
        let values = self.gather(about, &own)?;
        match values.iter().position(|theirs| *theirs != values[0]) {
            None => Ok(()),
            Some(rank) => {
                let what = format!("the {about} of {} is not that of rank 0", self.name_of(rank));
                Err(fail(Exit::Data, what).hint("give every host the same files").into())
            }
        }
    }

    /// Deals out `count` pieces of work to the ranks in turn; returns the results of all, in order, on every rank.
    ///
    /// # Errors
    /// The first failure of any rank; [`StopAsked`](crate::runtime::error::StopAsked) on all of them if it cuts the work of one short.
    pub fn deal<T, W>(&self, about: &str, count: usize, mut work: W) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned,
        W: FnMut(usize) -> Result<T>,
    {
        if self.ranks() == 1 {
            return (0..count).map(work).collect();
        }
        let ranks = self.ranks();
        let mut results = Vec::with_capacity(count);
        for start in (0..count).step_by(ROUNDS * ranks) {
            let pieces = start..count.min(start + ROUNDS * ranks);
            // Ranks that deal out something else are found out by what they call it.
            let about = format!("{about}, {pieces:?} of {count}");
            let own: Result<Vec<T>> = (start + self.rank()..pieces.end).step_by(ranks).map(&mut work).collect();
            let own = own.map_err(|error| self.tell_error(&about, error))?;
            let mut all: Vec<_> = self.gather(&about, &own)?.into_iter().map(Vec::into_iter).collect();
            for i in 0..pieces.len() {
                results.push(all[i % ranks].next().ok_or_else(garbled)?);
            }
        }
        Ok(results)
    }

    /// How many of `count` pieces that are dealt out are done when this rank has done `piece`, as far as it can tell: those of its round.
    pub fn dealt(&self, piece: usize, count: usize) -> usize {
        (piece - self.rank() + self.ranks()).min(count)
    }
}
