//! The examples before a question, drawn as the harness draws them: one stream of Python's random numbers per task, consumed in the
//! order of the evaluated documents.

use super::dataset::Library;
use super::python::Random;
use super::tasks::{Shots, Task};
use crate::runtime::error::{Exit, fail};
use anyhow::Result;
use serde_json::Value;

const SEED: u32 = 1234;

/// Draws the examples of a task.
pub struct Drawer {
    random: Random,
    pool: Vec<Value>,
    shots: usize,
    rule: Shots,
}

impl Drawer {
    /// For `shots` examples before each document; as many as were really taken is [`Drawer::shots`].
    ///
    /// # Errors
    /// Those of reading the pool; [`Exit::Config`] if it has not enough rows.
    pub fn new(task: &Task, shots: usize, library: &Library) -> Result<Self> {
        let split = match task.shots {
            Shots::Drawn(split) | Shots::DrawnWithout(split) | Shots::First(split) => Some(split),
            Shots::Never => None,
        };
        let shots = if split.is_none() { 0 } else { shots };
        let pool = match split {
            Some(split) if shots > 0 => library.rows(task, split)?,
            _ => Vec::new(),
        };
        if pool.len() < shots {
            let message = format!("{}: {shots} examples are wanted, there are {}", task.name, pool.len());
            return Err(fail(Exit::Config, message).hint("lower --num-fewshot").into());
        }
        Ok(Self { random: Random::new(SEED), pool, shots, rule: task.shots })
    }

    pub fn shots(&self) -> usize {
        self.shots
    }

    /// The examples before `document`.
    pub fn draw(&mut self, document: &Value) -> Vec<&Value> {
        let n = self.shots;
        let size = self.pool.len();
        if n == 0 {
            return Vec::new();
        }
        let pool = &self.pool;
        match self.rule {
            Shots::First(_) => pool.iter().take(n).collect(),
            Shots::DrawnWithout(_) => {
                // One more, because the document itself may be among them.
                let drawn = self.random.sample(size, n + 1);
                let others: Vec<&Value> =
                    drawn.iter().map(|&i| &pool[i]).filter(|row| *row != document).take(n).collect();
                if others.len() == n {
                    return others;
                }
                // Too few are left: several rows equal the document, or the pool has only `n` rows.
                let rest: Vec<&Value> = pool.iter().filter(|row| *row != document).collect();
                self.random.sample(rest.len(), n).iter().map(|&i| rest[i]).collect()
            }
            Shots::Drawn(_) | Shots::Never => self.random.sample(size, n).iter().map(|&i| &pool[i]).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn drawer(rule: Shots, size: usize, shots: usize) -> Drawer {
        Drawer { random: Random::new(SEED), pool: (0..size).map(|i| json!(i)).collect(), shots, rule }
    }

    fn draw(drawer: &mut Drawer, document: u64) -> Vec<u64> {
        drawer.draw(&json!(document)).iter().map(|row| row.as_u64().unwrap()).collect()
    }

    #[test]
    fn draws_follow_one_stream() {
        let mut plain = drawer(Shots::Drawn("train"), 10, 5);
        assert_eq!(draw(&mut plain, 0), [7, 1, 0, 9, 4], "the document itself is not left out");
        assert_eq!(draw(&mut plain, 0), [0, 1, 8, 6, 2]);
        // sample(60, 6) is 49 28 7 0 5 51.
        assert_eq!(draw(&mut drawer(Shots::DrawnWithout("train"), 60, 5), 99), [49, 28, 7, 0, 5]);
        assert_eq!(draw(&mut drawer(Shots::DrawnWithout("train"), 60, 5), 7), [49, 28, 0, 5, 51]);
        let mut first = drawer(Shots::First("dev"), 5, 3);
        assert_eq!((draw(&mut first, 1), draw(&mut first, 1)), (vec![0, 1, 2], vec![0, 1, 2]));
    }
}
