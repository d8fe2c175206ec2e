//! Results in the shape of the lm-evaluation-harness: what reads its files reads ours.

use super::benchmark::{Metric, Prepared, TaskResult, Truncated};
use super::statistics::pooled_error;
use super::tasks::GROUPS;
use crate::metrics::fixed;
use serde_json::{Map, Value, json};

/// A task or group with its metrics, as a table shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub name: String,
    pub shots: usize,
    pub documents: usize,
    /// What the model did not see of them.
    pub truncated: Truncated,
    pub metrics: Vec<Metric>,
}

impl Line {
    fn new(task: &Prepared, result: &TaskResult) -> Self {
        Self {
            name: task.task.name.clone(),
            shots: task.shots,
            documents: task.documents(),
            truncated: task.truncated(),
            metrics: result.metrics.clone(),
        }
    }
}

/// One line for each task, then one for each group that is there as a whole.
pub fn lines(tasks: &[Prepared], results: &[TaskResult]) -> Vec<Line> {
    let mut lines: Vec<Line> = tasks.iter().zip(results).map(|(task, result)| Line::new(task, result)).collect();
    let groups: Vec<Line> = groups(&lines);
    lines.extend(groups);
    lines
}

/// Micro averages of MMLU's groups, and of all of it, of which every subject was evaluated.
fn groups(lines: &[Line]) -> Vec<Line> {
    let everything: Vec<&str> = GROUPS.iter().flat_map(|(_, members)| members.iter().copied()).collect();
    let all = group(lines, "mmlu".into(), &everything);
    let each = GROUPS.iter().filter_map(|(name, members)| group(lines, format!("mmlu_{name}"), members));
    all.into_iter().chain(each).collect()
}

/// The micro average of the subjects `members`; none if one of them was not evaluated.
fn group(lines: &[Line], name: String, members: &[&str]) -> Option<Line> {
    let parts: Option<Vec<&Line>> = members
        .iter()
        .map(|member| lines.iter().find(|line| line.name.strip_prefix("mmlu_") == Some(*member)))
        .collect();
    let parts = parts?;
    let documents: usize = parts.iter().map(|part| part.documents).sum();
    let sum: f64 = parts.iter().map(|part| part.metrics[0].value * part.documents as f64).sum();
    let errors: Option<Vec<(f64, usize)>> =
        parts.iter().map(|part| Some((part.metrics[0].stderr?, part.documents))).collect();
    let stderr = errors.map(|errors| pooled_error(&errors));
    let metrics = vec![Metric { name: "acc", value: sum / documents as f64, stderr }];
    let truncated = Truncated {
        documents: parts.iter().map(|part| part.truncated.documents).sum(),
        tokens: parts.iter().map(|part| part.truncated.tokens).sum(),
    };
    Some(Line { name, shots: parts[0].shots, documents, truncated, metrics })
}

/// The results file; `config` is kept in it as it is.
pub fn harness_json(tasks: &[Prepared], results: &[TaskResult], config: Value, with_samples: bool) -> Value {
    let lines = lines(tasks, results);
    let mut all = Map::new();
    let mut groups = Map::new();
    let mut shots = Map::new();
    let mut counts = Map::new();
    let mut truncated = Map::new();
    for line in &lines {
        let values = metrics_json(line);
        shots.insert(line.name.clone(), line.shots.into());
        let Truncated { documents, tokens } = line.truncated;
        truncated.insert(line.name.clone(), json!({"documents": documents, "tokens": tokens}));
        match tasks.iter().find(|task| task.task.name == line.name) {
            Some(task) => {
                let n = json!({"original": task.all_documents, "effective": line.documents});
                counts.insert(line.name.clone(), n);
            }
            None => drop(groups.insert(line.name.clone(), values.clone())),
        }
        all.insert(line.name.clone(), values);
    }
    let mut report = json!({"results": all, "groups": groups, "n-shot": shots, "n-samples": counts, "n-truncated": truncated, "config": config});
    if with_samples {
        let samples = tasks.iter().zip(results).map(|(task, result)| (task.task.name.clone(), samples_json(result)));
        report["samples"] = Value::Object(samples.collect());
    }
    report
}

fn metrics_json(line: &Line) -> Value {
    let mut values = Map::new();
    values.insert("alias".into(), line.name.clone().into());
    for Metric { name, value, stderr } in &line.metrics {
        values.insert(format!("{name},none"), json!(value));
        values.insert(format!("{name}_stderr,none"), stderr.map_or_else(|| "N/A".into(), |error| json!(error)));
    }
    values.insert("sample_len".into(), line.documents.into());
    Value::Object(values)
}

