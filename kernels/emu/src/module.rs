//! Reading PTX.

use std::collections::HashMap;

use thiserror::Error;

use crate::{
    function::{self, Symbol},
    lex::{Tokens, float, integer},
    program::{Kernel, Type},
};

/// Generic addresses of a module's own variables begin here.
pub(crate) const DATA_WINDOW: u64 = 0x7e00_0000_0000;
/// Most bytes of a module's own variables.
const MAX_DATA: u64 = 16 << 20;

/// PTX, read and decoded.
#[derive(Debug)]
pub struct Module {
    pub(crate) kernels: Vec<Kernel>,
    /// Variables of the module: constants, as nothing may store to them.
    pub(crate) data: Vec<u8>,
    lines: Vec<String>,
}

/// PTX that the machine cannot run.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}: {reason}: `{text}`")]
pub struct ParseError {
    /// Line of the text, from 1.
    pub line: u32,
    /// What is wrong.
    pub reason: String,
    /// The line.
    pub text: String,
}

/// What stands outside of kernels.
struct Globals<'a> {
    symbols: HashMap<&'a str, Symbol>,
    data: Vec<u8>,
    /// Static shared memory declared outside of kernels.
    shared: u32,
}

/// A declared variable.
pub(crate) struct Variable<'a> {
    pub(crate) name: &'a str,
    pub(crate) alignment: u64,
    /// Bytes; none where the array is `[]`.
    pub(crate) bytes: Option<u64>,
    element: Type,
}

impl Module {
    /// Reads a PTX module. Whatever the machine does not know is an error.
    ///
    /// # Errors
    /// [`ParseError`] names the line.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut tokens = Tokens::new(text);
        let mut globals = Globals { symbols: HashMap::new(), data: Vec::new(), shared: 0 };
        let mut kernels: Vec<Kernel> = Vec::new();
        let mut versions = 0;
        while !tokens.peek().is_empty() {
            match tokens.next() {
                ".version" => versions += u32::from(!tokens.next().is_empty()),
                ".target" => target(&mut tokens)?,
                ".address_size" => tokens.expect("64")?,
                ".visible" | ".weak" => {}
                ".extern" => globals.external(&mut tokens)?,
                ".shared" => globals.shared(&mut tokens)?,
                ".global" | ".const" => globals.constant(&mut tokens)?,
                ".entry" => {
                    let kernel = function::parse(&mut tokens, globals.symbols.clone(), globals.shared)?;
                    if kernels.iter().any(|other| other.name == kernel.name) {
                        return Err(tokens.error(format!("a second kernel `{}`", kernel.name)));
                    }
                    kernels.push(kernel);
                }
                other => return Err(tokens.error(format!("unknown directive `{other}`"))),
            }
        }
        if versions != 1 {
            return Err(tokens.error("exactly one `.version` expected"));
        }
        Ok(Self {
            kernels,
            data: globals.data,
            lines: text.lines().map(|line| line.trim().to_owned()).collect(),
        })
    }

    /// Names of the module's kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|kernel| kernel.name.as_str())
    }

    /// A line of the text, from 1.
    pub(crate) fn line(&self, line: u32) -> &str {
        self.lines.get(line as usize - 1).map_or("", String::as_str)
    }
}

fn target(tokens: &mut Tokens<'_>) -> Result<(), ParseError> {
    let target = tokens.next();
    let generation = target.strip_prefix("sm_").and_then(|digits| digits.parse::<u32>().ok());
    match generation {
        Some(75..) => Ok(()),
        _ => Err(tokens.error(format!("target `{target}` is not sm_75 or later"))),
    }
}

impl<'a> Globals<'a> {
    fn define(&mut self, tokens: &Tokens<'a>, name: &'a str, symbol: Symbol) -> Result<(), ParseError> {
        match self.symbols.insert(name, symbol) {
            None => Ok(()),
            Some(_) => Err(tokens.error(format!("`{name}` is declared twice"))),
        }
    }

