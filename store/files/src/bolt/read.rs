//! Reading: pages by number, buckets by name, elements in order.
//!
//! Hazard: a hostile file may point anywhere. Every offset is checked, a cursor's depth is bounded and it visits no more
//! pages than the file has, so reading ends; keys must ascend, so no element is seen twice.

use std::ops::Range;

use super::{
    BRANCH_PAGE, BUCKET_HEADER, BUCKET_LEAF, BoltError, ELEMENT, FREELIST_PAGE, HEADER, LEAF_PAGE, MAGIC,
    META, META_PAGE, NO_FREELIST, Source, VERSION, fnv,
};

/// More levels than any tree has.
const DEPTH: usize = 64;
/// Page sizes that occur, as powers of two.
const PAGE_SIZES: Range<u32> = 9..25;

#[derive(Clone, Copy, Debug)]
struct Meta {
    page_size: u32,
    root: u64,
    freelist: u64,
    pages: u64,
    transaction: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

impl Meta {
    /// From the first bytes of a meta page.
    fn parse(page: &[u8]) -> Result<Meta, BoltError> {
        let flags = u16_at(page, 8).ok_or(BoltError::Invalid)?;
        let meta = page.get(HEADER..HEADER + META).ok_or(BoltError::Invalid)?;
        let word = |at| u32_at(meta, at).ok_or(BoltError::Invalid);
        let long = |at| u64_at(meta, at).ok_or(BoltError::Invalid);
        if flags & META_PAGE == 0 || word(0)? != MAGIC {
            return Err(BoltError::Invalid);
        }
        if word(4)? != VERSION {
            return Err(BoltError::Version);
        }
        let page_size = word(8)?;
        let known = page_size.is_power_of_two() && PAGE_SIZES.contains(&page_size.trailing_zeros());
        if long(56)? != fnv(&meta[..56]) || !known {
            return Err(BoltError::Invalid);
        }
        Ok(Meta { page_size, root: long(16)?, freelist: long(32)?, pages: long(40)?, transaction: long(48)? })
    }
}

/// A page in memory, its overflow included.
struct Page {
    number: u64,
    flags: u16,
    count: usize,
    overflow: u64,
    bytes: Vec<u8>,
}

impl Page {
    fn bad(&self, problem: &'static str) -> BoltError {
        BoltError::Page { page: self.number, problem }
    }

    /// A page within a bucket's value, or read from the file.
    fn parse(number: u64, bytes: Vec<u8>) -> Result<Page, BoltError> {
        let short = || BoltError::Page { page: number, problem: "it is shorter than a page's header" };
        let flags = u16_at(&bytes, 8).ok_or_else(short)?;
        let count = u16_at(&bytes, 10).ok_or_else(short)?;
        let overflow = u32_at(&bytes, 12).ok_or_else(short)?;
        Ok(Page { number, flags, count: usize::from(count), overflow: u64::from(overflow), bytes })
    }

    fn is_leaf(&self) -> bool {
        self.flags & LEAF_PAGE != 0
    }

    fn slice(&self, element: usize, offset: u32, length: u32) -> Result<&[u8], BoltError> {
        let from = element.checked_add(offset as usize);
        let range = from.and_then(|from| Some(from..from.checked_add(length as usize)?));
        range.and_then(|range| self.bytes.get(range)).ok_or_else(|| self.bad("an element lies outside of it"))
    }

    fn number(&self, at: usize) -> Result<u32, BoltError> {
        u32_at(&self.bytes, at).ok_or_else(|| self.bad("its elements lie outside of it"))
    }

    /// Key and child of a branch's element.
    fn branch(&self, index: usize) -> Result<(&[u8], u64), BoltError> {
        let at = HEADER + index * ELEMENT;
        let key = self.slice(at, self.number(at)?, self.number(at + 4)?)?;
        let child = u64_at(&self.bytes, at + 8).ok_or_else(|| self.bad("its elements lie outside of it"))?;
        Ok((key, child))
    }

