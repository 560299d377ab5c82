//! The body of a kernel: names, scopes and operands.

use std::collections::HashMap;

use crate::{
    decode,
    lex::Tokens,
    module::{ParseError, place, variable},
    operand::{Operand, operands, special},
    program::{Address, AnyReg, Class, D, Guard, Inst, Kernel, Op, P, Space, Special, Type, Vector, W},
};

/// A name that stands for a place in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Symbol {
    Shared(u32),
    Local(u32),
    /// Where dynamic shared memory begins.
    Dynamic {
        alignment: u32,
    },
    Data(u64),
    Param(u32),
}

/// A register.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reg {
    Predicate(P),
    Word(W, u32),
    Double(D),
}

/// Names of one pair of braces.
#[derive(Default)]
struct Names<'a> {
    registers: HashMap<&'a str, Reg>,
    /// `%r<12>`: prefix, bits, number.
    ranges: Vec<(&'a str, u32, u32)>,
    labels: HashMap<&'a str, u32>,
}

/// A kernel that is being read.
pub(crate) struct Function<'a> {
    pub(crate) kernel: Kernel,
    scopes: Vec<Names<'a>>,
    symbols: HashMap<&'a str, Symbol>,
    word_constants: HashMap<u32, W>,
    double_constants: HashMap<u64, D>,
    specials: HashMap<Special, W>,
    /// Branches, and the labels that they name.
    jumps: Vec<(u32, Vec<&'a str>)>,
    /// Lists of labels for indexed branches.
    targets: HashMap<&'a str, Vec<&'a str>>,
    dynamic_shared_used: bool,
}

/// Reads a kernel, from after `.entry` to its closing brace.
pub(crate) fn parse<'a>(
    tokens: &mut Tokens<'a>,
    symbols: HashMap<&'a str, Symbol>,
    shared: u32,
) -> Result<Kernel, ParseError> {
    let kernel = Kernel { name: tokens.name()?.to_owned(), shared, ..Kernel::default() };
    let mut function = Function {
        kernel,
        scopes: vec![Names::default()],
        symbols,
        word_constants: HashMap::new(),
        double_constants: HashMap::new(),
        specials: HashMap::new(),
        jumps: Vec::new(),
        targets: HashMap::new(),
        dynamic_shared_used: false,
    };
    function.parameters(tokens)?;
    function.directives(tokens)?;
    tokens.expect("{")?;
    let mut depth = 1;
    while depth > 0 {
        match tokens.peek() {
            "" => return Err(tokens.error("the kernel does not end")),
            "{" => {
                tokens.next();
                function.scopes.push(Names::default());
                depth += 1;
            }
            "}" => {
                function.leave_scope(tokens)?;
                tokens.next();
                depth -= 1;
            }
            _ => function.statement(tokens)?,
        }
    }
    Ok(function.kernel)
}

impl<'a> Function<'a> {
    fn parameters(&mut self, tokens: &mut Tokens<'a>) -> Result<(), ParseError> {
        tokens.expect("(")?;
        while !tokens.take(")") {
            tokens.expect(".param")?;
            let parameter = variable(tokens)?;
            let (at, end) = place(tokens, &parameter, self.kernel.params)?;
            self.kernel.params = end;
            self.define(tokens, parameter.name, Symbol::Param(at))?;
            if !tokens.take(",") && tokens.peek() != ")" {
                return Err(tokens.error("`,` or `)` expected"));
            }
        }
        Ok(())
    }

    fn directives(&mut self, tokens: &mut Tokens<'a>) -> Result<(), ParseError> {
        loop {
            match tokens.peek() {
                ".maxntid" | ".reqntid" => {
                    let required = tokens.next() == ".reqntid";
                    let mut block = [1; 3];
                    for size in &mut block {
                        *size = tokens.number()?;
                        if !tokens.take(",") {
                            break;
                        }
                    }
                    self.kernel.max_threads = Some(block.iter().fold(1, |a, &b| a.saturating_mul(b)));
                    if required {
                        self.kernel.required_block = Some(block);
                    }
                }
                ".minnctapersm" | ".maxnreg" => {
                    tokens.next();
                    tokens.number()?;
                }
                _ => return Ok(()),
            }
        }
    }