    fn external(&mut self, tokens: &mut Tokens<'a>) -> Result<(), ParseError> {
        tokens.expect(".shared")?;
        let variable = variable(tokens)?;
        tokens.expect(";")?;
        if variable.bytes.is_some() {
            return Err(tokens.error("external shared memory has no size"));
        }
        self.define(tokens, variable.name, Symbol::Dynamic { alignment: variable.alignment as u32 })
    }

    fn shared(&mut self, tokens: &mut Tokens<'a>) -> Result<(), ParseError> {
        let variable = variable(tokens)?;
        tokens.expect(";")?;
        let (at, end) = place(tokens, &variable, self.shared)?;
        self.shared = end;
        self.define(tokens, variable.name, Symbol::Shared(at))
    }

    fn constant(&mut self, tokens: &mut Tokens<'a>) -> Result<(), ParseError> {
        let variable = variable(tokens)?;
        let at = (self.data.len() as u64).next_multiple_of(variable.alignment);
        let Some(bytes) = variable.bytes.filter(|bytes| at + bytes <= MAX_DATA) else {
            return Err(tokens.error(format!("a size of at most {MAX_DATA} bytes expected")));
        };
        let (at, end) = (at as usize, (at + bytes) as usize);
        self.data.resize(end, 0);
        if tokens.take("=") {
            initialise(tokens, variable.element, &mut self.data[at..end])?;
        }
        tokens.expect(";")?;
        self.define(tokens, variable.name, Symbol::Data(DATA_WINDOW + at as u64))
    }
}

/// The place of a variable after the first `used` bytes of a space, and how many are then in use.
pub(crate) fn place(
    tokens: &Tokens<'_>,
    variable: &Variable<'_>,
    used: u32,
) -> Result<(u32, u32), ParseError> {
    let at = u64::from(used).next_multiple_of(variable.alignment);
    let end = variable.bytes.and_then(|bytes| at.checked_add(bytes)).filter(|&end| end <= MAX_DATA);
    let end = end.ok_or_else(|| tokens.error(format!("a size of at most {MAX_DATA} bytes expected")))?;
    Ok((at as u32, end as u32))
}

/// `.align 4 .b8 name[16]` and its like, up to the semicolon or the initial value.
pub(crate) fn variable<'a>(tokens: &mut Tokens<'a>) -> Result<Variable<'a>, ParseError> {
    let alignment = if tokens.take(".align") { Some(u64::from(tokens.number()?)) } else { None };
    let word = tokens.next();
    let element = word.strip_prefix('.').and_then(Type::named).filter(|&ty| ty != Type::Pred);
    let element = element.ok_or_else(|| tokens.error(format!("a type expected, not `{word}`")))?;
    let name = tokens.name()?;
    let size = u64::from(element.bits() / 8);
    let mut bytes = Some(size);
    while tokens.take("[") {
        if tokens.take("]") {
            bytes = None;
            continue;
        }
        let count = u64::from(tokens.number()?);
        bytes = bytes.and_then(|bytes| bytes.checked_mul(count));
        tokens.expect("]")?;
    }
    let alignment = alignment.unwrap_or(size);
    if !alignment.is_power_of_two() || alignment > 4096 {
        return Err(tokens.error(format!("an alignment of {alignment}")));
    }
    Ok(Variable { name, alignment, bytes, element })
}

fn initialise(tokens: &mut Tokens<'_>, element: Type, to: &mut [u8]) -> Result<(), ParseError> {
    let size = element.bits() as usize / 8;
    let list = tokens.take("{");
    for chunk in to.chunks_exact_mut(size) {
        let negative = tokens.take("-");
        let text = tokens.next();
        let bits = float(text).map(|(bits, _)| bits).or_else(|| integer(text));
        let bits = bits.ok_or_else(|| tokens.error(format!("a value expected, not `{text}`")))?;
        let bits = if negative { bits.wrapping_neg() } else { bits };
        chunk.copy_from_slice(&bits.to_le_bytes()[..size]);
        if !list || !tokens.take(",") {
            break;
        }
    }
    if list { tokens.expect("}") } else { Ok(()) }
}