    /// Flags, key and value of a leaf's element.
    fn leaf(&self, index: usize) -> Result<(u32, &[u8], &[u8]), BoltError> {
        let at = HEADER + index * ELEMENT;
        let (offset, key_length, value_length) =
            (self.number(at + 4)?, self.number(at + 8)?, self.number(at + 12)?);
        let both = key_length.checked_add(value_length).ok_or_else(|| self.bad("an element is too long"))?;
        let both = self.slice(at, offset, both)?;
        let (key, value) = both.split_at(key_length as usize);
        Ok((self.number(at)?, key, value))
    }
}

/// Where a bucket's tree begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    root: Root,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Root {
    Page(u64),
    /// The bytes of its only page.
    Inline(Vec<u8>),
}

/// An open database.
pub struct Database<S> {
    source: S,
    meta: Meta,
    length: u64,
}

impl<S: Source> Database<S> {
    /// Finds the newest sound meta page.
    ///
    /// # Errors
    /// IO; no database; one of another version.
    pub fn open(source: S) -> Result<Database<S>, BoltError> {
        let length = source.length()?;
        let at = |position: u64| -> Result<Meta, BoltError> {
            let mut page = [0; HEADER + META];
            if position.saturating_add(page.len() as u64) > length {
                return Err(BoltError::Invalid);
            }
            source.read_at(position, &mut page)?;
            Meta::parse(&page)
        };
        let first = at(0);
        let second = match &first {
            Ok(meta) => at(u64::from(meta.page_size)),
            // The first is damaged: its page size is not known.
            Err(_) => {
                let mut tries = PAGE_SIZES.map(|bits| at(1 << bits));
                tries.find(Result::is_ok).unwrap_or(Err(BoltError::Invalid))
            }
        };
        let meta = match (first, second) {
            (Ok(first), Ok(second)) if second.transaction > first.transaction => second,
            (Ok(meta), _) | (Err(_), Ok(meta)) => meta,
            (Err(error), Err(_)) => return Err(error),
        };
        let database = Database { source, meta, length };
        if database.size() > database.length {
            return Err(BoltError::Page { page: meta.pages, problem: "the file is shorter than its pages" });
        }
        Ok(database)
    }

    /// Bytes of all pages in use or free: what a snapshot of it measures.
    pub fn size(&self) -> u64 {
        self.meta.pages.saturating_mul(u64::from(self.meta.page_size))
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u32 {
        self.meta.page_size
    }

    fn page(&self, number: u64) -> Result<Page, BoltError> {
        let bad = |problem| BoltError::Page { page: number, problem };
        if number < 2 || number >= self.meta.pages {
            return Err(bad("it lies outside of the file"));
        }
        let size = u64::from(self.meta.page_size);
        let mut bytes = vec![0; self.meta.page_size as usize];
        self.source.read_at(number * size, &mut bytes)?;
        let mut page = Page::parse(number, bytes)?;
        if page.number != u64_at(&page.bytes, 0).unwrap_or(number) {
            return Err(bad("it says it is another page"));
        }
        let pages = page.overflow + 1;
        if pages > self.meta.pages - number {
            return Err(bad("it runs on behind the file's end"));
        }
        if pages > 1 {
            let length = usize::try_from(pages * size).map_err(|_| bad("it is too large"))?;
            page.bytes.resize(length, 0);
            self.source.read_at((number + 1) * size, &mut page.bytes[size as usize..])?;
        }
        Ok(page)
    }

    /// The bucket of buckets.
    pub fn root(&self) -> Bucket {
        Bucket { root: Root::Page(self.meta.root) }
    }

    /// Elements of a bucket in order.
    ///
    /// # Errors
    /// A damaged page.
    pub fn cursor(&self, bucket: &Bucket) -> Result<Cursor<'_, S>, BoltError> {
        let page = match &bucket.root {
            Root::Page(number) => self.page(*number)?,
            Root::Inline(bytes) => Page::parse(0, bytes.clone())?,
        };
        let mut cursor = Cursor { database: self, stack: Vec::new(), visited: 0, last: None, started: false };
        cursor.descend(page)?;
        Ok(cursor)
    }

