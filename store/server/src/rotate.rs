//! A log file that is begun anew when it is full: the old one gets the time in its name, and old ones are removed by
//! number and age, or compressed. The rules are those of the library etcd uses for it (lumberjack).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

/// When to begin anew and what to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Rotation {
    /// Megabytes; 0 = 100.
    maxsize: u64,
    /// Days; 0 = for ever.
    maxage: u64,
    /// Old files; 0 = all.
    maxbackups: usize,
    /// Times in names are local; taken, and names are UTC all the same, as the machine's zone is.
    #[serde(rename = "localtime")]
    _localtime: bool,
    /// gzip old files.
    compress: bool,
}

impl Rotation {
    /// # Errors
    /// Not JSON of this form.
    pub fn parse(text: &str) -> Result<Rotation, String> {
        serde_json::from_str(text)
            .map_err(|error| format!("improperly formatted log rotation config: {error}"))
    }

    fn limit(&self) -> u64 {
        (if self.maxsize == 0 { 100 } else { self.maxsize }) << 20
    }
}

/// A file that lines are appended to.
pub struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    rotation: Option<Rotation>,
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl RotatingFile {
    /// Without `rotation` it grows for ever.
    ///
    /// # Errors
    /// IO.
    pub fn open(path: &Path, rotation: Option<Rotation>) -> io::Result<RotatingFile> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(RotatingFile { path: path.to_owned(), file, size, rotation })
    }

    /// # Errors
    /// IO.
    pub fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(rotation) = self.rotation.clone()
            && self.size > 0
            && self.size + line.len() as u64 > rotation.limit()
        {
            self.begin_anew(&rotation)?;
        }
        self.size += line.len() as u64;
        self.file.write_all(line)
    }

    fn begin_anew(&mut self, rotation: &Rotation) -> io::Result<()> {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let extension =
            self.path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
        let time = crate::logging::now().replace(':', "-");
        let old = self.path.with_file_name(format!("{stem}-{}{extension}", time.trim_end_matches('Z')));
        std::fs::rename(&self.path, &old)?;
        self.file = append(&self.path)?;
        self.size = 0;
        if rotation.compress {
            compress(&old)?;
        }
        prune(&self.path, &format!("{stem}-"), rotation)
    }
}

fn compress(old: &Path) -> io::Result<()> {
    let mut name = old.as_os_str().to_owned();
    name.push(".gz");
    let mut encoder =
        flate2::write::GzEncoder::new(File::create(PathBuf::from(name))?, flate2::Compression::default());
    io::copy(&mut File::open(old)?, &mut encoder)?;
    encoder.finish()?;
    std::fs::remove_file(old)
}

fn prune(path: &Path, prefix: &str, rotation: &Rotation) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut old: Vec<PathBuf> = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    // The time in the name sorts them.
    old.sort_unstable();
    let too_many = match rotation.maxbackups {
        0 => 0,
        kept => old.len().saturating_sub(kept),
    };
    let oldest = Duration::from_secs(rotation.maxage * 86_400);
    for (index, path) in old.iter().enumerate() {
        let written = std::fs::metadata(path).and_then(|meta| meta.modified());
        let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
        if index < too_many || (rotation.maxage > 0 && age > oldest) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_begun_anew_and_old_ones_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("etcd.log");
        let rotation = Rotation::parse(r#"{"maxsize": 1, "maxbackups": 1, "compress": true}"#).expect("good");
        let mut file = RotatingFile::open(&path, Some(rotation)).expect("opens");
        let line = vec![b'x'; 600 << 10];
        for _ in 0..4 {
            file.write_line(&line).expect("written");
        }
        let names: Vec<String> = std::fs::read_dir(folder.path())
            .expect("reads")
            .map(|entry| entry.expect("reads").file_name().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("etcd-") && name.ends_with(".log.gz")), "{names:?}");
        assert_eq!(std::fs::metadata(&path).expect("there").len(), line.len() as u64);
    }

    #[test]
    fn a_bad_configuration_is_refused() {
        assert!(Rotation::parse("{").is_err());
    }
}
