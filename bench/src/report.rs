//! What a suite found: for people as a table or Markdown, for programs as JSON.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use crate::{machine::Machine, stats::Summary};

/// One figure of a report.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The figure: a median where it was measured repeatedly. `None` if there was nothing to measure.
    pub value: Option<f64>,
    /// Unit of value, min and max.
    pub unit: &'static str,
    /// Smallest of repeated measurements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest of repeated measurements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Measurements behind the figure.
    pub samples: usize,
    /// What the figure is to be seen beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
}

/// A limit or another figure, and the ratio to it.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// Name of the limit or the other figure.
    pub what: String,
    /// Figure divided by it.
    pub ratio: f64,
}

impl Figure {
    /// A figure of `samples` measurements.
    pub fn new(name: impl Into<String>, value: Option<f64>, unit: &'static str, samples: usize) -> Self {
        Self { name: name.into(), value, unit, min: None, max: None, samples, against: None }
    }

    /// Median and extremes of repeated measurements.
    pub fn summary(name: impl Into<String>, summary: Option<Summary>, unit: &'static str) -> Self {
        let samples = summary.map_or(0, |summary| summary.samples);
        Self {
            min: summary.map(|summary| summary.min),
            max: summary.map(|summary| summary.max),
            ..Self::new(name, summary.map(|summary| summary.median), unit, samples)
        }
    }

    /// The same beside a limit or another figure; a ratio that does not exist is left out.
    pub fn against(self, what: impl Into<String>, ratio: Option<f64>) -> Self {
        let against = ratio.filter(|ratio| ratio.is_finite());
        Self { against: against.map(|ratio| Against { what: what.into(), ratio }), ..self }
    }
}

/// A suite's report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the suite.
    pub suite: &'static str,
    /// Version of the package.
    pub version: &'static str,
    /// Day of the run (UTC).
    pub date: String,
    /// The command as given.
    pub command: String,
    /// What it ran on.
    pub machine: Machine,
    /// Every parameter, the defaults included.
    pub parameters: Value,
    /// What was found.
    pub figures: Vec<Figure>,
    /// Counts and sizes behind the figures.
    pub details: Value,
    /// What is best seen side by side. Its numbers are among the figures and the details.
    #[serde(skip)]
    pub tables: Vec<Table>,
}

/// Figures side by side.
#[derive(Clone, Debug)]
pub struct Table {
    /// What it shows: Markdown, one paragraph.
    pub title: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// Cells, as many a row as there are columns.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// As Markdown.
    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = vec!["---".to_owned(); self.head.len()];
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}\n\n{}{}{rows}\n", self.title, line(&self.head), line(&rule))
    }
}

impl Report {
    /// A report of this process, now.
    pub fn new(suite: &'static str, parameters: Value, figures: Vec<Figure>, details: Value) -> Self {
        let arguments = std::env::args().skip(1);
        Self {
            suite,
            version: env!("CARGO_PKG_VERSION"),
            date: time::OffsetDateTime::now_utc().date().to_string(),
            command: ["bench".to_owned()].into_iter().chain(arguments).collect::<Vec<_>>().join(" "),
            machine: Machine::here(),
            parameters,
            figures,
            details,
            tables: Vec::new(),
        }
    }

    fn machine_line(&self) -> String {
        let Machine { cpu, cores, isa, system, load } = &self.machine;
        let load = load.map_or(String::new(), |load| format!(", load {load:.1}"));
        format!("{cpu}, {cores} cores, {isa}, {system}{load}; {}; version {}", self.date, self.version)
    }

    /// The figures for a terminal.
    pub fn table(&self) -> String {
        let rows: Vec<[String; 4]> = self.figures.iter().map(cells).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        let mut out = format!("{}: {}\n\n", self.suite, self.machine_line());
        for [name, value, range, against] in &rows {
            let [a, b, c] = widths;
            let line = format!("{name:<a$}  {value:>b$}  {range:<c$}  {against}");
            let _ = writeln!(out, "{}", line.trim_end());
        }
        let errors = self.details.get("errors").and_then(Value::as_object);
        for (kind, count) in errors.into_iter().flatten() {
            let said = self.details["messages"][kind].as_str().unwrap_or_default();
            let _ = writeln!(out, "{count} x {kind}  {said}");
        }
        out
    }

    /// The report as a Markdown section.
    pub fn markdown(&self) -> String {
        let mut out = format!("## {}\n\n{}\n\n    {}\n\n", self.suite, self.machine_line(), self.command);
        out.push_str("| figure | value | range | beside |\n|---|---:|---|---|\n");
        for [name, value, range, against] in self.figures.iter().map(cells) {
            let _ = writeln!(out, "| {name} | {value} | {range} | {against} |");
        }
        let _ = writeln!(out, "\nParameters: `{}`\n", self.parameters);
        if self.tables.is_empty() {
            let _ = writeln!(out, "Details: `{}`\n", self.details);
        }
        self.tables.iter().for_each(|table| out.push_str(&table.markdown()));
        out
    }
}

fn cells(figure: &Figure) -> [String; 4] {
    let value = figure.value.map_or("-".to_owned(), number);
    let range = match (figure.min, figure.max) {
        (Some(min), Some(max)) => format!("{} to {} of {}", number(min), number(max), figure.samples),
        _ if figure.samples > 1 => format!("of {}", figure.samples),
        _ => String::new(),
    };
    let against = figure.against.as_ref().map_or(String::new(), |against| {
        let Against { what, ratio } = against;
        if *ratio <= 1.0 {
            format!("{:.1}% of {what}", ratio * 100.0)
        } else {
            format!("{ratio:.2} x {what}")
        }
    });
    [figure.name.clone(), format!("{value} {}", figure.unit).trim_end().to_owned(), range, against]
}

/// Three significant digits, whole numbers whole.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        x if x >= 100.0 || x.fract() == 0.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Report {
        let figures = vec![
            Figure::summary("decode", Summary::of(&[20.0, 21.5, 23.25]), "tokens/s")
                .against("read bandwidth", Some(0.4567)),
            Figure::new("latency", None, "ms", 0).against("nothing", Some(f64::NAN)),
        ];
        Report::new(
            "decode",
            json!({ "batch": 1 }),
            figures,
            json!({ "errors": { "http 429": 3 }, "messages": { "http 429": "busy" } }),
        )
    }

    #[test]
    fn tables_show_value_range_and_share() {
        let table = report().table();
        assert!(
            table.contains("decode   21.5 tokens/s  20 to 23.2 of 3  45.7% of read bandwidth"),
            "{table}"
        );
        assert!(table.contains("3 x http 429  busy"), "{table}");
    }

    #[test]
    fn every_form_says_machine_and_date() {
        let report = report();
        let json = serde_json::to_value(&report).expect("encodes");
        assert_eq!(json["figures"][1]["value"], Value::Null);
        assert_eq!(json["figures"][1].get("against"), None);
        for text in [report.table(), report.markdown()] {
            assert!(text.contains(&report.date) && text.contains(&report.machine.cpu));
        }
        assert_eq!(report.date.len(), "2026-01-01".len());
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (value, text) in
            [(0.0, "0"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234"), (8.0, "8")]
        {
            assert_eq!(number(value), text);
        }
    }
}