    /// Name and place of every bucket, in order.
    ///
    /// # Errors
    /// A damaged page; an element of the root that is no bucket.
    pub fn buckets(&self) -> Result<Vec<(Vec<u8>, Bucket)>, BoltError> {
        let mut buckets = Vec::new();
        let mut cursor = self.cursor(&self.root())?;
        while let Some((flags, key, value)) = cursor.advance()? {
            if flags & BUCKET_LEAF == 0 {
                return Err(BoltError::Page {
                    page: self.meta.root,
                    problem: "a plain value among the buckets",
                });
            }
            let short = BoltError::Page { page: self.meta.root, problem: "a bucket's header is cut off" };
            let Some(root) = u64_at(value, 0).filter(|_| value.len() >= BUCKET_HEADER) else {
                return Err(short);
            };
            let root =
                if root == 0 { Root::Inline(value[BUCKET_HEADER..].to_vec()) } else { Root::Page(root) };
            buckets.push((key.to_vec(), Bucket { root }));
        }
        Ok(buckets)
    }

    /// Looks a bucket up.
    ///
    /// # Errors
    /// A damaged page.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>, BoltError> {
        let found = self.buckets()?.into_iter().find(|(found, _)| found == name);
        Ok(found.map(|(_, bucket)| bucket))
    }

    /// Looks one value up.
    ///
    /// # Errors
    /// A damaged page.
    pub fn get(&self, bucket: &Bucket, wanted: &[u8]) -> Result<Option<Vec<u8>>, BoltError> {
        let mut cursor = self.cursor(bucket)?;
        while let Some((key, value)) = cursor.next_element()? {
            if key == wanted {
                return Ok(Some(value.to_vec()));
            }
        }
        Ok(None)
    }

    /// Whether every page is in one tree or free, and none in two places. Memory: a bit a page.
    ///
    /// # Errors
    /// The first page that is not.
    pub fn check(&self) -> Result<(), BoltError> {
        let mut seen = Seen { bits: vec![0; usize::try_from(self.meta.pages / 64 + 1).unwrap_or(0)] };
        seen.mark(0, 1, "it is used twice")?;
        seen.mark(1, 1, "it is used twice")?;
        let listed = self.meta.freelist != NO_FREELIST;
        if listed {
            self.check_freelist(&mut seen)?;
        }
        let mut trees = vec![self.meta.root];
        for (_, bucket) in self.buckets()? {
            match bucket.root {
                Root::Page(number) => trees.push(number),
                inline @ Root::Inline(_) => {
                    let mut cursor = self.cursor(&Bucket { root: inline })?;
                    while cursor.next_element()?.is_some() {}
                }
            }
        }
        for tree in trees {
            let mut cursor = self.cursor(&Bucket { root: Root::Page(tree) })?;
            cursor.each_page(&mut seen)?;
        }
        match (2..self.meta.pages).find(|page| listed && !seen.has(*page)) {
            Some(page) => Err(BoltError::Page { page, problem: "unreachable unfreed" }),
            None => Ok(()),
        }
    }

    fn check_freelist(&self, seen: &mut Seen) -> Result<(), BoltError> {
        let page = self.page(self.meta.freelist)?;
        if page.flags & FREELIST_PAGE == 0 {
            return Err(page.bad("it is no freelist"));
        }
        seen.mark(page.number, page.overflow + 1, "it is used twice")?;
        let (first, count) = if page.count == 0xffff {
            let count = u64_at(&page.bytes, HEADER).ok_or_else(|| page.bad("it is cut off"))?;
            (HEADER + 8, usize::try_from(count).map_err(|_| page.bad("it lists too many pages"))?)
        } else {
            (HEADER, page.count)
        };
        for index in 0..count {
            let at = index.checked_mul(8).and_then(|at| at.checked_add(first));
            let free = at.and_then(|at| u64_at(&page.bytes, at)).ok_or_else(|| page.bad("it is cut off"))?;
            if free >= self.meta.pages {
                return Err(page.bad("it lists a page outside of the file"));
            }
            seen.mark(free, 1, "it is free twice, or free and used")?;
        }
        Ok(())
    }
}

