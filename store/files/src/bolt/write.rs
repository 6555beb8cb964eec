//! Writing from the first byte to the last, with a few pages in memory: leaves as elements come, branches as they fill.
//!
//! The meta pages come first but name the root, which is known last. So content is written twice: once into nothing,
//! which gives the [`Layout`], and once with it. Both passes must give the same elements.
//!
//! ```text
//! 0 meta · 1 meta · 2 freelist (empty) · leaves and branches of each bucket, bucket after bucket · root leaf
//! ```
//!
//! A branch has at least two children unless it would be the root: bbolt relies on that when it deletes. So the last two
//! of a full branch's children stay behind until it is known that more come.

use super::{
    BRANCH_PAGE, BUCKET_HEADER, BUCKET_LEAF, ELEMENT, FREELIST_PAGE, HEADER, LEAF_PAGE, MAGIC, META,
    META_PAGE, PAGE_SIZE, VERSION, fnv,
};

/// Longest key bbolt takes, bytes.
pub const MAX_KEY: usize = 32768;
/// Longest value, bytes.
const MAX_VALUE: usize = (1 << 31) - 2;
/// The first page behind metas and freelist.
const FIRST: u64 = 3;
/// Fewest children of a branch that is cut off: two go, two stay at least.
const FEWEST: usize = 3;

/// Where the pages went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    root: u64,
    pages: u64,
}

impl Layout {
    /// Bytes of the whole file.
    pub fn length(&self) -> u64 {
        self.pages * PAGE_SIZE as u64
    }
}

/// Takes whole pages, one after the other.
pub trait Output {
    /// What can go wrong.
    type Error;

    /// The next bytes of the file.
    ///
    /// # Errors
    /// The output's own; writing ends there.
    fn pages(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

impl<E, F: FnMut(&[u8]) -> Result<(), E>> Output for F {
    type Error = E;

    fn pages(&mut self, bytes: &[u8]) -> Result<(), E> {
        self(bytes)
    }
}

/// Why content does not go into a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError<E> {
    /// A key of a length that the format has no room for.
    #[error("a key of {0} bytes cannot be stored: 1 to {MAX_KEY} are possible")]
    Key(usize),
    /// A value of such a length.
    #[error("a value of {0} bytes cannot be stored")]
    Value(usize),
    /// Keys or buckets that do not ascend.
    #[error("keys were not written in order")]
    Order,
    /// The second pass was not given what the first one was.
    #[error("the content changed while it was written")]
    Changed,
    /// The output's.
    #[error("{0}")]
    Output(E),
}

/// Elements that wait for their page.
#[derive(Default)]
struct Pending {
    /// Flags, key length, value length and child; a branch has no value, a leaf no child.
    elements: Vec<(u32, usize, usize, u64)>,
    data: Vec<u8>,
}

impl Pending {
    /// Bytes of the page if `more` were added to it.
    fn size_with(&self, more: usize) -> usize {
        HEADER + (self.elements.len() + 1) * ELEMENT + self.data.len() + more
    }

    fn push(&mut self, flags: u32, key: &[u8], value: &[u8], child: u64) {
        self.elements.push((flags, key.len(), value.len(), child));
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn first_key(&self) -> &[u8] {
        self.elements.first().map_or(&[], |(_, length, ..)| &self.data[..*length])
    }

    /// Cuts off everything but the last element.
    fn split_last(&mut self) -> Pending {
        let keep = self.elements.split_off(self.elements.len().saturating_sub(1));
        let kept: usize = keep.iter().map(|(_, key, value, _)| key + value).sum();
        let data = self.data.split_off(self.data.len() - kept);
        std::mem::replace(self, Pending { elements: keep, data })
    }

    /// The page, filled up to whole pages, into `out`.
    fn write(&self, number: u64, kind: u16, out: &mut Vec<u8>) -> u64 {
        let length = (HEADER + self.elements.len() * ELEMENT + self.data.len()).next_multiple_of(PAGE_SIZE);
        let pages = (length / PAGE_SIZE) as u64;
        out.clear();
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&(self.elements.len() as u16).to_le_bytes());
        out.extend_from_slice(&((pages - 1) as u32).to_le_bytes());
        let mut data = HEADER + self.elements.len() * ELEMENT;
        for (flags, key, value, child) in &self.elements {
            let offset = (data - out.len()) as u32;
            if kind == BRANCH_PAGE {
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&(*key as u32).to_le_bytes());
                out.extend_from_slice(&child.to_le_bytes());
            } else {
                out.extend_from_slice(&flags.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&(*key as u32).to_le_bytes());
                out.extend_from_slice(&(*value as u32).to_le_bytes());
            }
            data += key + value;
        }
        out.extend_from_slice(&self.data);
        out.resize(length, 0);
        pages
    }
}

/// Writes one database. Buckets come in order of name, and within each its keys.
pub struct Writer<O> {
    output: O,
    layout: Option<Layout>,
    next: u64,
    page: Vec<u8>,
    leaf: Pending,
    /// From the lowest branches up.
    branches: Vec<Pending>,
    last_key: Vec<u8>,
    /// The bucket being written.
    open: Option<Vec<u8>>,
    buckets: Vec<(Vec<u8>, u64)>,
}

impl<O: Output> Writer<O> {
    /// The first pass: what it gives to `output` is not a file yet, only its [`Layout`] is of use.
    pub fn measure(output: O) -> Writer<O> {
        Writer {
            output,
            layout: None,
            next: FIRST,
            page: Vec::new(),
            leaf: Pending::default(),
            branches: Vec::new(),
            last_key: Vec::new(),
            open: None,
            buckets: Vec::new(),
        }
    }

