//! The runtime's log format and what `kubectl logs` shows of it.
//!
//! A line is `RFC3339NANO STREAM FLAG CONTENT`, flag `F` for a full line, `P` for a part of one. Order: since filter → tail →
//! optional time stamp → byte limit. A line that does not parse is passed through as it is: losing a log is worse.

use jiff::Timestamp;

/// One parsed line; `content` without the newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stream: &'a str,
    pub partial: bool,
    pub content: &'a [u8],
}

pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok().filter(|s| matches!(*s, "stdout" | "stderr"))?;
    let flags = std::str::from_utf8(parts.next()?).ok()?;
    let content = parts.next().unwrap_or_default();
    let partial = flags.split(':').any(|f| f == "P");
    Some(Line { time, stream, partial, content })
}

/// What the reader of a log asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Options {
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    /// `Stdout` or `Stderr` alone; `None` or `All` for both.
    pub stream: Option<String>,
}

/// Formats lines one after the other, keeping the state that spans them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formatter {
    options: Options,
    left: Option<u64>,
    in_partial: bool,
}

impl Formatter {
    pub fn new(options: Options) -> Formatter {
        let left = options.limit_bytes;
        Formatter { options, left, in_partial: false }
    }

    /// Nothing more will ever be shown.
    pub fn exhausted(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends what is shown of one raw line (without its newline) to `out`.
    pub fn push(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        if self.exhausted() {
            return;
        }
        let from = out.len();
        match parse(raw) {
            Some(line) => self.push_line(&line, out),
            None if raw.is_empty() => {}
            None => {
                out.extend_from_slice(raw);
                out.push(b'\n');
            }
        }
        if let Some(left) = &mut self.left {
            let grown = (out.len() - from) as u64;
            if grown > *left {
                out.truncate(from + *left as usize);
                *left = 0;
            } else {
                *left -= grown;
            }
        }
    }

    fn push_line(&mut self, line: &Line<'_>, out: &mut Vec<u8>) {
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|t| t < since)
        {
            return;
        }
        if let Some(stream) = self.options.stream.as_deref().filter(|s| !s.eq_ignore_ascii_case("all"))
            && !stream.eq_ignore_ascii_case(line.stream)
        {
            return;
        }
        if self.options.timestamps && !self.in_partial {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.content);
        if !line.partial {
            out.push(b'\n');
        }
        self.in_partial = line.partial;
    }
}

/// Whether a raw line ends a line of the container's output (for counting the tail).
pub fn ends_line(raw: &[u8]) -> bool {
    parse(raw).is_none_or(|line| !line.partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &[u8] = b"2026-11-21T07:01:04.98359097Z stdout F started";
    const B: &[u8] = b"2026-11-21T07:01:05Z stdout P par";
    const C: &[u8] = b"2026-11-21T07:01:06Z stdout F tial";
    const E: &[u8] = b"2026-11-21T07:01:07Z stderr F oops";

    fn show(options: Options) -> String {
        let mut formatter = Formatter::new(options);
        let mut out = Vec::new();
        for line in [A, B, C, E] {
            formatter.push(line, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn joins_parts_and_stamps_whole_lines() {
        assert_eq!(show(Options::default()), "started\npartial\noops\n");
        let stamped = show(Options { timestamps: true, ..Options::default() });
        assert_eq!(stamped.lines().nth(1).unwrap(), "2026-11-21T07:01:05Z partial");
    }

    #[test]
    fn since_stream_and_limit() {
        let since = Some("2026-11-21T07:01:06.5Z".parse().unwrap());
        assert_eq!(show(Options { since, ..Options::default() }), "oops\n");
        assert_eq!(show(Options { stream: Some("Stderr".into()), ..Options::default() }), "oops\n");
        assert_eq!(show(Options { limit_bytes: Some(10), ..Options::default() }), "started\npa");
    }

    #[test]
    fn what_is_no_log_line_passes_through() {
        let mut out = Vec::new();
        Formatter::new(Options::default()).push(b"garbage here", &mut out);
        assert_eq!(out, b"garbage here\n");
        assert!(parse(b"2026 stdout").is_none());
    }
}
