//! Faults planted by tests at named places of the training loop: a loss that is not finite, a thread that panics, a device out of
//! memory. In the program itself there is no such thing: outside test builds [`failpoint`] is a constant.
//!
//! Tests that use it run this test program again as a child with `LLAMA_LITE_FAULTS` set, because a planted fault may end the process
//! and because tests of one process run beside each other.

/// The value planted at the place `name` for the occasion `n` (a step, a size), if any.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn failpoint(_name: &'static str, _n: u64) -> Option<f64> {
    None
}

#[cfg(test)]
pub(crate) use planted::failpoint;

#[cfg(test)]
mod planted {
    use std::sync::OnceLock;

    struct Fault {
        name: String,
        occasions: (u64, u64),
        value: f64,
    }

    /// `LLAMA_LITE_FAULTS="loss@3-5=nan,hang@7=60,memory=2"`: name, occasions (all if left out), value.
    fn parse(text: &str) -> Vec<Fault> {
        let fault = |item: &str| {
            let (place, value) = item.split_once('=').unwrap();
            let (name, occasions) = place.split_once('@').unwrap_or((place, "0-18446744073709551615"));
            let (first, last) = occasions.split_once('-').unwrap_or((occasions, occasions));
            Fault {
                name: name.to_owned(),
                occasions: (first.parse().unwrap(), last.parse().unwrap()),
                value: value.parse().unwrap(),
            }
        };
        text.split(',').filter(|item| !item.is_empty()).map(fault).collect()
    }

    pub(crate) fn failpoint(name: &'static str, n: u64) -> Option<f64> {
        static FAULTS: OnceLock<Vec<Fault>> = OnceLock::new();
        let faults = FAULTS.get_or_init(|| parse(&std::env::var("LLAMA_LITE_FAULTS").unwrap_or_default()));
        let here = |f: &&Fault| f.name == name && (f.occasions.0..=f.occasions.1).contains(&n);
        faults.iter().find(here).map(|fault| fault.value)
    }

    #[test]
    fn faults_are_read_as_written() {
        let faults = parse("loss@3-5=nan,hang@7=60,memory=2");
        let read: Vec<_> = faults.iter().map(|f| (f.name.as_str(), f.occasions)).collect();
        assert_eq!(read, [("loss", (3, 5)), ("hang", (7, 7)), ("memory", (0, u64::MAX))]);
        assert!(faults[0].value.is_nan() && faults[1].value == 60.0);
        assert_eq!(failpoint("loss", 3), None, "nothing is planted in this process");
    }
}
