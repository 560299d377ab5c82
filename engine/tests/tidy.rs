//! Rules of the house that no compiler knows, held over every tracked file of the repository.
//!
//! A rule's exceptions stand in a list here, each with its reason. The lists are ratchets: an exception
//! that nothing needs any more fails too, so they only shrink.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// All that may stand at the top of the repository.
const TOP_LEVEL: [&str; 20] = [
    ".ci",
    ".config",
    ".git",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "bench",
    "clippy.toml",
    "deny.toml",
    "docs",
    "engine",
    "kernels",
    "ledger",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "shard-planner",
    "transport",
];

/// Longest Rust or Python file, its test modules not counted.
const FILE_LINES: usize = 600;
/// Longer files, and why each is one file.
const LONG_FILES: [(&str, &str); 0] = [];

/// Longest function, from its `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;
/// Longer functions as `file: name`, and why each is one function.
const LONG_FUNCTIONS: [(&str, &str); 0] = [];

/// The only files with `unsafe`, and what for.
const UNSAFE_FILES: [(&str, &str); 15] = [
    ("kernels/emu/driver/src/boundary.rs", "the functions of a C library"),
    ("kernels/emu/driver/src/control.rs", "loading that library"),
    ("kernels/emu/driver/tests/driver/raw.rs", "calls that `cudarc` leaves unsafe"),
    ("kernels/emu/src/machine/wide.rs", "calls of code for wide vectors"),
    ("kernels/src/cpu/amx.rs", "tile instructions"),
    ("kernels/src/cpu/avx2.rs", "vector instructions"),
    ("kernels/src/cpu/avx512.rs", "vector instructions"),
    ("kernels/src/cpu/memory.rs", "slices of shared mappings"),
    ("kernels/src/cpu/parts.rs", "disjoint parts of one slice"),
    ("kernels/src/cpu/pool.rs", "borrowed tasks on long-lived threads"),
    ("kernels/src/cuda/driver.rs", "calls of the NVIDIA driver"),
    ("ledger/keccak/src/x86.rs", "vector instructions"),
    ("transport/src/rdma/verbs.rs", "calls of librdmacm"),
    ("transport/src/rdma/verbs/memory.rs", "memory that devices write"),
    ("transport/src/rdma/verbs/pair.rs", "calls of libibverbs"),
];

/// Files with a test that only runs when asked for, and where it is covered instead.
const IGNORED_TESTS: [(&str, &str); 1] =
    [("engine/src/gateway/tests/clients.rs", "the same script runs against the whole program in `.ci/run`")];

/// Crate roots that rule out `unsafe` altogether.
const SAFE_ROOTS: [&str; 5] = [
    "bench/src/lib.rs",
    "engine/src/lib.rs",
    "engine/src/main.rs",
    "ledger/src/lib.rs",
    "shard-planner/src/lib.rs",
];

/// Text that nobody checks in; in two halves, so that this file may hold it.
const UNFINISHED: [(&str, &str); 5] =
    [("todo", "!("), ("unimplemented", "!("), ("dbg", "!("), ("FIX", "ME"), ("XX", "X")];

/// Directories that exist on one machine only.
const MACHINE_PATHS: [&str; 3] = ["work", "root", "home"];

static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let mut sources: Vec<Source> = tracked().into_iter().filter_map(Source::read).collect();
    let tests: BTreeSet<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        let stem = source.path.trim_end_matches(".rs").trim_end_matches("/mod");
        if tests.iter().any(|test| stem == test || stem.starts_with(&format!("{test}/"))) {
            source.is_test = true;
        }
    }
    sources
});

#[test]
fn the_top_level_is_a_short_list() {
    let names: BTreeSet<String> =
        tracked().iter().filter_map(|path| path.split('/').next().map(str::to_owned)).collect();
    let unknown = names.iter().filter(|name| !TOP_LEVEL.contains(&name.as_str()));
    report(unknown.map(|name| {
        format!("{name}: move it into the crate it belongs to, or into docs/; the top level stays short")
    }));
}

#[test]
fn files_are_short() {
    let long = |source: &&Source| source.is_program() && source.lines_without_tests() > FILE_LINES;
    let long: Vec<(String, String)> = SOURCES
        .iter()
        .filter(long)
        .map(|source| {
            let lines = source.lines_without_tests();
            let advice =
                format!("{lines} lines without tests, at most {FILE_LINES}: split it by what it does");
            (source.path.clone(), format!("{}: {advice}", source.path))
        })
        .collect();
    ratchet(&long, &LONG_FILES);
}

