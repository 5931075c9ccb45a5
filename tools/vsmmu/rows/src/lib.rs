// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the programs have in common that try one row of a table after the other: choosing and listing
//! rows, counting, JSON, and the exit status.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};
use vsmmu_nested::with_causes;

/// The exit status if there was nothing to see.
const NOTHING_TO_SEE: u8 = 2;

/// The arguments.
#[derive(clap::Args, Debug, Default)]
pub struct Choice {
    /// Print JSON, one object a line: the machine if the program tells of it, each row, the sums
    #[arg(long)]
    pub json: bool,
    /// Only list the rows
    #[arg(long)]
    list: bool,
    /// Only the rows that have this in their id (see --list); can be given several times
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
}

/// A row of the table.
pub trait Row {
    /// To choose it by.
    fn id(&self) -> &str;

    /// What is done, for people.
    fn what(&self) -> &str;

    /// Its first cells.
    fn head(&self) -> String {
        format!("{:<66}", self.what())
    }
}

impl Choice {
    /// The rows that are to be tried: none if they were only to be listed, which has been done then.
    pub fn of<R: Row>(&self, mut rows: Vec<R>) -> Result<Option<Vec<R>>, String> {
        let chosen =
            |row: &R| self.only.is_empty() || self.only.iter().any(|part| row.id().contains(part));
        rows.retain(chosen);
        if rows.is_empty() {
            return Err("no row has that in its id, see --list".into());
        }
        if self.list {
            for row in &rows {
                println!("{:<32} {}", row.id(), row.what());
            }
            return Ok(None);
        }
        Ok(Some(rows))
    }

    /// Prints a line that only people read.
    pub fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    /// The table of what was chosen.
    pub fn table(&self) -> Table {
        Table {
            json: self.json,
            ..Table::default()
        }
    }
}

/// The rows as they are tried.
#[derive(Default)]
pub struct Table {
    json: bool,
    number: usize,
    passed: usize,
    failed: usize,
    left_out: usize,
}

impl Table {
    /// A row is not for this machine or kernel.
    pub fn leave_out(&mut self, row: &impl Row) {
        self.number += 1;
        self.left_out += 1;
        if self.json {
            let (id, what) = (row.id(), row.what());
            println!(
                "{}",
                json!({"row": self.number, "id": id, "what": what, "applies": false})
            );
        }
    }

    /// A row is going to be tried: shown before it runs, so that one that hangs can be seen.
    pub fn start(&mut self, row: &impl Row) -> io::Result<()> {
        self.number += 1;
        if self.json {
            return Ok(());
        }
        print!("{:>3} | {} | ", self.number, row.head());
        io::stdout().flush()
    }

    /// How it came out: `cells` for people, the fields of `object` for programs, and what is wrong.
    pub fn end(&mut self, row: &impl Row, cells: &str, object: Value, faults: &[String]) {
        let ok = faults.is_empty();
        if ok {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        if self.json {
            let mut line = json!({
                "row": self.number, "id": row.id(), "what": row.what(), "faults": faults, "ok": ok,
            });
            if let (Value::Object(line), Value::Object(object)) = (&mut line, object) {
                line.extend(object);
            }
            println!("{line}");
            return;
        }
        println!("{cells} | {}", if ok { "ok" } else { "FAILED" });
        for fault in faults {
            println!("    |   wrong: {fault}");
        }
    }

    /// The experiment itself failed: nothing that comes after it can be trusted, and each of the rows that
    /// are left might take as long to fail.
    pub fn give_up(&mut self, left: usize) {
        eprintln!("error: the experiment itself failed; rows not tried: {left}");
        self.failed += left;
    }

    /// Prints the sums; the exit status tells of them.
    pub fn sum(self) -> ExitCode {
        let Table {
            passed,
            failed,
            left_out,
            ..
        } = self;
        if self.json {
            println!(
                "{}",
                json!({"passed": passed, "failed": failed, "not_applicable": left_out})
            );
        } else {
            if left_out > 0 {
                println!("\nRows that are not for this machine or kernel: {left_out}");
            }
            println!("{passed} passed, {failed} failed");
        }
        self.status()
    }

    fn status(&self) -> ExitCode {
        match (self.passed, self.failed) {
            (0, 0) => ExitCode::from(NOTHING_TO_SEE),
            (_, 0) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// The exit status of a program that ends like this, and why if it could not even begin.
pub fn exit(result: Result<ExitCode, Box<dyn Error>>) -> ExitCode {
    result.unwrap_or_else(|e| {
        eprintln!("error: {}", with_causes(&*e));
        ExitCode::from(NOTHING_TO_SEE)
    })
}

/// Has the program end as others do when nobody reads its output any longer, such as a pipe into head.
pub fn end_with_reader() {
    // SAFETY: the handler is the default one.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// The name of an error code of the SMMU; `none` if there is no error.
pub fn code_name(code: u32, none: &str) -> String {
    match code {
        0 => none.into(),
        1 => "ILL".into(),
        2 => "ABT".into(),
        3 => "ATC_INV_SYNC".into(),
        other => format!("{other:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str);

    impl Row for Named {
        fn id(&self) -> &str {
            self.0
        }

        fn what(&self) -> &str {
            "something"
        }
    }

    fn chosen(only: &[&str]) -> Option<Vec<&'static str>> {
        let choice = Choice {
            only: only.iter().map(|part| part.to_string()).collect(),
            ..Choice::default()
        };
        let rows = choice.of(vec![Named("a/b"), Named("a/c"), Named("d")]);
        rows.ok()
            .flatten()
            .map(|rows| rows.iter().map(|row| row.0).collect())
    }

    #[test]
    fn rows_are_chosen_by_a_part_of_their_id() {
        assert_eq!(chosen(&[]), Some(vec!["a/b", "a/c", "d"]));
        assert_eq!(chosen(&["a/"]), Some(vec!["a/b", "a/c"]));
        assert_eq!(chosen(&["c", "d"]), Some(vec!["a/c", "d"]));
        assert_eq!(chosen(&["x"]), None);
    }

    #[test]
    fn the_status_tells_what_came_out() {
        let status = |faults: &[&[&str]]| {
            let mut table = Table::default();
            for faults in faults {
                let faults: Vec<_> = faults.iter().map(|fault| fault.to_string()).collect();
                table.end(&Named("a"), "", json!({}), &faults);
            }
            format!("{:?}", table.status())
        };
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(status(&[]), code(NOTHING_TO_SEE));
        assert_eq!(status(&[&[]]), code(0));
        assert_eq!(status(&[&[], &["wrong"]]), code(1));
        let mut table = Table::default();
        table.end(&Named("a"), "", json!({}), &[]);
        table.give_up(1);
        assert_eq!(format!("{:?}", table.status()), code(1));
    }
}