    fn define(&mut self, tokens: &Tokens<'a>, name: &'a str, symbol: Symbol) -> Result<(), ParseError> {
        match self.symbols.insert(name, symbol) {
            None => Ok(()),
            Some(_) => Err(tokens.error(format!("`{name}` is declared twice"))),
        }
    }

    /// Resolves the labels of a scope's branches, as far as they are of this scope.
    fn leave_scope(&mut self, tokens: &Tokens<'a>) -> Result<(), ParseError> {
        let Some(names) = self.scopes.pop() else { return Err(tokens.error("`}` without `{`")) };
        let last = self.scopes.is_empty();
        if last {
            // Running past the last instruction ends the thread, as `ret` would.
            let line = tokens.line();
            self.kernel.code.push(Inst { op: Op::Exit, guard: None, class: Class::Control, line });
        }
        for (index, labels) in std::mem::take(&mut self.jumps) {
            let known: Option<Vec<u32>> =
                labels.iter().map(|label| names.labels.get(label).copied()).collect();
            let inst = &mut self.kernel.code[index as usize];
            match (known.as_deref(), &mut inst.op) {
                (Some([target]), Op::Branch(to)) => *to = *target,
                (Some(targets), Op::BranchIndexed(to, _)) => *to = targets.into(),
                _ if last => {
                    return Err(tokens.error_at(inst.line, format!("no label `{}`", labels.join("`, `"))));
                }
                _ => self.jumps.push((index, labels)),
            }
        }
        Ok(())
    }

    fn scope(&mut self) -> &mut Names<'a> {
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    fn statement(&mut self, tokens: &mut Tokens<'a>) -> Result<(), ParseError> {
        match tokens.peek() {
            ".reg" => self.registers(tokens),
            ".shared" | ".local" => self.memory(tokens),
            ".pragma" => {
                tokens.next();
                tokens.next();
                tokens.expect(";")
            }
            _ => self.labelled(tokens),
        }
    }

    fn registers(&mut self, tokens: &mut Tokens<'a>) -> Result<(), ParseError> {
        tokens.next();
        let word = tokens.next();
        let ty = word.strip_prefix('.').and_then(Type::named);
        let ty = ty.ok_or_else(|| tokens.error(format!("a type expected, not `{word}`")))?;
        loop {
            let name = tokens.name()?;
            if tokens.take("<") {
                let count = tokens.number()?;
                tokens.expect(">")?;
                self.scope().ranges.push((name, ty.bits(), count));
            } else {
                let register = self.register(ty.bits());
                self.scope().registers.insert(name, register);
            }
            if !tokens.take(",") {
                return tokens.expect(";");
            }
        }
    }

    fn memory(&mut self, tokens: &mut Tokens<'a>) -> Result<(), ParseError> {
        let shared = tokens.next() == ".shared";
        let variable = variable(tokens)?;
        if shared && self.dynamic_shared_used {
            return Err(tokens.error("static shared memory after the first use of dynamic"));
        }
        let used = if shared { self.kernel.shared } else { self.kernel.local };
        let (at, end) = place(tokens, &variable, used)?;
        let symbol = if shared {
            self.kernel.shared = end;
            Symbol::Shared(at)
        } else {
            self.kernel.local = end;
            Symbol::Local(at)
        };
        tokens.expect(";")?;
        self.define(tokens, variable.name, symbol)
    }

    /// A label, a list of labels or an instruction.
    fn labelled(&mut self, tokens: &mut Tokens<'a>) -> Result<(), ParseError> {
        let line = tokens.line();
        let guard = self.guard(tokens)?;
        let word = tokens.name()?;
        if guard.is_none() && tokens.take(":") {
            if tokens.take(".branchtargets") {
                let labels = self.names(tokens)?;
                self.targets.insert(word, labels);
                return Ok(());
            }
            let at = self.kernel.code.len() as u32;
            return match self.scope().labels.insert(word, at) {
                None => Ok(()),
                Some(_) => Err(tokens.error_at(line, format!("a second label `{word}`"))),
            };
        }
        let operands = operands(tokens)?;
        let decoded = decode::instruction(self, word, &operands);
        let (op, class) = decoded.map_err(|reason| tokens.error_at(line, reason))?;
        self.kernel.code.push(Inst { op, guard, class, line });
        Ok(())
    }

