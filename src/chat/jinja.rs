//! minijinja, set up as transformers sets up Jinja.

use super::date::Date;
use super::methods::method;
use super::{MARKS, filters, python};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error};

/// Steps of the interpreter: a real template needs some hundreds for each message.
const FUEL: u64 = 2_000_000;

/// An environment whose `strftime_now` gives `date`.
///
/// # Errors
/// None for this syntax.
pub(super) fn environment<'s>(date: Date) -> Result<Environment<'s>, Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, _, value| out.write_str(&python::string(value)?).map_err(Error::from));
    environment.add_function("raise_exception", |text: String| -> Result<String, Error> { Err(python::invalid(text)) });
    environment.add_function("strftime_now", move |format: &str| {
        date.format(format).ok_or_else(|| python::invalid(format!("strftime_now does not know the format {format:?}")))
    });
    filters::add(&mut environment);
    environment.add_filter(ANSWER_MARKS, |text: String| format!("{}{text}{}", MARKS[0], MARKS[1]));
    Ok(environment)
}

/// The filter that puts marks around an answer.
pub(super) const ANSWER_MARKS: &str = "answer_marks";
