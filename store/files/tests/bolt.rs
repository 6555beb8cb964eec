//! Databases come back as they were written, and no bytes make the reader panic or run for ever.

use std::collections::BTreeMap;
use std::convert::Infallible;

use keelson_store_files::bolt::{Database, Layout, WriteError, Writer};
use proptest::prelude::*;

type Buckets = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

fn fill<O>(writer: &mut Writer<O>, buckets: &Buckets) -> Result<(), WriteError<Infallible>>
where
    O: keelson_store_files::bolt::Output<Error = Infallible>,
{
    for (name, elements) in buckets {
        writer.bucket(name)?;
        for (key, value) in elements {
            writer.put(key, value)?;
        }
    }
    Ok(())
}

fn measure(buckets: &Buckets) -> Layout {
    let mut writer = Writer::measure(|_: &[u8]| Ok::<(), Infallible>(()));
    fill(&mut writer, buckets).expect("written");
    writer.finish().expect("finished")
}

fn write(buckets: &Buckets) -> Vec<u8> {
    let layout = measure(buckets);
    let mut file = Vec::new();
    let mut writer = Writer::new(
        |pages: &[u8]| {
            file.extend_from_slice(pages);
            Ok::<(), Infallible>(())
        },
        layout,
    )
    .expect("begun");
    fill(&mut writer, buckets).expect("written");
    writer.finish().expect("both passes agree");
    assert_eq!(file.len() as u64, layout.length());
    file
}

fn read(file: Vec<u8>) -> Result<Buckets, keelson_store_files::bolt::BoltError> {
    let database = Database::open(file)?;
    let mut found = Buckets::new();
    for (name, bucket) in database.buckets()? {
        let mut cursor = database.cursor(&bucket)?;
        let elements = found.entry(String::from_utf8_lossy(&name).into_owned()).or_default();
        while let Some((key, value)) = cursor.next_element()? {
            elements.insert(key.to_vec(), value.to_vec());
        }
    }
    Ok(found)
}

fn buckets() -> impl Strategy<Value = Buckets> {
    // Lengths around what fits on a page; keys long enough for branches of branches.
    let length =
        prop_oneof![4 => 0..40usize, 2 => 900..1100usize, 1 => 4000..4200usize, 1 => 9000..9100usize];
    let key = (any::<u32>(), prop_oneof![4 => Just(0usize), 1 => 600..800usize, 1 => 2000..5000usize]);
    let key = key.prop_map(|(number, more)| {
        let mut key = number.to_be_bytes().to_vec();
        key.resize(4 + more, b'k');
        key
    });
    let value = length.prop_map(|length| vec![b'v'; length]);
    let elements = prop::collection::btree_map(key, value, 0..120);
    prop::collection::btree_map("[a-z]{1,8}", elements, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(buckets in buckets()) {
        let file = write(&buckets);
        Database::open(file.clone()).expect("opens").check().expect("every page has its place");
        prop_assert_eq!(read(file).expect("reads"), buckets);
    }

    #[test]
    fn damaged_files_end_in_content_or_an_error(
        buckets in buckets(),
        harm in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = write(&buckets);
        for (at, byte, place) in harm {
            // Anywhere, or where pages begin: headers and elements.
            let at = at.index(file.len());
            let at = if place == 0 { at } else { at / 4096 * 4096 + at % (if place == 1 { 16 } else { 120 }) };
            file[at] = byte;
        }
        if let Some(cut) = cut {
            let length = cut.index(file.len());
            file.truncate(length);
        }
        if let Ok(database) = Database::open(file.clone()) {
            // Any result will do, as long as there is one.
            let _ = database.check();
        }
        let _ = read(file);
    }

    #[test]
    fn bytes_of_no_database_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
        prop_assert!(Database::open(bytes).is_err());
    }
}

#[test]
fn many_small_elements_make_branches_of_branches_with_two_children_at_least() {
    let elements: BTreeMap<Vec<u8>, Vec<u8>> =
        (0..60_000u32).map(|number| (number.to_be_bytes().to_vec(), b"value".to_vec())).collect();
    let buckets = Buckets::from([("key".to_owned(), elements), ("meta".to_owned(), BTreeMap::new())]);
    let file = write(&buckets);
    let branches = file.chunks(4096).filter(|page| page[8] == 1);
    let children: Vec<u8> = branches.map(|page| page[10]).collect();
    assert!(children.len() >= 3, "{} branches", children.len());
    assert!(children.iter().all(|count| *count >= 2));
    assert_eq!(read(file).expect("reads"), buckets);
}

#[test]
fn content_that_changes_between_the_passes_is_noticed() {
    let one = Buckets::from([("a".to_owned(), BTreeMap::from([(b"k".to_vec(), vec![1; 5000])]))]);
    let other = Buckets::from([("a".to_owned(), BTreeMap::from([(b"k".to_vec(), vec![1; 50])]))]);
    let mut writer = Writer::new(|_: &[u8]| Ok::<(), Infallible>(()), measure(&one)).expect("begun");
    fill(&mut writer, &other).expect("written");
    assert_eq!(writer.finish(), Err(WriteError::Changed));
}

#[test]
fn impossible_content_is_refused() {
    let mut writer = Writer::measure(|_: &[u8]| Ok::<(), Infallible>(()));
    assert_eq!(writer.put(b"k", b""), Err(WriteError::Order), "no bucket yet");
    writer.bucket("b").expect("begun");
    assert_eq!(writer.put(b"", b"v"), Err(WriteError::Key(0)));
    assert_eq!(writer.put(&[0; 40_000], b"v"), Err(WriteError::Key(40_000)));
    writer.put(b"k", b"v").expect("written");
    assert_eq!(writer.put(b"k", b"v"), Err(WriteError::Order));
    assert_eq!(writer.bucket("a"), Err(WriteError::Order));
    assert!(writer.finish().is_ok(), "what was written before is whole");
}