    fn names(&mut self, tokens: &mut Tokens<'a>) -> Result<Vec<&'a str>, ParseError> {
        let mut names = vec![tokens.name()?];
        while tokens.take(",") {
            names.push(tokens.name()?);
        }
        tokens.expect(";")?;
        Ok(names)
    }

    fn guard(&mut self, tokens: &mut Tokens<'a>) -> Result<Option<Guard>, ParseError> {
        if !tokens.take("@") {
            return Ok(None);
        }
        let negate = tokens.take("!");
        let name = tokens.name()?;
        match self.find(name) {
            Some(Reg::Predicate(p)) => Ok(Some(Guard { p, negate })),
            _ => Err(tokens.error(format!("`{name}` is no predicate"))),
        }
    }

    fn register(&mut self, bits: u32) -> Reg {
        match bits {
            1 => Reg::Predicate(self.predicate()),
            64 => Reg::Double(self.double()),
            _ => Reg::Word(self.word(), bits),
        }
    }

    fn predicate(&mut self) -> P {
        self.kernel.predicates += 1;
        P(self.kernel.predicates - 1)
    }

    /// A new slot of 32 bits.
    fn word(&mut self) -> W {
        self.kernel.words += 1;
        W(self.kernel.words - 1)
    }

    fn double(&mut self) -> D {
        self.kernel.doubles += 1;
        D(self.kernel.doubles - 1)
    }

    /// The register of a name.
    pub(crate) fn find(&mut self, name: &'a str) -> Option<Reg> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: Option<u32> = name[prefix.len()..].parse().ok();
        for scope in (0..self.scopes.len()).rev() {
            if let Some(register) = self.scopes[scope].registers.get(name) {
                return Some(*register);
            }
            let ranges = &self.scopes[scope].ranges;
            let range =
                ranges.iter().find(|(p, _, count)| *p == prefix && number.is_some_and(|n| n < *count));
            if let Some(&(_, bits, _)) = range {
                let register = self.register(bits);
                self.scopes[scope].registers.insert(name, register);
                return Some(register);
            }
        }
        None
    }

    /// A slot that holds this in every lane.
    pub(crate) fn constant(&mut self, value: u32) -> W {
        if let Some(&known) = self.word_constants.get(&value) {
            return known;
        }
        let slot = self.word();
        self.word_constants.insert(value, slot);
        self.kernel.word_constants.push((slot, value));
        slot
    }

    pub(crate) fn long_constant(&mut self, value: u64) -> D {
        if let Some(&known) = self.double_constants.get(&value) {
            return known;
        }
        let slot = self.double();
        self.double_constants.insert(value, slot);
        self.kernel.double_constants.push((slot, value));
        slot
    }

    /// A predicate that always holds, or never.
    pub(crate) fn predicate_constant(&mut self, value: bool) -> P {
        let constants = &self.kernel.predicate_constants;
        if let Some(&(known, _)) = constants.iter().find(|(_, known)| *known == value) {
            return known;
        }
        let slot = self.predicate();
        self.kernel.predicate_constants.push((slot, value));
        slot
    }

    fn special(&mut self, name: &str) -> Option<W> {
        let special = special(name)?;
        if let Some(&known) = self.specials.get(&special) {
            return Some(known);
        }
        let slot = self.word();
        self.specials.insert(special, slot);
        self.kernel.specials.push((slot, special));
        Some(slot)
    }

    /// The address of a name within its own space.
    pub(crate) fn symbol(&mut self, name: &str) -> Option<u64> {
        Some(match *self.symbols.get(name)? {
            Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at) => u64::from(at),
            Symbol::Data(address) => address,
            Symbol::Dynamic { alignment } => {
                self.dynamic_shared_used = true;
                self.kernel.shared = self.kernel.shared.next_multiple_of(alignment);
                u64::from(self.kernel.shared)
            }
        })
    }

