//! What a PTX module declares about itself and its kernels: what the driver must know before it launches.

use std::collections::BTreeMap;

use ptx_machine::Module;

use crate::code::Code;

/// A module that was loaded.
pub(crate) struct Program {
    pub(crate) machine: Module,
    /// The compute capability it was compiled for, as `80`.
    pub(crate) target: u32,
    pub(crate) kernels: BTreeMap<String, Kernel>,
}

/// What a kernel declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Offset and bytes of each parameter.
    pub(crate) params: Vec<(usize, usize)>,
    /// `.maxntid` or `.reqntid`.
    pub(crate) threads: Option<[u32; 3]>,
    /// Whether a block must have exactly that shape.
    pub(crate) exact: bool,
    /// `.minnctapersm`.
    pub(crate) blocks: Option<u32>,
    /// Bytes of shared memory that it declares.
    pub(crate) shared: u32,
    /// Bytes of local memory that it declares.
    pub(crate) local: u32,
}

/// Why a module is not loaded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    pub(crate) code: Code,
    pub(crate) log: String,
}

impl Program {
    /// Reads PTX for a card of `capability` under a driver of CUDA version `driver`.
    pub(crate) fn load(text: &str, capability: (u32, u32), driver: u32) -> Result<Self, Rejected> {
        let reject = |code, log: String| Rejected { code, log };
        let mut words = Words::new(text);
        let header = words.by_ref().take(2).collect::<Vec<_>>();
        let [".version", version] = header[..] else {
            return Err(reject(
                Code::InvalidImage,
                "this is no PTX: it does not begin with `.version`".into(),
            ));
        };
        let invalid = |log: String| reject(Code::InvalidPtx, log);
        let version = version.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let version: (u32, u32) = version.ok_or_else(|| invalid("`.version` names no version".into()))?;
        let newest = newest_ptx(driver);
        if version > newest {
            let log = format!(
                "PTX {}.{} is newer than the driver's {}.{}",
                version.0, version.1, newest.0, newest.1
            );
            return Err(reject(Code::UnsupportedPtxVersion, log));
        }
        let target = match words.by_ref().take(2).collect::<Vec<_>>()[..] {
            [".target", target] => target.strip_prefix("sm_").and_then(|number| number.parse().ok()),
            _ => None,
        };
        let target: u32 = target.ok_or_else(|| invalid("`.target` names no architecture".into()))?;
        if target > capability.0 * 10 + capability.1 {
            let log = format!("code for sm_{target} does not run on sm_{}{}", capability.0, capability.1);
            return Err(reject(Code::NoBinaryForGpu, log));
        }
        let machine = Module::parse(text).map_err(|error| invalid(error.to_string()))?;
        let kernels = kernels(words).ok_or_else(|| invalid("a declaration cannot be read".into()))?;
        Ok(Self { machine, target, kernels })
    }
}

impl Kernel {
    /// Bytes of the parameter block.
    pub(crate) fn param_bytes(&self) -> usize {
        self.params.iter().map(|(offset, bytes)| offset + bytes).max().unwrap_or(0)
    }

    /// Whether a block may have this shape.
    pub(crate) fn takes(&self, block: [u32; 3]) -> bool {
        let threads = |shape: [u32; 3]| shape.into_iter().map(u64::from).product::<u64>();
        self.threads
            .is_none_or(|most| if self.exact { block == most } else { threads(block) <= threads(most) })
    }
}

/// The newest PTX that a driver of a CUDA version compiles (PTX ISA, release history).
fn newest_ptx(driver: u32) -> (u32, u32) {
    match (driver / 1000, driver % 1000 / 10) {
        (12, minor @ 0..=5) => (8, minor),
        (12, 6) => (8, 5),
        (12, minor) => (8, minor - 1),
        (13.., minor) => (9, minor),
        (11, minor) => (7, minor),
        _ => (6, 0),
    }
}

/// What the kernels of a module declare.
fn kernels(words: Words<'_>) -> Option<BTreeMap<String, Kernel>> {
    let words: Vec<&str> = words.collect();
    let mut kernels: BTreeMap<String, Kernel> = BTreeMap::new();
    let (mut common, mut depth, mut at) = (0, 0_usize, 0);
    let mut open: Option<String> = None;
    while let Some(&word) = words.get(at) {
        at += 1;
        match word {
            ".entry" => {
                let name = (*words.get(at)?).to_owned();
                let mut kernel = Kernel::default();
                at = head(&words, at + 1, &mut kernel)?;
                kernels.insert(name.clone(), kernel);
                open = Some(name);
            }
            "{" => depth += 1,
            "}" => {
                depth = depth.checked_sub(1)?;
                open = open.filter(|_| depth > 0);
            }
            ".shared" | ".local" => {
                let is_declaration = words.get(at).is_some_and(|next| next.starts_with('.'));
                let outside = at >= 2 && words[at - 2] == ".extern";
                if !is_declaration || outside {
                    continue;
                }
                let (bytes, _) = variable(&words, at)?;
                let kernel = open.as_ref().and_then(|name| kernels.get_mut(name));
                match kernel {
                    Some(kernel) if word == ".local" => kernel.local += bytes as u32,
                    Some(kernel) => kernel.shared += bytes as u32,
                    None if word == ".shared" => common += bytes as u32,
                    None => {}
                }
            }
            _ => {}
        }
    }
    kernels.values_mut().for_each(|kernel| kernel.shared += common);
    Some(kernels)
}

