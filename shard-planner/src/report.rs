//! A plan for people and programs: names instead of indices, a table, a picture.

use std::{fmt, fmt::Write};

use serde::{Deserialize, Serialize};

use crate::{
    cluster::Cluster,
    plan::{Bottleneck, Bound, Figures, Pipeline, Plan, Proof},
    shortage::KvShortage,
};

/// A plan with the names of its nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Model.
    pub model: String,
    /// Format of the weights.
    pub format: String,
    /// Layers of the model.
    pub layers: usize,
    /// Pipelines.
    pub pipelines: Vec<PipelineReport>,
    /// Seconds to the first token, over all.
    pub ttft_s: f64,
    /// Seconds per further token.
    pub tpot_s: f64,
    /// Tokens per second of all replies.
    pub tokens_per_s: f64,
    /// Most tokens per second that the placement lets through.
    pub flow_tokens_per_s: f64,
    /// Price of an hour.
    pub price: f64,
    /// What limits it.
    pub bottleneck: String,
    /// How far it can be from the best.
    pub bound: Bound,
    /// Most that another plan could be better, as a part: 0 for an optimal one.
    pub gap: f64,
    /// Nodes that no pipeline uses.
    pub unused: Vec<String>,
    /// KV that is missing for as many sessions as were asked for.
    #[serde(default)]
    pub shortage: Option<KvShortage>,
}

/// A pipeline with the names of its nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipelineReport {
    /// Stages in order.
    pub stages: Vec<StageReport>,
    /// Part of the requests.
    pub weight: f64,
    /// Most sessions at once.
    pub sessions: u64,
    /// Seconds to the first token.
    pub ttft_s: f64,
    /// Seconds per further token.
    pub tpot_s: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Replies of a step.
    pub batch: f64,
    /// What limits it.
    pub bottleneck: String,
}

/// A stage with its node's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Name of the node.
    pub node: String,
    /// First layer.
    pub from: usize,
    /// Layer after the last.
    pub to: usize,
    /// It is what limits the pipeline.
    pub bottleneck: bool,
    /// The link to the next stage, if there is one.
    pub link: Option<LinkReport>,
}

/// A link between two stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Milliseconds one way.
    pub latency_ms: f64,
    /// Megabits per second.
    pub mbit: f64,
    /// Its latency was not measured.
    pub estimated: bool,
    /// Its bandwidth was not measured.
    pub mbit_estimated: bool,
    /// It goes through a relay.
    pub relayed: bool,
    /// It is what limits the pipeline.
    pub bottleneck: bool,
}

impl Report {
    /// A plan in names.
    pub fn new(model: &str, cluster: &Cluster, plan: &Plan) -> Self {
        let name = |node: usize| cluster.nodes()[node].id.clone();
        let used = |node: &usize| plan.held.iter().any(|stage| stage.node == *node);
        let Figures { ttft_s, tpot_s, tokens_per_s, bottleneck, .. } = plan.figures;
        Self {
            model: model.to_owned(),
            format: plan.format.clone(),
            layers: plan.layers,
            pipelines: plan.pipelines.iter().map(|pipeline| PipelineReport::new(cluster, pipeline)).collect(),
            ttft_s,
            tpot_s,
            tokens_per_s,
            flow_tokens_per_s: plan.flow_tokens_per_s,
            price: plan.price,
            bottleneck: what(cluster, bottleneck),
            gap: plan.bound.gap(),
            bound: plan.bound.clone(),
            unused: (0..cluster.len()).filter(|node| !used(node)).map(name).collect(),
            shortage: plan.shortage.clone(),
        }
    }

