//! Bounds: no number in a file and no shape of a text decides memory or time.