#[test]
fn functions_are_short() {
    let long: Vec<(String, String)> = rust()
        .flat_map(|source| source.functions().into_iter().map(move |function| (source, function)))
        .filter(|(_, function)| function.lines > FUNCTION_LINES)
        .map(|(source, Function { name, line, lines })| {
            let advice = format!("`{name}` has {lines} lines, at most {FUNCTION_LINES}: name its parts");
            (format!("{}: {name}", source.path), format!("{}:{line}: {advice}", source.path))
        })
        .collect();
    ratchet(&long, &LONG_FUNCTIONS);
}

#[test]
fn nothing_is_unfinished() {
    report(SOURCES.iter().flat_map(|source| {
        let marks = UNFINISHED.map(|(first, second)| format!("{first}{second}"));
        source.find(move |line| {
            let mark = marks.iter().find(|mark| has_word(line, mark))?;
            Some(format!("`{mark}`: finish it, or leave it out"))
        })
    }));
}

#[test]
fn every_test_runs() {
    let mark = concat!("#[", "ignore");
    let ignored: Vec<(String, String)> = rust()
        .filter_map(|source| {
            let index = source.code.iter().position(|line| line.contains(mark))?;
            let advice =
                "an ignored test tests nothing: fix it, drop it, or let it say what it skips and why";
            Some((source.path.clone(), source.at(index, advice)))
        })
        .collect();
    ratchet(&ignored, &IGNORED_TESTS);
}

#[test]
fn lints_are_switched_off_with_a_reason() {
    let mark = concat!("[", "allow(");
    report(rust().flat_map(|source| {
        source.find_code(move |line| {
            line.contains(mark)
                .then(|| "use `expect` with a reason: it fails once it is no longer needed".to_owned())
        })
    }));
}

#[test]
fn unsafe_code_stands_where_it_is_listed() {
    let with_unsafe: Vec<(String, String)> = rust()
        .filter_map(|source| {
            let index = source.code.iter().position(|line| has_word(line, "unsafe"))?;
            let advice = "`unsafe` outside of the listed files: use a safe wrapper";
            Some((source.path.clone(), source.at(index, advice)))
        })
        .collect();
    ratchet(&with_unsafe, &UNSAFE_FILES);
}

#[test]
fn unsafe_blocks_say_why_they_are_sound() {
    report(rust().flat_map(|source| {
        let opens = |line: &str| {
            has_word(line, "unsafe") && (line.contains("unsafe {") || line.contains("unsafe impl"))
        };
        let bare = source.code.iter().enumerate().filter(move |(index, line)| {
            opens(line) && !source.comment_above(*index).any(|comment| comment.contains("SAFETY: "))
        });
        bare.map(|(index, _)| {
            source.at(index, "write `// SAFETY: …` right above: which promise of whom makes this sound")
        })
    }));
}

#[test]
fn safe_crates_say_so() {
    let mark = "#![forbid(unsafe_code)]";
    report(SAFE_ROOTS.iter().filter_map(|root| {
        let Some(source) = SOURCES.iter().find(|source| source.path == *root) else {
            return Some(format!("{root}: gone; take it from SAFE_ROOTS in this test"));
        };
        let mut first = source.code.iter().map(|line| line.trim()).filter(|line| !line.is_empty());
        let holds = first.by_ref().take_while(|line| line.starts_with("#![")).any(|line| line == mark);
        (!holds).then(|| format!("{root}:1: put `{mark}` under the crate's documentation"))
    }));
}

#[test]
fn nothing_unwraps_outside_of_tests() {
    let mark = concat!(".unw", "rap()");
    report(rust().filter(|source| source.path.contains("/src/")).flat_map(|source| {
        source.find_product(move |line| {
            line.contains(mark).then(|| {
                "return an error; for our own invariant, `expect` with the sentence that holds".to_owned()
            })
        })
    }));
}

#[test]
fn no_path_of_one_machine() {
    report(SOURCES.iter().flat_map(|source| {
        let scratch = !source.is_test && !source.is_script();
        source.find(move |line| {
            let directory = MACHINE_PATHS.iter().find(|name| has_path(line, name));
            let directory = directory.copied().or((scratch && has_path(line, "tmp")).then_some("tmp"))?;
            Some(format!("a path under `{directory}` exists on one machine: make it relative, or an option"))
        })
    }));
}

#[test]
fn the_masks_see_code_and_tests() {
    let text = "fn a() { \"unsafe { }\"; '\"'; /* { */ b::<'x>() } // unsafe\n\
                #[cfg(test)]\nmod t {\n    r#\"}\"#;\n}\nfn c() {}\n";
    let source = Source::new("x/src/y.rs".to_owned(), text.to_owned());
    assert!(source.code.iter().all(|line| !line.contains("unsafe")), "{:?}", source.code);
    assert!(source.code[0].contains("b::<'x>() }"), "{:?}", source.code);
    assert_eq!(source.in_test, [false, true, true, true, true, false]);
    assert_eq!(source.functions().iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    assert!(has_path(" \"/tmp/x", "tmp") && !has_path("https://a.b/tmp/", "tmp"));
}

fn rust() -> impl Iterator<Item = &'static Source> {
    SOURCES.iter().filter(|source| source.path.ends_with(".rs"))
}

