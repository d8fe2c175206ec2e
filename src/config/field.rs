//! What one key is: its [`Spec`], the types a key can have, and the ranges it can be held to.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::choices::{Choice, NameOrPath};
use super::source::Raw;

/// The description of one key, as written in `schema.rs`.
pub(super) struct Spec<T> {
    /// `section.key`.
    pub(super) key: &'static str,
    pub(super) doc: &'static str,
    pub(super) default: Default<T>,
    pub(super) check: Check,
}

impl<T: Field> Spec<T> {
    /// What a value must satisfy: `check`, or the names of a type that has names.
    pub(super) fn allowed(&self) -> Check {
        if T::CHOICES.is_empty() { self.check } else { Check::Choice(T::CHOICES) }
    }
}

/// The value of a key that is not given.
pub(super) enum Default<T> {
    /// There is none: the key must be given.
    Required,
    Value(T),
    /// One that follows from other keys, in words; `resolve.rs` computes it.
    Derived(&'static str),
}

/// What a value must satisfy beyond its type. Bounds hold for each number of a list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Check {
    Any,
    /// `a <= x`
    AtLeast(f64),
    /// `a <= x <= b`
    Within(f64, f64),
    /// `a < x <= b`
    LeftOpen(f64, f64),
    /// `a <= x < b`
    RightOpen(f64, f64),
    /// One of these names; follows from the type of the key.
    Choice(&'static [&'static str]),
}

impl Check {
    /// Whether `value` satisfies it. Values of another kind than it speaks of are the type's business.
    pub(super) fn accepts(self, value: &Raw) -> bool {
        let number = match value {
            Raw::Integer(integer) => *integer as f64,
            Raw::Float(number) => *number,
            Raw::List(items) => return items.iter().all(|item| self.accepts(item)),
            Raw::Table(entries) => return entries.iter().all(|(_, _, item)| self.accepts(item)),
            Raw::String(text) => {
                return if let Check::Choice(words) = self { words.contains(&text.as_str()) } else { true };
            }
            _ => return true,
        };
        match self {
            Check::Any | Check::Choice(_) => true,
            Check::AtLeast(low) => low <= number,
            Check::Within(low, high) => low <= number && number <= high,
            Check::LeftOpen(low, high) => low < number && number <= high,
            Check::RightOpen(low, high) => low <= number && number < high,
        }
    }

    /// The allowed values in words; empty if all are.
    pub(super) fn describe(self) -> String {
        match self {
            Check::Any => String::new(),
            Check::AtLeast(low) => format!("at least {low}"),
            Check::Within(low, high) => format!("{low} to {high}"),
            Check::LeftOpen(low, high) => format!("above {low}, at most {high}"),
            Check::RightOpen(low, high) => format!("at least {low} and below {high}"),
            Check::Choice(words) => words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", "),
        }
    }
}

/// The types of keys with names below them: `section.key.NAME = value`.
pub(super) const TABLES: [&str; 2] = [TABLE, SETTINGS];

const TABLE: &str = "table of strings";

/// The type of keys with settings of several types below them.
pub(super) const SETTINGS: &str = "table";

/// A type a key can have. Reading never converts: "False" is no boolean and 1e3 no integer; only an integer is also a
/// number, because it stands for exactly that number.
pub(super) trait Field: std::default::Default + Clone + Debug {
    /// How messages and the reference call the type.
    const TYPE: &'static str;
    /// The names that a value, or each value of a list or table, can be; empty if it is not chosen by name.
    const CHOICES: &'static [&'static str] = &[];

    /// The value, if it is of this type and, where there are names, one of them.
    fn read(value: &Raw) -> Option<Self>;

    /// Whether `value` is of this type, also if it is none of the names.
    fn has_type(value: &Raw) -> bool {
        Self::read(value).is_some()
    }

    /// What is wrong with `value`, and what to do about it, where that is more than its type or range.
    fn problem(value: &Raw) -> Option<(String, String)> {
        let _ = value;
        None
    }

    /// The value as TOML; `None` if it is absent.
    fn write(&self) -> Option<String>;
}

impl Field for bool {
    const TYPE: &'static str = "boolean";

    fn read(value: &Raw) -> Option<Self> {
        if let Raw::Bool(truth) = value { Some(*truth) } else { None }
    }

