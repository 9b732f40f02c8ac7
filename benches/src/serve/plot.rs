//! Latency over load as one SVG: TTFT, TPOT, E2EL and throughput in four panels.
//!
//! Loads stand on a logarithmic axis, since they are usually doubled; latencies on a linear one
//! from zero, or a logarithmic one where they span more than a factor of 30. Medians are drawn whole,
//! 99th percentiles dashed, objectives as thin red lines. The same points give the same bytes.

use std::fmt::Write;

use crate::serve::measure::{Figures, Objectives};
use crate::serve::metric::Metric;
use crate::serve::plan::Load;

/// Where values stand.
mod scale;

use scale::{Axis, Scale};

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Plot<'a> {
    /// Line above the panels.
    pub title: &'a str,
    /// Loads and what they came to.
    pub points: &'a [(Load, Figures)],
    /// Bounds to draw.
    pub objectives: &'a Objectives,
}

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 740.0;
/// Of one panel's drawing, without labels.
const PANEL: (f64, f64) = (400.0, 250.0);
const COLOURS: [&str; 6] = ["#1f5fa8", "#c2571a", "#2c7d3f", "#7a3fa0", "#a02c4a", "#4a4a4a"];

/// One line of a panel: places and values, in the order of places.
struct Line {
    name: String,
    colour: &'static str,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

impl Plot<'_> {
    /// The file's text.
    pub fn svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"70\" y=\"28\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
            escaped(self.title)
        );
        let bounds = self.objectives;
        let panels = [
            ("Time to first token (ms)", Some(Metric::Ttft), bounds.ttft),
            ("Time per output token (ms)", Some(Metric::Tpot), bounds.tpot),
            ("End-to-end latency (ms)", Some(Metric::E2el), bounds.e2el),
            ("Output tokens/s", None, None),
        ];
        for (index, (title, metric, bound)) in panels.into_iter().enumerate() {
            let corner = (70.0 + 480.0 * (index % 2) as f64, 70.0 + 340.0 * (index / 2) as f64);
            let lines = metric.map_or_else(|| self.throughput(), |metric| self.latency(metric));
            let panel = Panel { corner, axis: self.axis(), lines, bound: bound.map(|s| s * 1e3) };
            panel.draw(&mut svg, title);
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Loads are rates if these differ, else bounds on concurrency.
    fn is_over_rate(&self) -> bool {
        let mut rates = self.points.iter().map(|(load, _)| load.arrivals.rate);
        let first = rates.next();
        rates.any(|rate| Some(rate) != first)
            || self.points.iter().all(|(load, _)| load.max_concurrency.is_none())
    }

    fn axis(&self) -> Axis {
        let over_rate = self.is_over_rate();
        let mut loads: Vec<f64> =
            self.points.iter().map(|(load, _)| place(load, over_rate)).collect();
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        let name = if over_rate { "requests/s offered" } else { "requests at once" };
        Axis { name, loads }
    }

    /// Loads by the setting that is not on the axis, in their order.
    fn series(&self) -> Vec<Series<'_>> {
        let over_rate = self.is_over_rate();
        let mut series: Vec<Series<'_>> = Vec::new();
        for (load, figures) in self.points {
            let bound = load.max_concurrency.filter(|_| over_rate);
            let point = (place(load, over_rate), figures);
            match series.iter_mut().find(|known| known.bound == bound) {
                Some(known) => known.points.push(point),
                None => series.push(Series { bound, points: vec![point] }),
            }
        }
        for series in &mut series {
            series.points.sort_by(|one, other| one.0.total_cmp(&other.0));
        }
        series
    }

    /// A line for each series and each of `of`.
    fn lines(&self, of: &[Drawn<'_>]) -> Vec<Line> {
        let mut lines = Vec::new();
        for (index, Series { bound, points }) in self.series().into_iter().enumerate() {
            for drawn in of {
                let beside = bound.map(|most| format!(" at most {most} at once"));
                lines.push(Line {
                    name: format!("{}{}", drawn.name, beside.unwrap_or_default()),
                    colour: COLOURS[index % COLOURS.len()],
                    dashed: drawn.dashed,
                    points: points.iter().map(|(load, of)| (*load, (drawn.value)(of))).collect(),
                });
            }
        }
        lines
    }

    fn latency(&self, metric: Metric) -> Vec<Line> {
        let median = |figures: &Figures| metric.of(figures).median() * 1e3;
        let p99 = |figures: &Figures| metric.of(figures).percentile(99.0) * 1e3;
        self.lines(&[
            Drawn { name: "median", dashed: false, value: &median },
            Drawn { name: "p99", dashed: true, value: &p99 },
        ])
    }

    fn throughput(&self) -> Vec<Line> {
        let name = "mean of the run";
        self.lines(&[Drawn { name, dashed: false, value: &Figures::output_throughput }])
    }
}

