//! Memory in large pages for what is read from end to end again and again.
//!
//! A product of one row (generation) takes as long as its weight takes to arrive from memory. With pages of 4 KiB, a look-up of an address
//! and a new start of the processor's prefetching come every 64 cache lines. Pages of 2 MiB spare most of that. They change no value, and
//! a system that does not know them keeps its own.

/// `len` elements `zero`, in large pages where the system has them.
pub(crate) fn filled<T: Clone>(zero: T, len: usize) -> Vec<T> {
    let mut buffer = Vec::with_capacity(len);
    // Before the first element is written: the system chooses the size of a page when it is first touched.
    ask(&mut buffer);
    buffer.resize(len, zero);
    buffer
}

#[cfg(target_os = "linux")]
fn ask<T>(buffer: &mut Vec<T>) {
    const LARGE: usize = 2 << 20;
    let spare = buffer.spare_capacity_mut();
    let start = spare.as_mut_ptr().addr().next_multiple_of(LARGE);
    let end = (spare.as_mut_ptr().addr() + size_of_val(spare)) / LARGE * LARGE;
    if start < end {
        // SAFETY: whole pages inside this buffer; the advice changes neither their contents nor whether they are there. Refusing it, as
        // a system without such pages does, leaves everything as it was.
        let _ = unsafe {
            let from = spare.as_mut_ptr().cast::<std::ffi::c_void>().with_addr(start);
            rustix::mm::madvise(from, end - start, rustix::mm::Advice::LinuxHugepage)
        };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask<T>(_: &mut Vec<T>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_there_and_zero() {
        for len in [0, 1, 5000, (3 << 20) + 17] {
            let buffer = filled(0f32, len);
            assert!(buffer.len() == len && buffer.iter().all(|x| *x == 0.0));
        }
    }
}