/// Fails with all complaints at once, each naming its file.
fn report(complaints: impl Iterator<Item = String>) {
    let complaints: Vec<String> = complaints.collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Compares findings, each with its key, with the exceptions granted.
fn ratchet(found: &[(String, String)], granted: &[(&str, &str)]) {
    let unknown = found.iter().filter(|(key, _)| granted.iter().all(|(granted, _)| granted != key));
    let stale = granted.iter().filter(|(granted, _)| found.iter().all(|(key, _)| key != granted));
    let stale =
        stale.map(|(key, _)| format!("{key}: the exception is no longer needed, take it from the list"));
    report(unknown.map(|(_, complaint)| complaint.clone()).chain(stale));
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Paths of all tracked files. An export without git has nothing but them, and is walked.
fn tracked() -> Vec<String> {
    let git = Command::new("git").arg("-C").arg(repository()).args(["ls-files", "-z"]).output();
    match git {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let names = String::from_utf8_lossy(&output.stdout).into_owned();
            names.split_terminator('\0').map(str::to_owned).collect()
        }
        _ => {
            let mut paths = Vec::new();
            walk(&repository(), "", &mut paths);
            paths
        }
    }
}

fn walk(directory: &Path, prefix: &str, paths: &mut Vec<String>) {
    const BUILT: [&str; 7] =
        ["target", ".git", "node_modules", "__pycache__", ".venv", "corpus", "artifacts"];
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if BUILT.contains(&name.as_str()) {
            continue;
        }
        if entry.path().is_dir() {
            walk(&entry.path(), &format!("{prefix}{name}/"), paths);
        } else {
            paths.push(format!("{prefix}{name}"));
        }
    }
}

/// A text file of the repository.
struct Source {
    path: String,
    lines: Vec<String>,
    /// The lines of a Rust file with comments and the insides of literals blanked.
    code: Vec<String>,
    /// Which lines of a Rust file belong to a `#[cfg(test)]` item.
    in_test: Vec<bool>,
    is_test: bool,
}

struct Function {
    name: String,
    /// Counted from 1.
    line: usize,
    lines: usize,
}

impl Source {
    /// Reads the file unless it is data: golden values, seeds, lock files, anything that is no text.
    fn read(path: String) -> Option<Self> {
        let skipped = ["/golden/", "/seeds/", "engine/demo/tokenizer", "LICENSE"];
        if skipped.iter().any(|part| path.contains(part))
            || path.ends_with(".lock")
            || path.ends_with("lock.json")
        {
            return None;
        }
        let text = fs::read_to_string(repository().join(&path)).ok()?;
        Some(Self::new(path, text))
    }

    fn new(path: String, text: String) -> Self {
        let code = if path.ends_with(".rs") { mask(&text) } else { String::new() };
        let owned = |text: &str| text.lines().map(str::to_owned).collect::<Vec<String>>();
        let is_test = path.split('/').any(|part| part == "tests" || part == "fuzz");
        let (lines, code) = (owned(&text), owned(&code));
        let in_test = test_lines(&code);
        Self { path, lines, code, in_test, is_test }
    }

    fn is_program(&self) -> bool {
        self.path.ends_with(".rs") || self.path.ends_with(".py")
    }

    fn is_script(&self) -> bool {
        self.path.ends_with(".sh") || self.path.starts_with(".ci/")
    }

    fn lines_without_tests(&self) -> usize {
        self.lines.len() - self.in_test.iter().filter(|&&in_test| in_test).count()
    }

    /// Complaints about any line, with their places.
    fn find(&self, complaint: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let lines = self.lines.iter().enumerate();
        lines.filter_map(|(index, line)| Some(self.at(index, &complaint(line)?))).collect()
    }

    /// Complaints about code, with their places.
    fn find_code(&self, complaint: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let lines = self.code.iter().enumerate();
        lines.filter_map(|(index, line)| Some(self.at(index, &complaint(line)?))).collect()
    }

    /// Complaints about code outside of test modules, with their places.
    fn find_product(&self, complaint: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let lines = self.code.iter().enumerate();
        let outside = lines.filter(|(index, _)| !self.is_test && !self.in_test[*index]);
        outside.filter_map(|(index, line)| Some(self.at(index, &complaint(line)?))).collect()
    }

    fn at(&self, index: usize, complaint: &str) -> String {
        format!("{}:{}: {complaint}", self.path, index + 1)
    }

