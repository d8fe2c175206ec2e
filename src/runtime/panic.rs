//! Calls into libraries that panic on some damaged files. There a panic is an answer, and its message is not printed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `call`, or the message of its panic, which is not printed.
pub fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static SILENCED: Once = Once::new();
    // The hook is the whole process's: it is set once, and asks the thread that panics.
    SILENCED.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                usual(panic);
            }
        }));
    });
    // The old value comes back below, because guarded calls can be nested.
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_answers() {
        assert_eq!(catch_panic(|| 5), Ok(5));
        assert_eq!(catch_panic(|| -> u8 { panic!("unseen") }), Err("unseen".into()));
        assert_eq!(catch_panic(|| -> u8 { panic!("{}", 7) }), Err("7".into()));
        assert!(!GUARDED.get());
    }
}
