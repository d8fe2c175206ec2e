//! The grammar as data: word tables and a graph of nodes without cycles.
//!
//! A derivation walks the graph from its start and makes one decision at every [`Node::Choice`] and [`Node::Pick`];
//! nothing else is random. The generator draws those decisions, the parser of the tests recovers them from the text, and both
//! compute their bits with [`surprisal`], so the probabilities are defined once.

/// Index of a node in [`Grammar::nodes`].
pub(super) type NodeId = usize;

/// Index of a variable in an [`Env`].
pub(super) type Slot = usize;

/// The row that each variable of the current story is bound to.
pub(super) type Env<'g> = Vec<Option<&'g Row>>;

/// One entry of a word table.
pub(super) struct Row {
    /// Weight of the entry relative to the others of its table.
    pub(super) weight: u32,
    /// The entry's forms, by [`Form::column`] and [`Form::capital`]; empty for a column that its table lacks.
    pub(super) cells: Vec<[String; 2]>,
}

/// Which text of a [`Row`] is written: a column, as it stands or with a capital first letter.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) column: usize,
    pub(super) capital: bool,
}

impl Row {
    /// The row's text in `form`; empty if its table has no such column.
    pub(super) fn text(&self, form: Form) -> &str {
        self.cells.get(form.column).map_or("", |cell| &cell[usize::from(form.capital)])
    }

    /// Sets the text of a column, and its capitalised twin.
    pub(super) fn set(&mut self, column: usize, text: &str) {
        let mut chars = text.chars();
        let capital =
            chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str());
        self.cells.resize(self.cells.len().max(column + 1), [String::new(), String::new()]);
        self.cells[column] = [text.to_owned(), capital];
    }
}

/// A named list of alternative words or phrases.
pub(super) struct Table {
    pub(super) name: String,
    pub(super) rows: Vec<Row>,
    /// Sum of the rows' weights.
    pub(super) total: u32,
}

/// Where a [`Pick`] takes its rows from.
pub(super) enum RowSource {
    /// A table, by its index; rows are drawn by weight.
    Table(usize),
    /// What these variables are bound to (different rows), each as likely as the others.
    Bound(Vec<Slot>),
}

impl RowSource {
    /// The total weight where it is known beforehand: most picks are from a whole table.
    fn total(&self, grammar: &Grammar) -> Option<u32> {
        match self {
            Self::Table(table) => Some(grammar.tables[*table].total),
            Self::Bound(_) => None,
        }
    }
}

/// Writes a random row that differs from the rows of the `unlike` variables, and may bind it to a variable.
pub(super) struct Pick {
    pub(super) source: RowSource,
    pub(super) form: Form,
    pub(super) bind: Option<Slot>,
    pub(super) unlike: Vec<Slot>,
}

impl Pick {
    /// The rows that may be picked in `env` with their weights, in a fixed order, and the total weight.
    pub(super) fn candidates<'g>(
        &self,
        grammar: &'g Grammar,
        env: &Env<'g>,
    ) -> (impl Iterator<Item = (u32, &'g Row)> + use<'g>, u32) {
        let (table, bound): (&[Row], Vec<&Row>) = match &self.source {
            RowSource::Table(table) => (&grammar.tables[*table].rows, Vec::new()),
            RowSource::Bound(slots) => (&[], slots.iter().filter_map(|&slot| env[slot]).collect()),
        };
        let taken: Vec<&Row> = self.unlike.iter().filter_map(|&slot| env[slot]).collect();
        let whole = if taken.is_empty() { self.source.total(grammar) } else { None };
        let rows = table.iter().map(|row| (row.weight, row)).chain(bound.into_iter().map(|row| (1, row)));
        // By address: two entries of a table may have the same text and are two rows all the same.
        let rows = rows.filter(move |(_, row)| !taken.iter().any(|other| std::ptr::eq(*other, *row)));
        let total = whole.unwrap_or_else(|| rows.clone().map(|(weight, _)| weight).sum());
        (rows, total)
    }
}

/// A node of the grammar graph.
pub(super) enum Node {
    Text(String),
    /// The parts, one after the other.
    Seq(Vec<NodeId>),
    /// One of the weighted alternatives.
    Choice {
        alternatives: Vec<(u32, NodeId)>,
        total: u32,
    },
    /// A word from a list.
    Pick(Pick),
    /// A form of the row that a variable is bound to. It carries no new information; it makes a story coherent.
    Use {
        slot: Slot,
        form: Form,
    },
}

pub(super) struct Grammar {
    pub(super) tables: Vec<Table>,
    /// Names of the columns of all tables: 0 (no name) is the entry itself, 1 (`a`) the entry with its article.
    pub(super) columns: Vec<String>,
    pub(super) nodes: Vec<Node>,
    pub(super) start: NodeId,
    /// Names of the variables; an [`Env`] has this length.
    pub(super) slots: Vec<String>,
}

impl Grammar {
    /// An environment in which nothing is bound.
    pub(super) fn empty_env(&self) -> Env<'_> {
        vec![None; self.slots.len()]
    }
}

/// Bits of information in a decision of weight `weight` out of `total`.
pub(super) fn surprisal(weight: u32, total: u32) -> f64 {
    (f64::from(total) / f64::from(weight)).log2()
}
