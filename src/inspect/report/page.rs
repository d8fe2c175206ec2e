//! The page: one file that loads nothing else.

use super::RunReport;
use crate::metrics::fixed;
use anyhow::Result;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The browser may load nothing, whatever the texts in the page ask for.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// The report as HTML. With `refresh`, a browser loads it again every so many seconds.
///
/// # Errors
/// None that data of a run can cause.
pub fn page(report: &RunReport, refresh: Option<u64>) -> Result<String> {
    let names: Vec<&str> = report.runs.iter().map(|run| run.name.as_str()).collect();
    let title = escaped(&names.join(", "));
    let again = refresh.map_or_else(String::new, |s| format!("<meta http-equiv=\"refresh\" content=\"{s}\">\n"));
    let states: Vec<String> = report.runs.iter().map(|run| escaped(&state(run))).collect();
    let data = report.to_json()?;
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n{again}\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>{title}</h1>\n<p>{}</p>\n\
         <div class=\"bar\"><label>against <select id=\"x\"><option value=\"tokens\">tokens</option><option value=\"step\">steps</option></select></label>\n\
         <button id=\"theme\" type=\"button\">light / dark</button>\n\
         <span class=\"dim\">dotted marks: events; arrow keys move within a chart</span></div>\n</header>\n<main>\n\
         <section aria-label=\"Curves\"><div id=\"charts\" class=\"charts\"></div></section>\n\
         <section id=\"layers\" hidden><h2>Layers</h2></section>\n\
         <section id=\"times\" hidden><h2>Where the time went</h2></section>\n\
         <section id=\"evaluations\" hidden><h2>Evaluation</h2>\n\
         <div class=\"bar\"><label>against <select id=\"scores\"><option value=\"\">the same as above</option><option value=\"val\">validation loss</option></select></label></div>\n<div id=\"eval-charts\" class=\"charts\"></div></section>\n\
         <section id=\"samples\" hidden><h2>Samples</h2></section>\n\
         <section id=\"events\"><h2>Events</h2></section>\n\
         <section id=\"differences\" hidden><h2>Differences in configuration</h2></section>\n\
         <section id=\"builds\"><h2>Machine and build</h2></section>\n\
         <section id=\"configs\"><h2>Configuration</h2></section>\n</main>\n\
         <noscript>This page draws its charts with a script of its own; terminal form: llama-lite report --text RUN_DIR.</noscript>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        states.join("<br>")
    ))
}

/// Where a run stands, in a line.
pub(super) fn state(run: &super::collect::ReportedRun) -> String {
    let steps = run.config.get("train.steps").map_or_else(String::new, |steps| format!(" of {steps}"));
    let ended = if run.finished { ", finished" } else { "" };
    let val = run.val.last().map_or_else(String::new, |v| {
        let bits = v.record.bits_per_byte;
        let bits = if bits.is_finite() { format!(" ({} bits per byte)", fixed(bits, 4)) } else { String::new() };
        format!(" · validation loss {}{bits} at step {}", fixed(v.record.loss, 4), v.record.step)
    });
    format!("{}: step {}{steps}{ended}{val}", run.name, run.step)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
