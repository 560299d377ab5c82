use std::{fs, path::Path};

use ledger::audit::{holds, plant, roots, seal};
use proptest::prelude::*;

use super::*;
use crate::{
    audit::{
        evidence::EvidenceError,
        plan::{PlannedStage, Terms, prompt_hash},
        rows::{chunk_root, token_leaves},
    },
    request::Sampling,
};

const MODEL: Digest = Digest([9; 32]);
const ACCOUNT: Address = [7; 20];
const NEVER: Rate = Rate::from_bits(0);

fn config(directory: &Path) -> BookConfig {
    BookConfig {
        directory: directory.to_owned(),
        limit_bytes: 1 << 30,
        account: ACCOUNT,
        model: Arc::new(OnceLock::from(MODEL)),
        quantisation: Quantisation::Q8,
        layers: 5,
        plants: NEVER,
    }
}

fn open(directory: &Path) -> Book {
    Book::open(config(directory)).expect("opens")
}

fn tokens(to: u32) -> Vec<u32> {
    (0..to).map(|n| n * 7 % 60).collect()
}

/// A session of a stage that tokens come into, made `number` milliseconds from now.
fn plan(number: u64, prompt: u32) -> Plan {
    let salt = Digest([3; 32]);
    let stage =
        |from, to, embedding, head| PlannedStage { node: Digest([to as u8; 32]), from, to, embedding, head };
    Plan {
        session: format!("{:016x}{:016x}", now() * 1000 + number, number),
        gateway: Digest([1; 32]),
        terms: Terms {
            model: MODEL,
            quantisation: Quantisation::Q8,
            salt,
            prompt_hash: prompt_hash(&salt, &tokens(prompt)),
        },
        prompt_length: prompt,
        max_tokens: 1000,
        stop_tokens: Vec::new(),
        sampling: Sampling::default(),
        stages: vec![stage(0, 2, true, false), stage(2, 5, false, true)],
    }
}

/// What comes into a chunk: its root and the rows.
fn came(from: u32, to: u32) -> (Digest, Vec<Bytes>) {
    let tokens = &tokens(to)[from as usize..];
    let leaves = token_leaves(&MODEL, from, tokens);
    let rows = tokens.iter().map(|token| Bytes::copy_from_slice(&token.to_le_bytes()));
    (chunk_root(&leaves), rows.collect())
}

fn out_root(from: u32) -> Digest {
    Digest([from as u8 + 1; 32])
}

fn rows(book: &Book, from: u32, to: u32) {
    let (root, rows) = came(from, to);
    book.note(Entry::Rows { model: MODEL, root, rows });
}

/// Signs the chunk that ends at `to`.
fn sign(book: &Book, plan: &Plan, to: u32) {
    let from = (to - 1) / CHUNK * CHUNK;
    let hash = plan.hash();
    book.note(Entry::Signed(Box::new(Signed {
        plan: plan.clone(),
        hash,
        stage: 0,
        tokens: true,
        to,
        in_root: came(from, to).0,
        out_root: out_root(from),
        commitment: Digest(ledger::eip712::keccak(&[&hash.0[..], &to.to_be_bytes()].concat())),
    })));
}

/// A whole session: what comes in and the signatures.
fn session(book: &Book, plan: &Plan, to: u32) {
    for from in (0..to).step_by(CHUNK as usize) {
        let end = (from + CHUNK).min(to);
        rows(book, from, end);
        sign(book, plan, end);
        // So that nothing is left out for want of time.
        book.flush();
    }
}

fn sealed(book: &Book) -> Sealed {
    book.seal().expect("is written").expect("has something")
}

fn over(book: &Book, sealed: &Sealed) {
    book.set(Sealed { standing: Standing::Over, ..sealed.clone() }).expect("is written");
    book.clear().expect("is removed");
}

