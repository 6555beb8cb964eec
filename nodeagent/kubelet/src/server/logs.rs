//! A container's log file, as `kubectl logs` wants it: tail found from the end, then formatted line by line, followed over
//! rotation while the container runs.
//!
//! Memory is bounded: files are read in blocks, and a line longer than `LINE_LIMIT` is cut there.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use keelson_nodeagent_core::pod::logs::{Formatter, Options, ends_line};
use tokio::sync::mpsc;

const BLOCK: usize = 64 << 10;
const LINE_LIMIT: usize = 1 << 20;

/// The last whole lines of a log, formatted: at most `lines` of them and `most` bytes.
pub fn last_bytes(path: &Path, lines: u64, most: usize) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let from = tail_start(&mut file, lines)?;
    file.seek(SeekFrom::Start(from))?;
    let mut formatter = Formatter::new(Options::default());
    let mut out = Vec::new();
    let mut reader = Lines::new(file);
    while let Some(line) = reader.next_line()? {
        formatter.push(&line, &mut out);
    }
    if out.len() > most {
        out.drain(..out.len() - most);
    }
    Ok(out)
}

/// The offset at which the last `lines` output lines begin.
pub fn tail_start(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let (mut at, mut found, mut tail) = (length, 0u64, Vec::new());
    while at > 0 {
        let size = BLOCK.min(at as usize);
        at -= size as u64;
        file.seek(SeekFrom::Start(at))?;
        let mut block = vec![0; size];
        file.read_exact(&mut block)?;
        let mut end = block.len();
        while let Some(newline) = block[..end].iter().rposition(|b| *b == b'\n') {
            let mut line = block[newline + 1..end].to_vec();
            line.append(&mut tail);
            let starts_at = at + newline as u64 + 1;
            // Whatever follows this newline begins an output line only if the line before it was a full one.
            if starts_at < length && !line.is_empty() {
                let before_is_full = previous_ends(file, at + newline as u64)?;
                if before_is_full {
                    found += 1;
                    if found == lines {
                        return Ok(starts_at);
                    }
                }
            }
            end = newline;
        }
        let mut head = block[..end].to_vec();
        head.append(&mut tail);
        head.truncate(LINE_LIMIT);
        tail = head;
    }
    Ok(0)
}

/// Whether the raw line that ends at `newline` is a full one; only its first bytes matter.
fn previous_ends(file: &mut File, newline: u64) -> std::io::Result<bool> {
    let mut at = newline;
    let mut line: Vec<u8> = Vec::new();
    while at > 0 {
        let size = 4096.min(at as usize);
        at -= size as u64;
        file.seek(SeekFrom::Start(at))?;
        let mut block = vec![0; size];
        file.read_exact(&mut block)?;
        if let Some(start) = block.iter().rposition(|b| *b == b'\n') {
            let mut head = block[start + 1..].to_vec();
            head.append(&mut line);
            return Ok(ends_line(&head));
        }
        block.extend_from_slice(&line);
        block.truncate(256);
        line = block;
    }
    Ok(ends_line(&line))
}

/// Raw lines of a growing file, without their newlines.
struct Lines {
    file: File,
    buffer: Vec<u8>,
}

impl Lines {
    fn new(file: File) -> Lines {
        Lines { file, buffer: Vec::new() }
    }

    /// The next complete line; `None` at the present end of the file.
    fn next_line(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(newline) = self.buffer.iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(newline + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(Some(line));
            }
            if self.buffer.len() >= LINE_LIMIT {
                return Ok(Some(std::mem::take(&mut self.buffer)));
            }
            let mut block = vec![0; BLOCK];
            let read = self.file.read(&mut block)?;
            if read == 0 {
                return Ok(None);
            }
            self.buffer.extend_from_slice(&block[..read]);
        }
    }

    /// What is left without a newline, when no more will come.
    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }
}

/// Sends a log in chunks. With `follow`, goes on until `running` says the container has ended and its file is read out.
pub async fn stream<F, Fut>(
    path: PathBuf,
    options: Options,
    follow: bool,
    running: F,
    out: mpsc::Sender<Bytes>,
) -> std::io::Result<()>
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    let mut file = File::open(&path)?;
    let from = match options.tail_lines {
        Some(lines) => tail_start(&mut file, lines)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(from))?;
    let mut inode = file.metadata()?.ino();
    let mut formatter = Formatter::new(options);
    let mut lines = Lines::new(file);
    let mut ended = false;
    loop {
        let mut chunk = Vec::new();
        while chunk.len() < BLOCK
            && let Some(line) = lines.next_line()?
        {
            formatter.push(&line, &mut chunk);
        }
        let idle = chunk.is_empty();
        if !idle && out.send(Bytes::from(chunk)).await.is_err() {
            return Ok(());
        }
        if formatter.exhausted() {
            return Ok(());
        }
        if !idle {
            continue;
        }
        if !follow || ended {
            let mut last = Vec::new();
            formatter.push(&lines.rest(), &mut last);
            if !last.is_empty() {
                let _ = out.send(Bytes::from(last)).await;
            }
            return Ok(());
        }
        match std::fs::metadata(&path) {
            Ok(now) if now.ino() != inode => {
                // Rotated: the old file is read out, the new one starts from its beginning.
                let file = File::open(&path)?;
                inode = file.metadata()?.ino();
                lines = Lines::new(file);
                continue;
            }
            _ => {}
        }
        ended = !running().await;
        if !ended {
            tokio::select! {
                () = tokio::time::sleep(std::time::Duration::from_millis(150)) => {}
                () = out.closed() => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, flag: &str) -> String {
        format!("2026-11-21T07:01:04Z stdout {flag} {text}\n")
    }

    #[tokio::test]
    async fn tail_counts_output_lines_not_raw_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut text = String::new();
        for n in 0..5000 {
            text += &line(&format!("line {n}"), "F");
        }
        text += &line("par", "P");
        text += &line("tial", "F");
        std::fs::write(&path, text).unwrap();
        for (lines, wanted) in [(0, ""), (1, "partial\n"), (2, "line 4999\npartial\n")] {
            let (sender, mut receiver) = mpsc::channel(4);
            let options = Options { tail_lines: Some(lines), ..Options::default() };
            stream(path.clone(), options, false, || async { false }, sender).await.unwrap();
            let mut out = Vec::new();
            while let Some(chunk) = receiver.recv().await {
                out.extend_from_slice(&chunk);
            }
            assert_eq!(String::from_utf8(out).unwrap(), wanted);
        }
        assert_eq!(last_bytes(&path, 3, 12).unwrap(), b"999\npartial\n");
    }

    #[tokio::test]
    async fn follow_survives_rotation_and_ends_with_the_container() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, line("one", "F")).unwrap();
        let alive = std::sync::Arc::new(AtomicBool::new(true));
        let (sender, mut receiver) = mpsc::channel(4);
        let watching = alive.clone();
        let task = tokio::spawn(stream(
            path.clone(),
            Options::default(),
            true,
            move || {
                let watching = watching.clone();
                async move { watching.load(Ordering::SeqCst) }
            },
            sender,
        ));
        assert_eq!(receiver.recv().await.unwrap(), "one\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, line("two", "F")).unwrap();
        assert_eq!(receiver.recv().await.unwrap(), "two\n");
        alive.store(false, Ordering::SeqCst);
        assert!(receiver.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