    fn comment_above(&self, index: usize) -> impl Iterator<Item = &str> {
        let above = self.lines[..index].iter().rev().map(|line| line.trim_start());
        above.take_while(|line| line.starts_with("//"))
    }

    /// Where the modules lie that this file declares for tests alone, without `.rs`.
    fn test_modules(&self) -> Vec<String> {
        let stem = self.path.trim_end_matches(".rs");
        let (parent, name) = stem.rsplit_once('/').unwrap_or(("", stem));
        let folder = if matches!(name, "lib" | "main" | "mod") { parent } else { stem };
        let declared = self.code.iter().zip(&self.in_test).filter(|(_, in_test)| **in_test);
        let names = declared.filter_map(|(line, _)| line.trim().rsplit_once("mod ")?.1.strip_suffix(';'));
        names.map(|name| format!("{folder}/{name}")).collect()
    }

    /// Functions with a body.
    fn functions(&self) -> Vec<Function> {
        let named = self.code.iter().enumerate().filter_map(|(index, line)| {
            let at = word_positions(line, "fn").next()?;
            let name: String = line[at + 2..]
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            (!name.is_empty()).then_some((index, at, name))
        });
        let bodies = named.filter_map(|(index, at, name)| {
            let (end, block) = item_end(&self.code, index, at);
            block.then(|| Function { name, line: index + 1, lines: end - index + 1 })
        });
        bodies.collect()
    }
}

/// Marks the lines of items under `#[cfg(test)]`, the attribute included.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut marks = vec![false; code.len()];
    for (index, line) in code.iter().enumerate() {
        let attribute = line.trim_start();
        let condition = attribute.starts_with("#[cfg(") && has_word(attribute, "test");
        if condition && !attribute.contains("not(test") && !marks[index] {
            let (end, _) = item_end(code, index + 1, 0);
            marks[index..=end].fill(true);
        }
    }
    marks
}

/// The line on which the item that begins at (`line`, `column`) ends, and whether it ends with a block.
fn item_end(code: &[String], line: usize, column: usize) -> (usize, bool) {
    let (mut braces, mut others) = (0_i32, 0_i32);
    for (index, text) in code.iter().enumerate().skip(line) {
        let from = if index == line { column } else { 0 };
        for c in text[from..].chars() {
            match c {
                '{' => braces += 1,
                '}' => braces -= 1,
                '(' | '[' => others += 1,
                ')' | ']' => others -= 1,
                _ => {}
            }
            if braces <= 0 && others == 0 && matches!(c, '}' | ';') {
                return (index, c == '}');
            }
        }
    }
    (code.len() - 1, true)
}

/// Blanks comments and the insides of string and character literals; lines stay where they are.
fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = opaque_length(rest, masked.chars().next_back());
        let (taken, left) = rest.split_at(if length == 0 { c.len_utf8() } else { length });
        match length {
            0 => masked.push(c),
            _ => masked.extend(taken.chars().map(|c| if c == '\n' { c } else { ' ' })),
        }
        rest = left;
    }
    masked
}

/// Length of the comment or literal that `rest` begins with; 0 where there is none.
fn opaque_length(rest: &str, before: Option<char>) -> usize {
    let within = |end: Option<usize>| end.unwrap_or(rest.len());
    if rest.starts_with("//") {
        return within(rest.find('\n'));
    }
    if rest.starts_with("/*") {
        return within(rest.find("*/").map(|end| end + 2));
    }
    if let Some(text) = rest.strip_prefix('"') {
        return within(closing(text, '"').map(|end| end + 2));
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let raw = rest.strip_prefix("br").or(rest.strip_prefix('r')).filter(|_| !in_word);
    if let Some(raw) = raw {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let open = rest.len() - raw.len() + hashes + 1;
            return within(rest[open..].find(&end).map(|at| open + at + end.len()));
        }
    }
    match rest.strip_prefix('\'') {
        // A lifetime has no quote after its first character.
        Some(inner) if inner.starts_with('\\') || inner.chars().nth(1) == Some('\'') => {
            within(closing(inner, '\'').map(|end| end + 2))
        }
        _ => 0,
    }
}

/// Where the literal ends whose inside is the start of `text`.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let closes = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at)
    })
}

fn has_word(line: &str, word: &str) -> bool {
    word_positions(line, word).next().is_some()
}

fn word_positions(line: &str, word: &str) -> impl Iterator<Item = usize> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let open_end = !word.ends_with(part);
    line.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        !before.ends_with(part) && (open_end || !after.starts_with(part))
    })
}

/// Whether the line names something in the directory `/name`.
fn has_path(line: &str, name: &str) -> bool {
    let path = format!("/{name}/");
    line.match_indices(&path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| {
            c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '~' | '*' | '}' | '$')
        })
    })
}
