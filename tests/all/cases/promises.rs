//! Promises that planted mistakes broke without a test noticing.