#[test]
fn leaves_are_proved_by_what_is_kept() {
    let folder = tempfile::tempdir().expect("a directory");
    let book = open(folder.path());
    let long = plan(1, 100);
    session(&book, &long, 150);
    session(&book, &plan(2, 3), 10);
    assert_eq!(book.waiting(), 4);
    let root = sealed(&book);
    assert_eq!((root.count, root.prompts, book.waiting()), (4, 1, 0));
    let tree = book.tree(root.volume).expect("leaves");
    assert_eq!(tree.root(), root.root.0);
    for index in 0..4 {
        let held = book.leaf(root.volume, index).expect("a leaf");
        let proof = tree.proof(index as usize).expect("a proof");
        assert!(holds(&root.root.0, 4, index as usize, held.chunk.leaf(&ACCOUNT), &proof));
        let evidence = book.evidence(root.volume, index).expect("is there");
        assert_eq!(evidence.to(), held.chunk.to);
        let exhibit = book.exhibit(root.volume, index).expect("is there");
        let pieces: Vec<u8> = (0..exhibit.bytes())
            .step_by(37)
            .flat_map(|offset| exhibit.read(offset, 37).expect("is read"))
            .collect();
        assert_eq!(Evidence::decode(&pieces), Ok(evidence));
        assert!(exhibit.read(exhibit.bytes() + 1, u64::MAX).expect("is read").is_empty());
    }
    let last = book.leaf(root.volume, 2).expect("a leaf").chunk;
    let outs = [0, 64, 128].map(out_root);
    assert_eq!((last.from, last.to, last.plan), (128, 150, long.hash().0));
    assert_eq!(last.sealed_roots, seal(&roots(outs.iter().map(|root| &root.0))));
    assert!(book.leaf(root.volume, 4).is_none() && book.leaf(9, 0).is_none());
    assert!(matches!(book.evidence(root.volume, 4), Err(BookError::NoLeaf)));
    // Sealed and posted, it is the same after a restart.
    book.set(Sealed { standing: Standing::Sent, ..root.clone() }).expect("is written");
    drop(book);
    let again = open(folder.path());
    assert_eq!(again.sealed().len(), 1);
    assert_eq!(again.sealed()[0].standing, Standing::Sent);
    assert_eq!(again.tree(root.volume).expect("leaves").root(), root.root.0);
    assert!(again.evidence(root.volume, 3).is_ok());
    session(&again, &plan(3, 3), 10);
    assert!(sealed(&again).volume > root.volume);
}

#[test]
fn what_was_computed_for_another_session_is_found() {
    let folder = tempfile::tempdir().expect("a directory");
    let book = open(folder.path());
    session(&book, &plan(1, 100), 100);
    let next = plan(2, 100);
    sign(&book, &next, 64);
    sign(&book, &next, 100);
    book.flush();
    let bytes = book.bytes();
    let root = sealed(&book);
    assert_eq!(root.count, 4);
    assert!((0..4).all(|index| book.evidence(root.volume, index).is_ok()));
    // In the volume after it, it is found where it is; in the one after that, it has to be there again.
    for number in 3..6 {
        let next = plan(number, 100);
        sign(&book, &next, 64);
        sign(&book, &next, 100);
        book.flush();
        let after = sealed(&book);
        assert_eq!(after.count, 2);
        over(&book, &Sealed { volume: after.volume - 1, ..after.clone() });
        assert!((0..2).all(|index| book.evidence(after.volume, index).is_ok()), "{number}");
    }
    assert!(book.bytes() < 3 * bytes);
    assert_eq!(book.sealed().len(), 2, "one that is over stays for the one after it");
}

#[test]
fn what_cannot_be_proved_is_not_put_in() {
    let folder = tempfile::tempdir().expect("a directory");
    let book = open(folder.path());
    // What came in is missing.
    sign(&book, &plan(1, 3), 10);
    // A chunk is missing, and with it all that follows.
    let gap = plan(2, 3);
    rows(&book, 0, 64);
    rows(&book, 64, 128);
    sign(&book, &gap, 128);
    sign(&book, &gap, 64);
    // Another model, another quantisation, another prompt, no plan, and a session of long ago and of next year.
    let mut other = [3, 4, 5, 6, 7, 8].map(|number| plan(number, 3));
    other[0].terms.model = Digest([1; 32]);
    other[1].terms.quantisation = Quantisation::Q4;
    other[2].terms.prompt_hash = Digest([1; 32]);
    other[3].stages[1].embedding = true;
    other[4].session = "0".repeat(32);
    other[5].session = format!("{:016x}{:016x}", (now() + 365 * 86_400) * 1000, 1);
    other.iter().for_each(|plan| session(&book, plan, 64));
    book.flush();
    assert_eq!(book.waiting(), 0);
    // The same session a second time.
    let again = plan(9, 3);
    session(&book, &again, 64);
    book.note(Entry::Over { plan: again.hash(), stage: 0 });
    session(&book, &again, 64);
    assert_eq!(book.waiting(), 1);
    let root = sealed(&book);
    session(&book, &again, 64);
    book.note(Entry::Over { plan: again.hash(), stage: 0 });
    session(&book, &again, 64);
    assert_eq!(book.waiting(), 0);
    // Nor once nothing is left of the first time.
    over(&book, &root);
    session(&book, &plan(10, 3), 64);
    let last = sealed(&book);
    over(&book, &last);
    assert_eq!(book.sealed().len(), 1);
    let mut old = again;
    old.session = format!("{:016x}{:016x}", root.time * 1000 - 1, 1);
    session(&book, &old, 64);
    assert_eq!(book.waiting(), 0);
}

