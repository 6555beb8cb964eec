//! `-w`: how answers are printed. A command's answer says what it looks like in each form it has.

use std::io::Write;

use keelson_store_proto::etcdserverpb::ResponseHeader;
use keelson_store_proto::mvccpb::KeyValue;

use crate::command::{BAD_FEATURE, ERROR, Failure, fail};
use crate::text::quote;

/// `--write-out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Simple,
    Fields,
    Json,
    Protobuf,
    Table,
}

/// `--write-out` and `--hex`.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub format: Format,
    pub hex: bool,
}

/// Headings and rows.
pub struct Table {
    pub head: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

/// An answer in each form; the forms it does not have are refused.
pub trait Show {
    /// For people.
    fn simple(&self, out: &mut Vec<u8>, hex: bool);

    /// `"Name" : value`, a line each.
    fn fields(&self, _: &mut Vec<u8>, _hex: bool) -> bool {
        false
    }

    /// One line.
    fn json(&self, _hex: bool) -> Option<String> {
        None
    }

    /// The message as it came.
    fn protobuf(&self) -> Option<Vec<u8>> {
        None
    }

    /// In a frame.
    fn table(&self) -> Option<Table> {
        None
    }
}

/// Writes to standard output.
///
/// # Errors
/// Nobody reads it any more; the command ends without a word.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|_| Failure { code: ERROR, message: String::new() })
}

/// A line.
///
/// # Errors
/// As [`print`].
pub fn say(text: impl AsRef<str>) -> Result<(), Failure> {
    print(format!("{}\n", text.as_ref()).as_bytes())
}

/// `writeln!` to memory, which cannot fail.
#[macro_export]
macro_rules! line {
    ($out:expr, $($arguments:tt)*) => {
        $out.extend_from_slice(format!("{}\n", format_args!($($arguments)*)).as_bytes())
    };
}

impl Output {
    /// `None` for a form nobody knows.
    pub fn new(format: &str, hex: bool) -> Option<Output> {
        let format = match format {
            "simple" => Format::Simple,
            "fields" => Format::Fields,
            "json" => Format::Json,
            "protobuf" => Format::Protobuf,
            "table" => Format::Table,
            _ => return None,
        };
        Some(Output { format, hex })
    }

    /// Whether it is for people.
    pub fn is_simple(self) -> bool {
        self.format == Format::Simple
    }

    /// Prints an answer.
    ///
    /// # Errors
    /// A form the answer does not have.
    pub fn show(self, answer: &impl Show) -> Result<(), Failure> {
        let mut out = Vec::new();
        let there = match self.format {
            Format::Simple => {
                answer.simple(&mut out, self.hex);
                true
            }
            Format::Fields => answer.fields(&mut out, self.hex),
            Format::Json => answer.json(self.hex).map(|text| line!(out, "{text}")).is_some(),
            Format::Protobuf => answer.protobuf().map(|bytes| out = bytes).is_some(),
            Format::Table => answer.table().map(|table| frame(&table, &mut out)).is_some(),
        };
        if !there {
            let name = format!("{:?}", self.format).to_lowercase();
            return fail(BAD_FEATURE, format!("{name} not supported as output format"));
        }
        print(&out)
    }
}

/// Cells to the right, headings in capitals in the middle.
fn frame(table: &Table, out: &mut Vec<u8>) {
    use unicode_width::UnicodeWidthStr as _;
    let head: Vec<String> = table.head.iter().map(|name| name.to_uppercase().replace('_', " ")).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = table.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
            cells.chain([head[column].width()]).max().unwrap_or(0)
        })
        .collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let parts: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}", parts.join(middle))
    };
    line!(out, "{}", rule("┌", "┬", "┐"));
    let cells: Vec<String> =
        head.iter().zip(&widths).map(|(name, width)| format!(" {name:^width$} ")).collect();
    line!(out, "│{}│", cells.join("│"));
    line!(out, "{}", rule("├", "┼", "┤"));
    for row in &table.rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:>width$} ")).collect();
        line!(out, "│{}│", cells.join("│"));
    }
    line!(out, "{}", rule("└", "┴", "┘"));
}

/// A header's fields.
pub fn header(out: &mut Vec<u8>, header: Option<&ResponseHeader>, hex: bool) {
    let none = ResponseHeader::default();
    let header = header.unwrap_or(&none);
    line!(out, "\"ClusterID\" : {}", id(header.cluster_id, hex));
    line!(out, "\"MemberID\" : {}", id(header.member_id, hex));
    // Only answers about keys have one.
    if header.revision > 0 {
        line!(out, "\"Revision\" : {}", header.revision);
    }
    line!(out, "\"RaftTerm\" : {}", header.raft_term);
}

/// A member's or cluster's id.
pub fn id(id: u64, hex: bool) -> String {
    if hex { format!("{id:x}") } else { id.to_string() }
}

/// A lease's id.
pub fn lease_id(id: i64, hex: bool) -> String {
    if hex { format!("{id:016x}") } else { id.to_string() }
}

/// A key's fields, their names after `prefix`.
pub fn kv_fields(out: &mut Vec<u8>, prefix: &str, kv: &KeyValue, hex: bool) {
    line!(out, "\"{prefix}Key\" : {}", quote(&kv.key));
    line!(out, "\"{prefix}CreateRevision\" : {}", kv.create_revision);
    line!(out, "\"{prefix}ModRevision\" : {}", kv.mod_revision);
    line!(out, "\"{prefix}Version\" : {}", kv.version);
    line!(out, "\"{prefix}Value\" : {}", quote(&kv.value));
    line!(out, "\"{prefix}Lease\" : {}", lease_id(kv.lease, hex));
}

/// Key and value, a line each.
pub fn kv_lines(out: &mut Vec<u8>, kv: &KeyValue, hex: bool, value_only: bool) {
    let mut put = |bytes: &[u8]| {
        if hex {
            out.extend(bytes.iter().flat_map(|byte| format!("\\x{byte:02x}").into_bytes()));
        } else {
            out.extend_from_slice(bytes);
        }
        out.push(b'\n');
    };
    if !value_only {
        put(&kv.key);
    }
    put(&kv.value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_etcdctls_frame() {
        let table =
            Table { head: vec!["endpoint", "hash_revision"], rows: vec![vec!["a".into(), "1".into()]] };
        let mut out = Vec::new();
        frame(&table, &mut out);
        let expected = "┌──────────┬───────────────┐\n│ ENDPOINT │ HASH REVISION │\n├──────────┼───────────────┤\n\
                        │        a │             1 │\n└──────────┴───────────────┘\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