    /// The pipelines as an SVG picture: a box for each stage, as wide as its layers are many, a line for each
    /// link, dashed where it was estimated; what limits a pipeline is red.
    pub fn svg(&self) -> String {
        const WIDTH: f64 = 960.0;
        const ROW: f64 = 96.0;
        let height = 60.0 + ROW * self.pipelines.len() as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"20\" y=\"28\" font-size=\"15\">{} {}: {:.1} tokens/s, {:.0} ms per token, limited by {}</text>\n",
            escape(&self.model),
            escape(&self.format),
            self.tokens_per_s,
            self.tpot_s * 1e3,
            escape(&self.bottleneck)
        );
        for (row, pipeline) in self.pipelines.iter().enumerate() {
            pipeline.draw(&mut svg, 50.0 + ROW * row as f64, WIDTH, self.layers);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

impl PipelineReport {
    fn new(cluster: &Cluster, pipeline: &Pipeline) -> Self {
        let Figures { ttft_s, tpot_s, tokens_per_s, batch, bottleneck } = pipeline.figures;
        let stages = pipeline.stages.iter().enumerate().map(|(at, stage)| {
            let link = pipeline.stages.get(at + 1).map(|next| {
                let hop = cluster.hop(stage.node, next.node);
                LinkReport {
                    latency_ms: hop.latency_s * 1e3,
                    mbit: hop.rate / 125_000.0,
                    estimated: hop.estimated,
                    mbit_estimated: hop.rate_estimated,
                    relayed: hop.relayed,
                    bottleneck: bottleneck == Bottleneck::Link { from: stage.node, to: next.node }
                        || (hop.relayed && bottleneck == Bottleneck::Relay),
                }
            });
            StageReport {
                node: cluster.nodes()[stage.node].id.clone(),
                from: stage.layers.start,
                to: stage.layers.end,
                bottleneck: bottleneck == Bottleneck::Node(stage.node),
                link,
            }
        });
        Self {
            stages: stages.collect(),
            weight: pipeline.weight,
            sessions: pipeline.sessions,
            ttft_s,
            tpot_s,
            tokens_per_s,
            batch,
            bottleneck: what(cluster, bottleneck),
        }
    }

    fn draw(&self, svg: &mut String, top: f64, width: f64, layers: usize) {
        const GAP: f64 = 14.0;
        let room = width - 40.0 - GAP * (self.stages.len() as f64 - 1.0);
        let mut x = 20.0;
        let y = top + 26.0;
        let share = self.weight * 100.0;
        // Writing to a String does not fail.
        let _ = writeln!(
            svg,
            "<text x=\"20\" y=\"{:.0}\">{share:.0} % of requests: {:.1} tokens/s, {:.0} ms per token, {} sessions</text>",
            top + 16.0,
            self.tokens_per_s,
            self.tpot_s * 1e3,
            self.sessions
        );
        for stage in &self.stages {
            let wide = room * (stage.to - stage.from) as f64 / layers.max(1) as f64;
            let fill = if stage.bottleneck { "#f4b6b0" } else { "#cfe2f3" };
            let stroke = if stage.bottleneck { "#c0392b" } else { "#5b7fa3" };
            let (name, span) = (escape(&stage.node), format!("{}..{}", stage.from, stage.to));
            let _ = writeln!(
                svg,
                "<g><title>{name}: layers {span}</title><rect x=\"{x:.1}\" y=\"{y:.0}\" width=\"{wide:.1}\" height=\"44\" rx=\"3\" fill=\"{fill}\" stroke=\"{stroke}\"/>"
            );
            // About seven units for a letter.
            let letters = (wide / 7.0) as usize;
            if letters > 2 {
                let short: String = stage.node.chars().take(letters).collect();
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
                    x + wide / 2.0,
                    y + 19.0,
                    escape(&short)
                );
            }
            if letters >= span.len() {
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#555\">{span}</text>",
                    x + wide / 2.0,
                    y + 36.0
                );
            }
            svg.push_str("</g>\n");
            if let Some(link) = &stage.link {
                let colour = if link.bottleneck { "#c0392b" } else { "#555" };
                let dashes =
                    if link.estimated || link.mbit_estimated { " stroke-dasharray=\"3 2\"" } else { "" };
                let _ = writeln!(
                    svg,
                    "<line x1=\"{:.1}\" y1=\"{:.0}\" x2=\"{:.1}\" y2=\"{:.0}\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}><title>{link}</title></line>",
                    x + wide,
                    y + 22.0,
                    x + wide + GAP,
                    y + 22.0
                );
            }
            x += wide + GAP;
        }
    }
}

