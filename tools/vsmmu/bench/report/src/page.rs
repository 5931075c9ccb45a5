// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The pictures, and the page that shows them with the tables.

use std::error::Error;
use std::fs;
use std::path::Path;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::prelude::*;

use crate::floor;
use crate::rows::{Measured, Row};
use crate::table::Table;

const IOCTL: &str = "ioctl: ";
const TLBI: &str = "ioctl: TLBI_NH_VA";
/// Neither too light nor too dark for a page of either kind.
const INK: RGBColor = RGBColor(128, 128, 128);
const BLUE: RGBColor = RGBColor(60, 120, 216);
const ORANGE: RGBColor = RGBColor(224, 122, 40);
const GREEN: RGBColor = RGBColor(70, 160, 90);

/// A line of a picture.
struct Line {
    name: &'static str,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

/// A picture with logarithmic axes, as SVG with nothing behind it.
fn picture(
    title: &str,
    y_label: &str,
    legend: SeriesLabelPosition,
    lines: &[Line],
) -> Result<String, Box<dyn Error>> {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let last = points().map(|(x, _)| x).fold(1.0, f64::max);
    let least = points().map(|(_, y)| y).fold(f64::INFINITY, f64::min);
    // Up from a tick.
    let bottom = 10_f64.powf(least.log10().floor());
    let most = points().map(|(_, y)| y).fold(1.0, f64::max);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (820, 460)).into_drawing_area();
        let text = ("sans-serif", 15).into_font().color(&INK);
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 19).into_font().color(&INK))
            .margin(12)
            .x_label_area_size(48)
            .y_label_area_size(76)
            .build_cartesian_2d(
                (1.0..last * 1.1).log_scale(),
                (bottom * 0.9..most * 1.3).log_scale(),
            )?;
        chart
            .configure_mesh()
            .x_desc("n, commands in a call")
            .y_desc(y_label)
            .axis_style(INK)
            .bold_line_style(INK.mix(0.25))
            .light_line_style(TRANSPARENT)
            .label_style(text.clone())
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .draw()?;
        for (i, line) in lines.iter().enumerate() {
            // A line that has another one on it is still to be seen.
            let style = line.colour.stroke_width(if i == 0 { 5 } else { 2 });
            chart
                .draw_series(LineSeries::new(line.points.clone(), style).point_size(3))?
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        chart
            .configure_series_labels()
            .position(legend)
            .label_font(text)
            .border_style(INK.mix(0.5))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

/// The figures `get` of the arrays `id` of all lengths.
fn points(
    measured: &Measured,
    group: &str,
    id: &str,
    c: bool,
    get: impl Fn(&Row) -> Option<f64>,
) -> Vec<(f64, f64)> {
    measured
        .group(group)
        .filter(|pair| pair.rust.id == id && pair.rust.n > 0)
        .filter_map(|pair| {
            let row = if c { pair.c.as_ref()? } else { &pair.rust };
            (row.errno.is_none()).then_some(())?;
            Some((row.n as f64, get(row)?))
        })
        .collect()
}

/// The kinds of arrays that were measured, without what they have in common in their names.
fn kinds(measured: &Measured) -> Vec<&str> {
    let ids = measured.group("ioctl").filter(|pair| pair.rust.n > 0);
    let mut kinds: Vec<_> = ids
        .filter_map(|pair| pair.rust.id.strip_prefix(IOCTL))
        .collect();
    kinds.dedup();
    kinds
}

/// The pictures, by the names of their files.
fn pictures(measured: &Measured) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let per_command = |row: &Row| Some(row.instructions()? as f64 / row.n as f64);
    let floor = |row: &Row| Some(floor::calls(measured, 1, row.n)? as f64 / row.n as f64);
    let syncs = |row: &Row| row.syncs.map(|syncs| syncs as f64);
    // A logarithmic axis has no place for nothing.
    let bytes = |row: &Row| row.bytes.map(|bytes| bytes.max(1) as f64);
    let line = |name, colour, points| Line {
        name,
        colour,
        points,
    };
    let both = |group, id: &str, get: &dyn Fn(&Row) -> Option<f64>| {
        vec![
            line("C", ORANGE, points(measured, group, id, true, get)),
            line("Rust", BLUE, points(measured, group, id, false, get)),
        ]
    };
    let mut pictures = Vec::new();
    let mut draw = |file: String, title: &str, y_label, legend, lines: Vec<Line>| {
        if lines.iter().any(|line| !line.points.is_empty()) {
            pictures.push((file, picture(title, y_label, legend, &lines)?));
        }
        Ok::<_, Box<dyn Error>>(())
    };
    for kind in kinds(measured) {
        let id = format!("{IOCTL}{kind}");
        let mut lines = both("ioctl", &id, &per_command);
        let least = points(measured, "ioctl", &id, false, floor);
        lines.push(line("floor", GREEN, least));
        let words = kind.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        draw(
            format!("instructions-{}.svg", words.join("-").to_lowercase()),
            &format!("Instructions for each command: {kind}"),
            "instructions per command",
            SeriesLabelPosition::UpperRight,
            lines,
        )?;
    }
    draw(
        "syncs.svg".into(),
        "CMD_SYNCs of a call: TLBI_NH_VA",
        "CMD_SYNCs per call",
        SeriesLabelPosition::UpperLeft,
        both("counts", TLBI, &syncs),
    )?;
    draw(
        "memory.svg".into(),
        "Memory that a call allocates: TLBI_NH_VA (a line at 1 byte stands for none)",
        "bytes per call",
        SeriesLabelPosition::UpperLeft,
        both("memory", TLBI, &bytes),
    )?;
    Ok(pictures)
}

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.15rem 0.7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.text { text-align: left; }
th { position: sticky; top: 0; background: Canvas; }
svg { max-width: 100%; height: auto; }
section { overflow-x: auto; }
";

fn table(table: &Table) -> Markup {
    html! {
        section {
            h2 { (table.title) }
            p { (table.about) }
            table {
                thead { tr { @for cell in &table.header { th { (cell) } } } }
                tbody {
                    @for row in &table.rows {
                        tr { @for cell in row { td.text[cell.contains(' ')] { (cell) } } }
                    }
                }
            }
        }
    }
}

/// Writes the pictures and `index.html`, which has all of it in itself.
pub fn write(dir: &Path, measured: &Measured, tables: &[Table]) -> Result<(), Box<dyn Error>> {
    let save = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
    };
    let pictures = pictures(measured)?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "The cost of an invalidation" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "The cost of an invalidation" }
                p {
                    "What ioctl(IOMMU_HWPT_INVALIDATE) takes on an Arm SMMUv3, with the Rust code of this "
                    "tree and with the C code of the same tree and configuration. Unless it says otherwise, "
                    "figures are instructions: in QEMU with -icount, a nanosecond of the guest is one, whatever "
                    "machine this runs on. How fast a CPU is that executes them is another matter."
                }
                @for (_, svg) in &pictures { figure { (PreEscaped(svg)) } }
                @for each in tables.iter().filter(|table| !table.rows.is_empty()) { (table(each)) }
            }
        }
    };
    for (name, svg) in &pictures {
        save(name, svg)?;
    }
    Ok(save("index.html", &page.into_string())?)
}
