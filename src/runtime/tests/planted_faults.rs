//! The faults of `runtime/failpoint.rs` as tests plant them, in a child process by the variable LLAMA_LITE_FAULTS.

use std::sync::OnceLock;

struct Fault {
    name: String,
    occasions: (u64, u64),
    value: f64,
}

/// `LLAMA_LITE_FAULTS="loss@3-5=nan,hang@7=60,memory=2"`: name, occasions (all if left out), value.
fn parse(text: &str) -> Vec<Fault> {
    text.split(',').filter(|item| !item.is_empty()).map(Fault::parse).collect()
}

impl Fault {
    fn parse(item: &str) -> Self {
        let (place, value) = item.split_once('=').unwrap();
        let (name, occasions) = place.split_once('@').unwrap_or((place, "0-18446744073709551615"));
        let (first, last) = occasions.split_once('-').unwrap_or((occasions, occasions));
        Self {
            name: name.to_owned(),
            occasions: (first.parse().unwrap(), last.parse().unwrap()),
            value: value.parse().unwrap(),
        }
    }
}

pub(crate) fn failpoint(name: &'static str, n: u64) -> Option<f64> {
    static FAULTS: OnceLock<Vec<Fault>> = OnceLock::new();
    let faults = FAULTS.get_or_init(|| parse(&std::env::var("LLAMA_LITE_FAULTS").unwrap_or_default()));
    let planted = faults.iter().find(|f| f.name == name && (f.occasions.0..=f.occasions.1).contains(&n));
    planted.map(|fault| fault.value)
}

#[test]
fn faults_are_read_as_written() {
    let faults = parse("loss@3-5=nan,hang@7=60,memory=2");
    let read: Vec<_> = faults.iter().map(|f| (f.name.as_str(), f.occasions)).collect();
    assert_eq!(read, [("loss", (3, 5)), ("hang", (7, 7)), ("memory", (0, u64::MAX))]);
    assert!(faults[0].value.is_nan() && faults[1].value == 60.0);
    assert_eq!(failpoint("loss", 3), None, "nothing is planted in this process");
}