    /// The state space in which a name of memory lies.
    pub(crate) fn space(&self, name: &str) -> Option<Space> {
        Some(match self.symbols.get(name)? {
            Symbol::Shared(_) | Symbol::Dynamic { .. } => Space::Shared,
            Symbol::Local(_) => Space::Local,
            Symbol::Data(_) => Space::Const,
            Symbol::Param(_) => Space::Param,
        })
    }

    pub(crate) fn is_predicate(&mut self, name: &'a str) -> bool {
        matches!(self.find(name), Some(Reg::Predicate(_)))
    }

    /// Notes that the next instruction jumps to a label.
    pub(crate) fn jump(&mut self, label: &'a str) {
        self.jumps.push((self.kernel.code.len() as u32, vec![label]));
    }

    /// Notes that the next instruction jumps to one of a list of labels.
    pub(crate) fn jump_indexed(&mut self, list: &str) -> Result<(), String> {
        let labels = self.targets.get(list).ok_or_else(|| format!("no list of labels `{list}`"))?;
        self.jumps.push((self.kernel.code.len() as u32, labels.clone()));
        Ok(())
    }

    /// An operand of up to 32 bits: register, special register, constant or address of shared memory.
    pub(crate) fn w(&mut self, operand: &Operand<'a>, bits: u32) -> Result<W, String> {
        let mask = u32::MAX >> (32 - bits.min(32));
        match *operand {
            Operand::Number(value) => Ok(self.constant(value as u32 & mask)),
            Operand::Float(value, 32) if bits == 32 => Ok(self.constant(value as u32)),
            Operand::Name(name) => match self.find(name) {
                Some(Reg::Word(w, width)) if width == bits => Ok(w),
                Some(_) => Err(format!("`{name}` has not {bits} bits")),
                None if bits == 32 => self.special_or_symbol(name, 0),
                None => Err(format!("unknown name `{name}`")),
            },
            Operand::Sum(name, offset) if bits == 32 => self.special_or_symbol(name, offset),
            _ => Err(format!("an operand of {bits} bits expected")),
        }
    }

    fn special_or_symbol(&mut self, name: &str, offset: i64) -> Result<W, String> {
        if let Some(w) = self.special(name).filter(|_| offset == 0) {
            return Ok(w);
        }
        let address = self.symbol(name).ok_or_else(|| format!("unknown name `{name}`"))?;
        let address = u32::try_from(address.wrapping_add_signed(offset));
        Ok(self.constant(address.map_err(|_| format!("the address of `{name}` has not 32 bits"))?))
    }

    /// An operand of 64 bits.
    pub(crate) fn d(&mut self, operand: &Operand<'a>) -> Result<D, String> {
        match *operand {
            Operand::Number(value) => Ok(self.long_constant(value)),
            Operand::Float(value, 64) => Ok(self.long_constant(value)),
            Operand::Name(name) => match self.find(name) {
                Some(Reg::Double(d)) => Ok(d),
                Some(_) => Err(format!("`{name}` has not 64 bits")),
                None => self.long_symbol(name, 0),
            },
            Operand::Sum(name, offset) => self.long_symbol(name, offset),
            _ => Err("an operand of 64 bits expected".to_owned()),
        }
    }

    fn long_symbol(&mut self, name: &str, offset: i64) -> Result<D, String> {
        let address = self.symbol(name).ok_or_else(|| format!("unknown name `{name}`"))?;
        Ok(self.long_constant(address.wrapping_add_signed(offset)))
    }

    pub(crate) fn p(&mut self, operand: &Operand<'a>) -> Result<P, String> {
        let Operand::Name(name) = *operand else { return Err("a predicate expected".to_owned()) };
        match self.find(name) {
            Some(Reg::Predicate(p)) => Ok(p),
            _ => Err(format!("`{name}` is no predicate")),
        }
    }

