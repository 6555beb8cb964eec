//! Answers in the forms of `--write-out`.

use keelson_store_files::check::{FileHash, Status};

use super::Exit;

/// One answer as a row: names and values.
pub struct Answer {
    /// Commas between.
    pub simple: String,
    /// `"Name" : value`, a line each.
    pub fields: Vec<(&'static str, String)>,
    pub json: String,
    /// Column titles and cells.
    pub table: Vec<(&'static str, String)>,
}

/// Whether a form is known; an unknown one is refused before any work.
pub fn check(form: &str) -> Result<(), Exit> {
    match form {
        "simple" | "fields" | "json" | "protobuf" | "table" => Ok(()),
        _ => Err(Exit::new(4, "unsupported output format")),
    }
}

/// Prints an answer.
pub fn print(form: &str, answer: &Answer) -> Result<(), Exit> {
    match form {
        "fields" => {
            for (name, value) in &answer.fields {
                println!("\"{name}\" : {value}");
            }
        }
        "json" => println!("{}", answer.json),
        "table" => print!("{}", table(&answer.table)),
        "protobuf" => return Err(Exit::new(4, "protobuf not supported as output format")),
        _ => println!("{}", answer.simple),
    }
    Ok(())
}

fn table(columns: &[(&str, String)]) -> String {
    let width = |(title, cell): &(&str, String)| title.chars().count().max(cell.chars().count());
    let line = |left: &str, middle: &str, right: &str| {
        let cells: Vec<String> = columns.iter().map(|column| "─".repeat(width(column) + 2)).collect();
        format!("{left}{}{right}\n", cells.join(middle))
    };
    let titles: Vec<String> = columns
        .iter()
        .map(|column| {
            let free = width(column) - column.0.chars().count();
            format!(" {}{}{} ", " ".repeat(free / 2), column.0, " ".repeat(free - free / 2))
        })
        .collect();
    let cells: Vec<String> =
        columns.iter().map(|column| format!(" {:>1$} ", column.1, width(column))).collect();
    format!(
        "{}│{}│\n{}│{}│\n{}",
        line("┌", "┬", "┐"),
        titles.join("│"),
        line("├", "┼", "┤"),
        cells.join("│"),
        line("└", "┴", "┘")
    )
}

/// Bytes in powers of a thousand, two digits: 78 kB, 1.3 GB.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 10 {
        return format!("{count} B");
    }
    let unit = (count.ilog10() / 3) as usize;
    let value = count as f64 / 1000f64.powi(unit as i32);
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

pub fn status(status: &Status) -> Answer {
    let version = &status.version;
    let mut fields = vec![
        ("Hash", status.hash.to_string()),
        ("Revision", status.revision.to_string()),
        ("Keys", status.total_keys.to_string()),
        ("Size", status.total_size.to_string()),
    ];
    fields.push(("Version", version.clone()));
    Answer {
        simple: format!(
            "{:x}, {}, {}, {}, {version}",
            status.hash,
            status.revision,
            status.total_keys,
            bytes(status.total_size)
        ),
        fields,
        json: format!(
            r#"{{"hash":{},"revision":{},"totalKey":{},"totalSize":{},"version":"{version}"}}"#,
            status.hash, status.revision, status.total_keys, status.total_size
        ),
        table: vec![
            ("HASH", format!("{:x}", status.hash)),
            ("REVISION", status.revision.to_string()),
            ("TOTAL KEYS", status.total_keys.to_string()),
            ("TOTAL SIZE", bytes(status.total_size)),
            ("VERSION", version.clone()),
        ],
    }
}

pub fn hash(hash: &FileHash) -> Answer {
    let (sum, at, compacted) = (hash.hash, hash.hash_revision, hash.compact_revision);
    Answer {
        simple: format!("{sum}, {at}, {compacted}"),
        fields: vec![
            ("Hash", sum.to_string()),
            ("Hash revision", at.to_string()),
            ("Compact revision", compacted.to_string()),
        ],
        json: format!(r#"{{"hash":{sum},"hashRevision":{at},"compactRevision":{compacted}}}"#),
        table: vec![
            ("HASH", sum.to_string()),
            ("HASH REVISION", at.to_string()),
            ("COMPACT REVISION", compacted.to_string()),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_look_as_etcds() {
        let found = Status {
            hash: 0x740a_bc3e,
            revision: 772,
            total_keys: 497,
            total_size: 77_824,
            version: "3.7.0".to_owned(),
        };
        let answer = status(&found);
        assert_eq!(answer.simple, "740abc3e, 772, 497, 78 kB, 3.7.0");
        let shown = "┌──────────┬──────────┬────────────┬────────────┬─────────┐\n\
                     │   HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │ VERSION │\n\
                     ├──────────┼──────────┼────────────┼────────────┼─────────┤\n\
                     │ 740abc3e │      772 │        497 │      78 kB │   3.7.0 │\n\
                     └──────────┴──────────┴────────────┴────────────┴─────────┘\n";
        assert_eq!(table(&answer.table), shown);
    }

    #[test]
    fn sizes_are_short() {
        let shown: Vec<String> = [9, 999, 1500, 28_672, 9_950_000, 1_377_000_000].map(bytes).to_vec();
        assert_eq!(shown, ["9 B", "999 B", "1.5 kB", "29 kB", "10 MB", "1.4 GB"]);
    }
}