#[test]
fn a_full_book_takes_no_more_until_there_is_room() {
    let folder = tempfile::tempdir().expect("a directory");
    let book = Book::open(BookConfig { limit_bytes: 3000, ..config(folder.path()) }).expect("opens");
    (0..20).for_each(|number| session(&book, &plan(number, 3), 64 - number as u32));
    let kept = book.waiting();
    assert!(kept > 0 && kept < 20, "{kept}");
    assert!(book.bytes() <= 3000);
    let first = sealed(&book);
    assert_eq!(first.count as usize, kept);
    assert!((0..first.count).all(|index| book.evidence(first.volume, index).is_ok()));
    session(&book, &plan(30, 3), 40);
    assert_eq!(book.waiting(), 0);
    assert!(book.seal().expect("is written").is_none());
}

#[test]
fn planted_faults_are_no_results() {
    let folder = tempfile::tempdir().expect("a directory");
    let plants = Rate::from_bits(u32::MAX);
    let book = Book::open(BookConfig { plants, ..config(folder.path()) }).expect("opens");
    session(&book, &plan(1, 3), 64);
    let root = sealed(&book);
    let held = book.leaf(root.volume, 0).expect("a leaf");
    let salt = held.salt.expect("a salt");
    assert_eq!(held.chunk.sealed_roots, seal(&plant(&ACCOUNT, &salt)));
    assert!(book.evidence(root.volume, 0).is_ok());
}

/// A disk that takes nothing: sessions that run are given up, and what was durable stays.
#[test]
fn a_disk_that_fails_costs_what_it_failed_for() {
    let folder = tempfile::tempdir().expect("a directory");
    let book = open(folder.path());
    session(&book, &plan(1, 3), 64);
    let path = volume::rows_path(folder.path(), 0);
    let whole = fs::read(&path).expect("is read");
    fs::write(&path, &whole[..10]).expect("is written");
    let root = sealed(&book);
    assert!(matches!(book.evidence(root.volume, 0), Err(BookError::File { .. })));
    drop(book);
    // Nobody was told of that root, so it is given up.
    let again = open(folder.path());
    assert!(again.sealed().is_empty() && again.tree(0).is_none());
    session(&again, &plan(2, 3), 64);
    let root = sealed(&again);
    assert!(again.evidence(root.volume, 0).is_ok());
    fs::write(volume::rows_path(folder.path(), root.volume), vec![0; 10_000]).expect("is written");
    let damaged = again.evidence(root.volume, 0);
    assert!(matches!(damaged, Err(BookError::Damaged(EvidenceError::Malformed(_)))), "{damaged:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_what_it_had_no_room_for() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = volume::rows_path(folder.path(), 0);
    std::os::unix::fs::symlink("/dev/full", path).expect("is linked");
    let book = open(folder.path());
    session(&book, &plan(1, 3), 150);
    assert_eq!((book.waiting(), book.bytes()), (0, 0));
    // The next volume is elsewhere.
    assert_eq!(sealed(&book).standing, Standing::Over);
    session(&book, &plan(2, 3), 150);
    let root = sealed(&book);
    assert_eq!(root.count, 3);
    assert!((0..3).all(|index| book.evidence(root.volume, index).is_ok()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever an interrupted write leaves: leaves that are there are proved.
    #[test]
    fn a_torn_end_is_cut_off(log: prop::sample::Index, extra in prop::collection::vec(any::<u8>(), 0..40)) {
        let folder = tempfile::tempdir().expect("a directory");
        let book = open(folder.path());
        (0..4).for_each(|number| session(&book, &plan(number, 3), 60 + 10 * number as u32));
        let all = book.waiting();
        drop(book);
        let path = folder.path().join("0.log");
        let whole = fs::read(&path).expect("is read");
        let mut torn = whole[..log.index(whole.len() + 1)].to_vec();
        torn.extend_from_slice(&extra);
        fs::write(&path, torn).expect("is written");
        let book = open(folder.path());
        let left = book.waiting();
        prop_assert!(left <= all);
        session(&book, &plan(9, 3), 64);
        prop_assert_eq!(book.waiting(), left + 1);
        let root = sealed(&book);
        prop_assert_eq!(root.count as usize, left + 1);
        for index in 0..root.count {
            prop_assert!(book.evidence(root.volume, index).is_ok());
        }
    }
}
