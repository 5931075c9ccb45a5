// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tables, which are the same in the terminal and on the page.

use std::fmt;

/// A table of texts.
#[derive(Clone)]
pub struct Table {
    pub title: &'static str,
    /// What one should know to read it.
    pub about: String,
    pub header: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.header[column].chars().count()]).max()
        };
        let widths: Vec<_> = (0..self.header.len()).filter_map(width).collect();
        // Figures have no blanks in them.
        let is_text = |column: usize| self.rows.iter().any(|row| row[column].contains(' '));
        let texts: Vec<_> = (0..self.header.len()).map(is_text).collect();
        writeln!(f, "\n{}", self.title)?;
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (column, cell) in cells.enumerate() {
                let width = widths[column];
                line += &if texts[column] {
                    format!("  {cell:<width$}")
                } else {
                    format!("  {cell:>width$}")
                };
            }
            writeln!(f, "{}", line.trim_end())
        };
        line(&mut self.header.iter().copied())?;
        for row in &self.rows {
            line(&mut row.iter().map(String::as_str))?;
        }
        Ok(())
    }
}

/// A figure, or a dash for none.
pub fn figure(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

/// A ratio with two decimals, or a dash.
pub fn ratio(value: Option<f64>) -> String {
    figure(value.map(|value| format!("{value:.2}")))
}