/// Loads that one line joins.
struct Series<'a> {
    /// The bound on concurrency that they have in common, if rates are on the axis.
    bound: Option<usize>,
    /// Places on the axis, ascending.
    points: Vec<(f64, &'a Figures)>,
}

/// One figure of each load.
struct Drawn<'a> {
    name: &'a str,
    dashed: bool,
    value: &'a dyn Fn(&Figures) -> f64,
}

fn place(load: &Load, over_rate: bool) -> f64 {
    match load.max_concurrency {
        Some(most) if !over_rate => most as f64,
        _ => load.arrivals.rate,
    }
}

struct Panel {
    corner: (f64, f64),
    axis: Axis,
    lines: Vec<Line>,
    bound: Option<f64>,
}

impl Panel {
    fn draw(&self, svg: &mut String, title: &str) {
        let values = self.lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
        let scale = Scale::new(values.chain(self.bound));
        let ((left, top), (width, height)) = (self.corner, PANEL);
        let x = |load: f64| left + 12.0 + (width - 24.0) * self.axis.share(load);
        let y = |value: f64| top + height * (1.0 - scale.share(value));
        let (right, bottom) = (left + width, top + height);
        let mut add = |line: std::fmt::Arguments<'_>| {
            // Writing into a String cannot fail.
            let _ = svg.write_fmt(line);
            svg.push('\n');
        };
        add(format_args!(
            "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            top - 12.0,
            escaped(title)
        ));
        for tick in scale.ticks() {
            add(format_args!(
                "<path d=\"M{left} {0:.1}H{right}\" stroke=\"#e2e2e2\"/>\
                 <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>",
                y(tick),
                left - 6.0,
                y(tick) + 4.0,
                number(tick)
            ));
        }
        add(format_args!(
            "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#666\"/>"
        ));
        for &load in &self.axis.loads {
            add(format_args!(
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                x(load),
                bottom + 16.0,
                number(load)
            ));
        }
        add(format_args!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
            left + width / 2.0,
            bottom + 34.0,
            self.axis.name
        ));
        if let Some(bound) = self.bound {
            add(format_args!(
                "<path d=\"M{left} {:.1}H{right}\" stroke=\"#d01010\" stroke-dasharray=\"2 3\">\
                 <title>objective: {} ms</title></path>",
                y(bound),
                number(bound)
            ));
        }
        for (index, line) in self.lines.iter().enumerate() {
            line.draw(&mut add, &x, &y);
            line.draw_name(&mut add, (left + 10.0, top + 14.0 + 15.0 * index as f64));
        }
    }
}

type Add<'a> = dyn FnMut(std::fmt::Arguments<'_>) + 'a;

impl Line {
    fn dash(&self) -> &'static str {
        if self.dashed { " stroke-dasharray=\"6 4\"" } else { "" }
    }

    fn draw(&self, add: &mut Add<'_>, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) {
        let places =
            self.points.iter().map(|&(load, value)| format!("{:.1},{:.1}", x(load), y(value)));
        add(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"{}/>",
            places.collect::<Vec<_>>().join(" "),
            self.colour,
            self.dash()
        ));
        for &(load, value) in &self.points {
            add(format_args!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"><title>{}: {} at {}</title></circle>",
                x(load),
                y(value),
                self.colour,
                escaped(&self.name),
                number(value),
                number(load)
            ));
        }
    }

    fn draw_name(&self, add: &mut Add<'_>, (left, middle): (f64, f64)) {
        add(format_args!(
            "<path d=\"M{left} {middle}h24\" stroke=\"{}\" stroke-width=\"1.8\"{}/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            self.colour,
            self.dash(),
            left + 30.0,
            middle + 4.0,
            escaped(&self.name)
        ));
    }
}

/// At most four digits where the number allows it.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        small if small < 1.0 => 3,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests;