fn samples_json(result: &TaskResult) -> Value {
    let mut samples = Vec::with_capacity(result.samples.len());
    for (i, sample) in result.samples.iter().enumerate() {
        let mut value = json!({"doc_id": i, "ll": sample.log_likelihoods, "target": sample.target});
        if sample.cut > 0 {
            value["truncated_tokens"] = sample.cut.into();
        }
        samples.push(value);
    }
    samples.into()
}

/// The table for people: one row per task and metric, and how many documents were not seen whole, if any.
pub fn table(lines: &[Line]) -> String {
    let mut header: Vec<String> = ["task", "shots", "documents", "metric", "value", "±"].map(str::to_owned).into();
    let with_truncated = lines.iter().any(|line| line.truncated.documents > 0);
    header.extend(with_truncated.then(|| "truncated".to_owned()));
    let mut rows = vec![header];
    for line in lines {
        for (i, metric) in line.metrics.iter().enumerate() {
            let mut row = vec![
                line.name.clone(),
                line.shots.to_string(),
                line.documents.to_string(),
                metric.name.to_owned(),
                fixed(metric.value, 4),
                metric.stderr.map_or_else(String::new, |error| fixed(error, 4)),
            ];
            row.extend(with_truncated.then(|| line.truncated.documents.to_string()));
            // What is the same for all metrics of a task stands in its first row only.
            if i > 0 {
                for column in [0, 1, 2, 6] {
                    row.get_mut(column).into_iter().for_each(String::clear);
                }
            }
            rows.push(row);
        }
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match i {
            0 | 3 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Subjects of unequal size, each with its own share of right answers.
    fn subjects() -> (Vec<Line>, Vec<(&'static str, f64, f64)>) {
        let (mut lines, mut counts) = (Vec::new(), Vec::new());
        for (i, subject) in GROUPS.iter().flat_map(|(_, members)| members.iter()).enumerate() {
            let documents = 3 + 17 * i % 101;
            let right = (7 * i) % (documents + 1);
            let value = right as f64 / documents as f64;
            let stderr = Some((value * (1.0 - value) / (documents as f64 - 1.0)).sqrt());
            let metrics = vec![Metric { name: "acc", value, stderr }];
            lines.push(Line {
                name: format!("mmlu_{subject}"),
                shots: 5,
                documents,
                truncated: Truncated::default(),
                metrics,
            });
            counts.push((*subject, documents as f64, right as f64));
        }
        (lines, counts)
    }

    #[test]
    fn groups_average_over_questions_and_not_over_subjects() {
        let (lines, counts) = subjects();
        let groups = groups(&lines);
        assert_eq!(groups.len(), 1 + GROUPS.len());
        let share = |members: &dyn Fn(&str) -> bool| {
            let own = || counts.iter().filter(|(subject, ..)| members(subject));
            (own().map(|(_, _, right)| right).sum::<f64>(), own().map(|(_, documents, _)| documents).sum::<f64>())
        };
        for group in &groups {
            let members =
                GROUPS.iter().find(|(name, _)| group.name == format!("mmlu_{name}")).map(|(_, members)| members);
            let (right, documents) = share(&|subject| members.is_none_or(|members| members.contains(&subject)));
            assert_eq!(group.documents as f64, documents, "{}", group.name);
            assert!((group.metrics[0].value - right / documents).abs() < 1e-12, "{}", group.name);
            // That of the mean over all questions: the subjects' squared deviations weigh by their questions, too.
            let error = group.metrics[0].stderr.unwrap();
            let one = (right / documents * (1.0 - right / documents) / documents).sqrt();
            assert!(error > 0.5 * one && error <= 1.01 * one, "{}: {error} {one}", group.name);
        }
    }

    #[test]
    fn a_group_that_lacks_a_subject_is_not_averaged() {
        let (mut lines, _) = subjects();
        lines.retain(|line| line.name != "mmlu_astronomy");
        let names: Vec<String> = groups(&lines).into_iter().map(|line| line.name).collect();
        assert_eq!(names.len(), GROUPS.len() - 1, "{names:?}");
        assert!(!names.contains(&"mmlu".to_owned()) && !names.contains(&"mmlu_stem".to_owned()));
    }
}