    fn write(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// Counts and seeds: integers that are not negative.
macro_rules! count {
    ($ty:ty) => {
        impl Field for $ty {
            const TYPE: &'static str = "integer";

            fn read(value: &Raw) -> Option<Self> {
                if let Raw::Integer(integer) = value { Self::try_from(*integer).ok() } else { None }
            }

            fn write(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    };
}
count!(u64);
count!(usize);

impl Field for f64 {
    const TYPE: &'static str = "number";

    fn read(value: &Raw) -> Option<Self> {
        /// Below this, every integer is exactly one f64.
        const EXACT: u64 = 1 << 53;
        match value {
            Raw::Float(number) if number.is_finite() => Some(*number),
            Raw::Integer(integer) if integer.unsigned_abs() <= EXACT => Some(*integer as f64),
            _ => None,
        }
    }

    fn write(&self) -> Option<String> {
        // The shortest text that reads back to the same bits, with a point or an exponent, as TOML asks.
        Some(format!("{self:?}"))
    }
}

impl Field for [f64; 2] {
    const TYPE: &'static str = "list of 2 numbers";

    fn read(value: &Raw) -> Option<Self> {
        if let Raw::List(items) = value { <[_; 2]>::try_from(list(items)?).ok() } else { None }
    }

    fn write(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }
}

impl Field for String {
    const TYPE: &'static str = "string";

    fn read(value: &Raw) -> Option<Self> {
        if let Raw::String(text) = value { Some(text.clone()) } else { None }
    }

    fn write(&self) -> Option<String> {
        Some(toml::Value::String(self.clone()).to_string())
    }
}

impl<T: Choice> Field for T {
    const TYPE: &'static str = "string";
    const CHOICES: &'static [&'static str] = T::NAMES;

    fn read(value: &Raw) -> Option<Self> {
        if let Raw::String(text) = value { T::from_name(text) } else { None }
    }

    fn has_type(value: &Raw) -> bool {
        matches!(value, Raw::String(_))
    }

    fn write(&self) -> Option<String> {
        Some(format!("{:?}", self.name()))
    }
}

impl<T: Choice> Field for NameOrPath<T> {
    const TYPE: &'static str = String::TYPE;

    fn read(value: &Raw) -> Option<Self> {
        Some(Self::from(String::read(value)?.as_str()))
    }

    fn write(&self) -> Option<String> {
        self.as_str().to_owned().write()
    }
}

impl Field for Vec<f64> {
    const TYPE: &'static str = "list of numbers";

    fn read(value: &Raw) -> Option<Self> {
        if let Raw::List(items) = value { list(items) } else { None }
    }

    fn write(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }
}

impl Field for Vec<usize> {
    const TYPE: &'static str = "list of integers";

    fn read(value: &Raw) -> Option<Self> {
        if let Raw::List(items) = value { list(items) } else { None }
    }

    fn write(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }
}

impl Field for Vec<String> {
    const TYPE: &'static str = "list of strings";

    fn read(value: &Raw) -> Option<Self> {
        if let Raw::List(items) = value { list(items) } else { None }
    }

    fn write(&self) -> Option<String> {
        let items: Vec<_> = self.iter().filter_map(Field::write).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

impl<T: Choice> Field for Vec<T> {
    const TYPE: &'static str = Vec::<String>::TYPE;
    const CHOICES: &'static [&'static str] = T::NAMES;

    fn read(value: &Raw) -> Option<Self> {
        if let Raw::List(items) = value { list(items) } else { None }
    }

    fn has_type(value: &Raw) -> bool {
        Vec::<String>::has_type(value)
    }

    fn write(&self) -> Option<String> {
        self.iter().map(|item| item.name().to_owned()).collect::<Vec<String>>().write()
    }
}

impl<T: Choice> Field for BTreeMap<String, T> {
    const TYPE: &'static str = TABLE;
    const CHOICES: &'static [&'static str] = T::NAMES;

    fn read(value: &Raw) -> Option<Self> {
        let Raw::Table(entries) = value else { return None };
        entries.iter().map(|(name, _, value)| Some((name.clone(), T::read(value)?))).collect()
    }

    fn has_type(value: &Raw) -> bool {
        matches!(value, Raw::Table(entries) if entries.iter().all(|(_, _, value)| T::has_type(value)))
    }

    fn write(&self) -> Option<String> {
        let table = self.iter().map(|(name, value)| (name.clone(), toml::Value::String(value.name().to_owned())));
        Some(toml::Value::Table(table.collect()).to_string())
    }
}

impl<T: Field> Field for Option<T> {
    const TYPE: &'static str = T::TYPE;
    const CHOICES: &'static [&'static str] = T::CHOICES;

    fn read(value: &Raw) -> Option<Self> {
        T::read(value).map(Some)
    }

    fn has_type(value: &Raw) -> bool {
        T::has_type(value)
    }

    fn problem(value: &Raw) -> Option<(String, String)> {
        T::problem(value)
    }

    fn write(&self) -> Option<String> {
        self.as_ref()?.write()
    }
}

fn list<T: Field>(items: &[Raw]) -> Option<Vec<T>> {
    items.iter().map(T::read).collect()
}

/// What visits all keys of the schema: the reader of values, and the list of the reference.
pub(super) trait Visitor {
    /// Visits one key and gives its value.
    fn field<T: Field>(&mut self, spec: Spec<T>) -> T;

    fn section<S: Section>(&mut self) -> S {
        S::visit(self)
    }
}

/// One `[section]` of the file.
pub(super) trait Section: Sized {
    /// Its name in the file.
    const NAME: &'static str;
    /// Its doc comment.
    const ABOUT: &'static str;

    /// Builds it by visiting its keys in order.
    fn visit<V: Visitor + ?Sized>(visitor: &mut V) -> Self;

    /// Calls `each` with every key and its value as TOML (`None` if absent), in order.
    fn write(&self, each: &mut dyn FnMut(&'static str, Option<String>));
}