/// Pages found so far.
struct Seen {
    bits: Vec<u64>,
}

impl Seen {
    fn has(&self, page: u64) -> bool {
        self.bits[(page / 64) as usize] & 1 << (page % 64) != 0
    }

    fn mark(&mut self, page: u64, count: u64, problem: &'static str) -> Result<(), BoltError> {
        for page in page..page + count {
            if self.has(page) {
                return Err(BoltError::Page { page, problem });
            }
            self.bits[(page / 64) as usize] |= 1 << (page % 64);
        }
        Ok(())
    }
}

/// Key and value.
pub type Element<'a> = (&'a [u8], &'a [u8]);
/// Flags, key and value.
type Flagged<'a> = (u32, &'a [u8], &'a [u8]);

/// A walk over one bucket.
pub struct Cursor<'a, S> {
    database: &'a Database<S>,
    /// From the root to the leaf, with the element each stands at.
    stack: Vec<(Page, usize)>,
    visited: u64,
    last: Option<Vec<u8>>,
    started: bool,
}

impl<S: Source> Cursor<'_, S> {
    /// Goes down to the first leaf below a page.
    fn descend(&mut self, mut page: Page) -> Result<(), BoltError> {
        loop {
            self.visited += 1;
            if self.visited > self.database.meta.pages || self.stack.len() == DEPTH {
                return Err(page.bad("the tree has a circle"));
            }
            if page.is_leaf() {
                self.stack.push((page, 0));
                return Ok(());
            }
            if page.flags & BRANCH_PAGE == 0 || page.count == 0 {
                return Err(page.bad("it is neither branch nor leaf"));
            }
            let (_, child) = page.branch(0)?;
            self.stack.push((page, 0));
            page = self.database.page(child)?;
        }
    }

    /// Moves to the next element and answers whether there is one.
    fn step(&mut self) -> Result<bool, BoltError> {
        if self.started
            && let Some((_, index)) = self.stack.last_mut()
        {
            *index += 1;
        }
        self.started = true;
        loop {
            let Some((page, index)) = self.stack.last_mut() else { return Ok(false) };
            if *index < page.count {
                if page.is_leaf() {
                    return Ok(true);
                }
                let (_, child) = page.branch(*index)?;
                let child = self.database.page(child)?;
                self.descend(child)?;
                continue;
            }
            self.stack.pop();
            if let Some((_, index)) = self.stack.last_mut() {
                *index += 1;
            }
        }
    }

    /// Flags, key and value of the next element.
    fn advance(&mut self) -> Result<Option<Flagged<'_>>, BoltError> {
        if !self.step()? {
            return Ok(None);
        }
        let Some((page, index)) = self.stack.last() else { return Ok(None) };
        let (flags, key, value) = page.leaf(*index)?;
        if self.last.as_deref().is_some_and(|last| last >= key) {
            return Err(page.bad("its keys do not ascend"));
        }
        let last = self.last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(key);
        Ok(Some((flags, key, value)))
    }

    /// Key and value of the next element; buckets within the bucket are passed over.
    ///
    /// # Errors
    /// A damaged page.
    pub fn next_element(&mut self) -> Result<Option<Element<'_>>, BoltError> {
        loop {
            match self.advance()? {
                None => return Ok(None),
                Some((flags, ..)) if flags & BUCKET_LEAF != 0 => {}
                Some(_) => break,
            }
        }
        let Some((page, index)) = self.stack.last() else { return Ok(None) };
        let (_, key, value) = page.leaf(*index)?;
        Ok(Some((key, value)))
    }

    /// Walks the whole tree and marks its pages.
    fn each_page(&mut self, seen: &mut Seen) -> Result<(), BoltError> {
        let mut known: Vec<u64> = Vec::new();
        loop {
            for (depth, (page, _)) in self.stack.iter().enumerate() {
                if known.get(depth) != Some(&page.number) {
                    known.truncate(depth);
                    known.push(page.number);
                    seen.mark(page.number, page.overflow + 1, "it is used twice")?;
                }
            }
            if self.advance()?.is_none() {
                return Ok(());
            }
        }
    }
}
