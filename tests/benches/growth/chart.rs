//! Panels of lines, drawn as SVG: from one to the most on a logarithmic axis, readable in light and dark.

use std::fmt::Write;

/// A picture of what becomes of several things the more there is of something.
pub(crate) struct Panel {
    pub(crate) what: &'static str,
    pub(crate) lines: Vec<Line>,
}

/// What becomes of one of them: for so many, so much.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(usize, f64)>,
}

/// A panel's size, and the room around it.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 34.0;
const APART: (f64, f64) = (60.0, 66.0);

/// Colours that can be told from each other, also by those who see few, and on both grounds.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"];

const STYLE: &str = "text{font:12px sans-serif;fill:#24292f}.grid{stroke:#24292f;stroke-opacity:.15}\
    .line{fill:none;stroke-width:1.8}.title{font-weight:bold}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#e6edf3}}";

/// Draws panels, two in a row, and under them which line is which.
pub(crate) fn draw(panels: &[Panel]) -> String {
    let rows = panels.len().div_ceil(2) as f64;
    let width = LEFT + 2.0 * WIDTH + APART.0 + 20.0;
    let below = TOP + rows * (HEIGHT + APART.1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {}\" width=\"{width}\" \
         role=\"img\" aria-label=\"Time of each operation against how much there is, as a ratio\">\n\
         <style>{STYLE}</style>\n",
        below + 40.0
    );
    let all = panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.points);
    let highest = all.map(|(_, ratio)| *ratio).fold(2.0, f64::max).ceil();
    for (at, panel) in panels.iter().enumerate() {
        let x = LEFT + (at % 2) as f64 * (WIDTH + APART.0);
        let y = TOP + (at / 2) as f64 * (HEIGHT + APART.1);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        draw_panel(&mut svg, panel, highest);
        svg.push_str("</g>\n");
    }
    let names = panels.first().into_iter().flat_map(|panel| &panel.lines);
    for ((at, line), colour) in names.enumerate().zip(COLOURS) {
        let (x, y) = (LEFT + (at % 4) as f64 * 185.0, below + (at / 4) as f64 * 20.0);
        let _ = writeln!(
            svg,
            "<path class=\"line\" stroke=\"{colour}\" d=\"M{x} {y}h24\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            x + 30.0,
            y + 4.0,
            line.name
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel, highest: f64) {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let most = points().map(|(many, _)| *many).max().unwrap_or(1) as f64;
    let x = |many: f64| WIDTH * many.log10() / most.log10();
    let y = |ratio: f64| HEIGHT * (1.0 - ratio / highest);
    let _ = writeln!(svg, "<text class=\"title\" y=\"-12\">{}</text>", panel.what);
    let mut many = 1.0;
    while many <= most {
        let at = x(many);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{at:.1} 0V{HEIGHT}\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{many}</text>",
            HEIGHT + 16.0
        );
        many *= 10.0;
    }
    let mut ratio = 0.0;
    while ratio <= highest {
        let at = y(ratio);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M0 {at:.1}H{WIDTH}\"/>\
             <text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{ratio} ×</text>",
            at + 4.0
        );
        ratio += (highest / 4.0).max(0.5);
    }
    for (line, colour) in panel.lines.iter().zip(COLOURS) {
        let points = line.points.iter().map(|(many, ratio)| (x(*many as f64), y(*ratio)));
        let path: Vec<_> = points.map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let path = path.join("L");
        let _ = writeln!(svg, "<path class=\"line\" stroke=\"{colour}\" d=\"M{path}\"/>");
    }
}