/// Reads parameters and directives of a kernel up to its body's brace.
fn head(words: &[&str], mut at: usize, kernel: &mut Kernel) -> Option<usize> {
    let mut end = 0_usize;
    loop {
        match *words.get(at)? {
            "{" => return Some(at),
            ".param" => {
                let (bytes, alignment) = variable(words, at + 1)?;
                let offset = end.next_multiple_of(alignment);
                end = offset + bytes;
                kernel.params.push((offset, bytes));
            }
            directive @ (".maxntid" | ".reqntid") => {
                let mut shape = [1; 3];
                for (axis, extent) in shape.iter_mut().enumerate() {
                    if axis > 0 && words.get(at + 2 * axis) != Some(&",") {
                        break;
                    }
                    *extent = words.get(at + 2 * axis + 1)?.parse().ok()?;
                }
                kernel.threads = Some(shape);
                kernel.exact = directive == ".reqntid";
            }
            ".minnctapersm" => kernel.blocks = Some(words.get(at + 1)?.parse().ok()?),
            _ => {}
        }
        at += 1;
    }
}

/// Bytes and alignment of a variable: `.align 8 .b8 name[32]`, `.u32 name`.
fn variable(words: &[&str], mut at: usize) -> Option<(usize, usize)> {
    let mut alignment = None;
    loop {
        let word = *words.get(at)?;
        if word == ".align" {
            alignment =
                Some(words.get(at + 1)?.parse().ok().filter(|&value: &usize| value.is_power_of_two())?);
            at += 2;
            continue;
        }
        let bits: Option<usize> = word.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        let is_type = word.starts_with(".b")
            || word.starts_with(".u")
            || word.starts_with(".s")
            || word.starts_with(".f");
        at += 1;
        let Some(bits) = bits.filter(|_| is_type) else { continue };
        // The name, then extents in brackets.
        at += 1;
        let mut count = 1_usize;
        while words.get(at) == Some(&"[") {
            if words.get(at + 1) == Some(&"]") {
                return Some((0, alignment.unwrap_or(bits / 8)));
            }
            count = count.checked_mul(words.get(at + 1)?.parse().ok()?)?;
            at += 3;
        }
        return Some(((bits / 8).checked_mul(count)?, alignment.unwrap_or(bits / 8)));
    }
}

/// The words and marks of PTX, without comments.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn new(rest: &'a str) -> Self {
        Self { rest }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.rest = self.rest.trim_start();
            let skipped = if self.rest.starts_with("//") {
                self.rest.find('\n')
            } else if self.rest.starts_with("/*") {
                self.rest.find("*/").map(|end| end + 2)
            } else {
                break;
            };
            self.rest = skipped.map_or("", |end| &self.rest[end..]);
        }
        let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '$' | '%');
        let first = self.rest.chars().next()?;
        let end = if part(first) { self.rest.find(|c| !part(c)) } else { Some(first.len_utf8()) };
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "// made by hand
        .version 8.4
        .target sm_80
        .address_size 64
        .extern .shared .align 16 .b8 dynamic[];
        .shared .align 4 .b8 common[8];
        .visible .entry first(.param .align 8 .b8 first_0[20], .param .u8 first_1, .param .u64 first_2)
        .maxntid 256, 1, 1
        .minnctapersm 2
        { .reg .b32 %r<4>; .shared .align 16 .b8 tile[2][512]; .local .align 4 .b8 depot[12];
          ld.shared.u32 %r1, [tile]; { st.local.u32 [depot], %r1; } ret; }
        .entry second() .reqntid 32 { ret; }";

    #[test]
    fn declarations_are_read() {
        let kernels = kernels(Words::new(TEXT)).unwrap();
        let first = &kernels["first"];
        assert_eq!(first.params, [(0, 20), (20, 1), (24, 8)]);
        assert_eq!(first.param_bytes(), 32);
        assert_eq!((first.threads, first.blocks, first.exact), (Some([256, 1, 1]), Some(2), false));
        assert_eq!((first.shared, first.local), (1024 + 8, 12));
        assert!(first.takes([16, 16, 1]) && !first.takes([257, 1, 1]));
        let second = &kernels["second"];
        assert_eq!((second.threads, second.exact, second.shared), (Some([32, 1, 1]), true, 8));
        assert!(second.takes([32, 1, 1]) && !second.takes([16, 1, 1]));
    }

    #[test]
    fn what_does_not_run_here_is_rejected() {
        let code = |text: &str, capability, driver| {
            Program::load(text, capability, driver).err().map(|error| error.code)
        };
        assert_eq!(code("", (8, 9), 12040), Some(Code::InvalidImage));
        assert_eq!(code("\u{7f}ELF", (8, 9), 12040), Some(Code::InvalidImage));
        assert_eq!(code(TEXT, (7, 5), 12040), Some(Code::NoBinaryForGpu));
        assert_eq!(code(TEXT, (8, 9), 12030), Some(Code::UnsupportedPtxVersion));
        assert_eq!(code(".version x", (8, 9), 12040), Some(Code::InvalidPtx));
        assert_eq!(code(".version 8.4 .entry", (8, 9), 12040), Some(Code::InvalidPtx));
    }
}