    /// The second pass.
    ///
    /// # Errors
    /// The output's.
    pub fn new(output: O, layout: Layout) -> Result<Writer<O>, WriteError<O::Error>> {
        let mut writer = Writer::measure(output);
        writer.layout = Some(layout);
        for number in 0..2 {
            let page = meta(number, layout);
            writer.output.pages(&page).map_err(WriteError::Output)?;
        }
        let mut freelist = Vec::new();
        Pending::default().write(2, FREELIST_PAGE, &mut freelist);
        writer.output.pages(&freelist).map_err(WriteError::Output)?;
        Ok(writer)
    }

    /// Begins the next bucket.
    ///
    /// # Errors
    /// The output's; a name out of order.
    pub fn bucket(&mut self, name: &str) -> Result<(), WriteError<O::Error>> {
        self.close_bucket()?;
        if name.is_empty() || self.buckets.last().is_some_and(|(last, _)| &last[..] >= name.as_bytes()) {
            return Err(WriteError::Order);
        }
        self.open = Some(name.as_bytes().to_vec());
        Ok(())
    }

    /// Adds one element to the bucket.
    ///
    /// # Errors
    /// The output's; a key out of order or of impossible length; no bucket was begun.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), WriteError<O::Error>> {
        if self.open.is_none() || (!self.last_key.is_empty() && &self.last_key[..] >= key) {
            return Err(WriteError::Order);
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.element(0, key, value)
    }

    fn element(&mut self, flags: u32, key: &[u8], value: &[u8]) -> Result<(), WriteError<O::Error>> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(WriteError::Key(key.len()));
        }
        if value.len() > MAX_VALUE {
            return Err(WriteError::Value(value.len()));
        }
        if !self.leaf.elements.is_empty() && self.leaf.size_with(key.len() + value.len()) > PAGE_SIZE {
            self.flush_leaf()?;
        }
        self.leaf.push(flags, key, value, 0);
        Ok(())
    }

    fn flush_leaf(&mut self) -> Result<(), WriteError<O::Error>> {
        let leaf = std::mem::take(&mut self.leaf);
        let number = self.emit(&leaf, LEAF_PAGE)?;
        self.adopt(0, leaf.first_key(), number)
    }

    fn emit(&mut self, pending: &Pending, kind: u16) -> Result<u64, WriteError<O::Error>> {
        let number = self.next;
        self.next += pending.write(number, kind, &mut self.page);
        self.output.pages(&self.page).map_err(WriteError::Output)?;
        Ok(number)
    }

    /// Enters a page that was written into the branch above it.
    fn adopt(&mut self, level: usize, key: &[u8], child: u64) -> Result<(), WriteError<O::Error>> {
        if self.branches.len() == level {
            self.branches.push(Pending::default());
        }
        let branch = &mut self.branches[level];
        let full = branch.size_with(key.len()) > PAGE_SIZE && branch.elements.len() >= FEWEST;
        let done = full.then(|| branch.split_last());
        branch.push(0, key, &[], child);
        if let Some(done) = done {
            let number = self.emit(&done, BRANCH_PAGE)?;
            self.adopt(level + 1, done.first_key(), number)?;
        }
        Ok(())
    }

    /// Writes what is pending of a tree and answers its root.
    fn close_tree(&mut self) -> Result<u64, WriteError<O::Error>> {
        if self.branches.is_empty() {
            let leaf = std::mem::take(&mut self.leaf);
            return self.emit(&leaf, LEAF_PAGE);
        }
        if !self.leaf.elements.is_empty() {
            self.flush_leaf()?;
        }
        let mut level = 0;
        loop {
            let branch = std::mem::take(&mut self.branches[level]);
            let only = match &branch.elements[..] {
                [(.., child)] if level + 1 == self.branches.len() => Some(*child),
                _ => None,
            };
            if let Some(root) = only {
                self.branches.clear();
                return Ok(root);
            }
            let number = self.emit(&branch, BRANCH_PAGE)?;
            self.adopt(level + 1, branch.first_key(), number)?;
            level += 1;
        }
    }

    fn close_bucket(&mut self) -> Result<(), WriteError<O::Error>> {
        if let Some(name) = self.open.take() {
            let root = self.close_tree()?;
            self.buckets.push((name, root));
            self.last_key.clear();
        }
        Ok(())
    }

    /// Writes the root and ends the file.
    ///
    /// # Errors
    /// The output's; the content was another than the first pass saw.
    pub fn finish(mut self) -> Result<Layout, WriteError<O::Error>> {
        self.close_bucket()?;
        for (name, root) in std::mem::take(&mut self.buckets) {
            let mut value = [0; BUCKET_HEADER];
            value[..8].copy_from_slice(&root.to_le_bytes());
            self.element(BUCKET_LEAF, &name, &value)?;
        }
        let root = self.close_tree()?;
        let layout = Layout { root, pages: self.next };
        match self.layout {
            Some(expected) if expected != layout => Err(WriteError::Changed),
            _ => Ok(layout),
        }
    }
}

fn meta(number: u64, layout: Layout) -> Vec<u8> {
    let mut meta = Vec::with_capacity(META);
    for word in [MAGIC, VERSION, PAGE_SIZE as u32, 0] {
        meta.extend_from_slice(&word.to_le_bytes());
    }
    // Root, its sequence, freelist, pages, transaction.
    for long in [layout.root, 0, 2, layout.pages, number] {
        meta.extend_from_slice(&long.to_le_bytes());
    }
    meta.extend_from_slice(&fnv(&meta).to_le_bytes());
    let mut page = Vec::with_capacity(PAGE_SIZE);
    page.extend_from_slice(&number.to_le_bytes());
    page.extend_from_slice(&META_PAGE.to_le_bytes());
    page.extend_from_slice(&[0; 6]);
    page.extend_from_slice(&meta);
    page.resize(PAGE_SIZE, 0);
    page
}
