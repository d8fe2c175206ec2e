//! What the tests of several modules share.

pub(crate) mod damage;
pub(crate) mod planted_faults;