    /// A predicate or the negation of one, as an operand; also a constant.
    pub(crate) fn maybe_not(&mut self, operand: &Operand<'a>) -> Result<Guard, String> {
        match *operand {
            Operand::Not(name) => Ok(Guard { p: self.p(&Operand::Name(name))?, negate: true }),
            Operand::Number(value @ 0..=1) => {
                Ok(Guard { p: self.predicate_constant(value == 1), negate: false })
            }
            _ => Ok(Guard { p: self.p(operand)?, negate: false }),
        }
    }

    /// An operand of the type's width.
    pub(crate) fn any(&mut self, operand: &Operand<'a>, bits: u32) -> Result<AnyReg, String> {
        if bits == 64 {
            return Ok(AnyReg::Double(self.d(operand)?));
        }
        Ok(AnyReg::Word(self.w(operand, bits)?))
    }

    /// A register of at least `bits` bits (for a load, store or conversion), with its own width. Constants have
    /// the least width there is.
    pub(crate) fn at_least(&mut self, operand: &Operand<'a>, bits: u32) -> Result<(AnyReg, u32), String> {
        let least = bits.max(16);
        if let Operand::Name(name) = *operand {
            match self.find(name) {
                Some(Reg::Word(w, width)) if width >= bits => return Ok((AnyReg::Word(w), width)),
                Some(Reg::Double(d)) => return Ok((AnyReg::Double(d), 64)),
                Some(_) => return Err(format!("`{name}` has less than {bits} bits")),
                None if least == 16 => return Ok((self.any(operand, 32)?, 32)),
                None => {}
            }
        }
        Ok((self.any(operand, least)?, least))
    }

    /// A register, or registers in braces.
    pub(crate) fn vector(&mut self, operand: &Operand<'a>, bits: u32) -> Result<(Vector, u32), String> {
        let single = std::slice::from_ref(operand);
        let list = if let Operand::Vector(list) = operand { list } else { single };
        if list.is_empty() || list.len() > 4 {
            return Err("one to four registers expected".to_owned());
        }
        let mut vector = Vector { count: list.len() as u8, regs: [None; 4] };
        let mut width = 0;
        for (slot, operand) in vector.regs.iter_mut().zip(list) {
            if matches!(operand, Operand::Name("_")) {
                continue;
            }
            let (register, bits) = self.at_least(operand, bits)?;
            if width != 0 && width != bits {
                return Err("registers of different width".to_owned());
            }
            width = bits;
            *slot = Some(register);
        }
        Ok((vector, width))
    }

    /// Registers of 32 bits in braces.
    pub(crate) fn words<const N: usize>(&mut self, operand: &Operand<'a>) -> Result<[W; N], String> {
        let single = std::slice::from_ref(operand);
        let list = if let Operand::Vector(list) = operand { list } else { single };
        let list: &[Operand<'a>; N] =
            list.try_into().map_err(|_| format!("{N} registers expected, not {}", list.len()))?;
        let mut words = [W(0); N];
        for (word, operand) in words.iter_mut().zip(list) {
            *word = self.w(operand, 32)?;
        }
        Ok(words)
    }

    /// An address in brackets. Names of memory are resolved to addresses in their space.
    pub(crate) fn address(&mut self, operand: &Operand<'a>) -> Result<Address, String> {
        let Operand::Address(name, offset) = *operand else {
            return Err("an address in brackets expected".to_owned());
        };
        let Some(name) = name else { return Ok(Address { base: None, offset }) };
        let base = match self.find(name) {
            Some(Reg::Word(w, 32)) => AnyReg::Word(w),
            Some(Reg::Double(d)) => AnyReg::Double(d),
            Some(_) => return Err(format!("`{name}` is no address")),
            None => {
                let symbol = self.symbol(name).ok_or_else(|| format!("unknown name `{name}`"))?;
                return Ok(Address { base: None, offset: offset.wrapping_add_unsigned(symbol) });
            }
        };
        Ok(Address { base: Some(base), offset })
    }
}