fn what(cluster: &Cluster, bottleneck: Bottleneck) -> String {
    let name = |node: usize| &cluster.nodes()[node].id;
    match bottleneck {
        Bottleneck::Node(node) => name(node).clone(),
        Bottleneck::Link { from, to } => format!("the link from {} to {}", name(from), name(to)),
        Bottleneck::Relay => "the relay".to_owned(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl fmt::Display for LinkReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |guessed: bool| if guessed { " (estimated)" } else { "" };
        // One word for both.
        let latency = if self.estimated && self.mbit_estimated { "" } else { mark(self.estimated) };
        let digits = usize::from(self.mbit < 10.0);
        write!(
            out,
            "{:.1} ms{latency}, {:.digits$} Mbit/s{}",
            self.latency_ms,
            self.mbit,
            mark(self.mbit_estimated)
        )?;
        out.write_str(if self.relayed { " by relay" } else { "" })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} at {}, {} layers", self.model, self.format, self.layers)?;
        for (index, pipeline) in self.pipelines.iter().enumerate() {
            writeln!(
                out,
                "\npipeline {}: {:.0} % of requests, {:.1} tokens/s, {:.1} ms per token, {:.2} s to the first, {} sessions in steps of {:.0}",
                index + 1,
                pipeline.weight * 100.0,
                pipeline.tokens_per_s,
                pipeline.tpot_s * 1e3,
                pipeline.ttft_s,
                pipeline.sessions,
                pipeline.batch
            )?;
            let widest =
                pipeline.stages.iter().map(|stage| stage.node.chars().count()).max().unwrap_or(0).max(4);
            writeln!(out, "  {:widest$}  {:>9}  to the next", "node", "layers")?;
            for stage in &pipeline.stages {
                let span = format!("{}..{}", stage.from, stage.to);
                let mark = if stage.bottleneck { "  <- bottleneck" } else { "" };
                let link = stage.link.as_ref().map_or_else(String::new, |link| {
                    format!("{link}{}", if link.bottleneck { "  <- bottleneck" } else { "" })
                });
                writeln!(out, "  {:widest$}  {span:>9}  {}", stage.node, format!("{link}{mark}").trim_end())?;
            }
        }
        writeln!(
            out,
            "\nall: {:.1} tokens/s, {:.1} ms per token, {:.2} s to the first; limited by {}",
            self.tokens_per_s,
            self.tpot_s * 1e3,
            self.ttft_s,
            self.bottleneck
        )?;
        writeln!(out, "the placement lets through at most {:.1} tokens/s", self.flow_tokens_per_s)?;
        if self.price > 0.0 {
            writeln!(
                out,
                "price: {:.3} an hour, {:.3} per million tokens",
                self.price,
                self.price / 3600.0 / self.tokens_per_s * 1e6
            )?;
        }
        match self.gap < 1e-6 {
            true => writeln!(out, "optimal: no other plan is better")?,
            false => {
                let (of, how) = match self.bound.proof {
                    Proof::Partition => {
                        ("no pipelines of nodes of their own are", "best partition of the nodes")
                    }
                    Proof::Capacity => ("no plan is", "all nodes at their best batch"),
                    Proof::SearchBound => ("no plan is", "what the search had not excluded"),
                    Proof::Exhausted => ("no plan is", "everything tried"),
                };
                writeln!(out, "bound: {of} better by more than {:.0} % ({how})", self.gap * 100.0)?;
            }
        }
        if let Some(shortage) = &self.shortage {
            writeln!(out, "{shortage}")?;
        }
        if !self.unused.is_empty() {
            writeln!(out, "not used: {}", self.unused.join(", "))?;
        }
        Ok(())
    }
}
