//! PTX text as tokens.

use crate::module::ParseError;

/// A word, a string with its quotes, or one other character.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    /// From 1.
    pub(crate) line: u32,
}

/// Tokens and where the reader is among them.
pub(crate) struct Tokens<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let mut tokens = Vec::new();
        let (mut rest, mut line) = (text, 1);
        while let Some(first) = rest.chars().next() {
            let length = if rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                rest.find("*/").map_or(rest.len(), |end| end + 2)
            } else if first.is_whitespace() {
                first.len_utf8()
            } else {
                let length = token_length(rest, first);
                tokens.push(Token { text: &rest[..length], line });
                length
            };
            line += rest[..length].bytes().filter(|&byte| byte == b'\n').count() as u32;
            rest = &rest[length..];
        }
        Self { text, tokens, at: 0 }
    }

    /// The next token's text; empty at the end.
    pub(crate) fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |token| token.text)
    }

    /// Its line.
    pub(crate) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    /// Takes the next token; empty at the end.
    pub(crate) fn next(&mut self) -> &'a str {
        let text = self.peek();
        self.at += 1;
        text
    }

    /// Takes the next token if it is this one.
    pub(crate) fn take(&mut self, text: &str) -> bool {
        let found = self.peek() == text;
        self.at += usize::from(found);
        found
    }

    pub(crate) fn expect(&mut self, text: &str) -> Result<(), ParseError> {
        if self.take(text) {
            return Ok(());
        }
        Err(self.error(format!("`{text}` expected, not `{}`", self.peek())))
    }

    /// Takes a whole number that is not negative.
    pub(crate) fn number(&mut self) -> Result<u32, ParseError> {
        let number = integer(self.peek()).and_then(|value| u32::try_from(value).ok());
        let number = number.ok_or_else(|| self.error(format!("a number expected, not `{}`", self.peek())))?;
        self.at += 1;
        Ok(number)
    }

    /// Takes a name.
    pub(crate) fn name(&mut self) -> Result<&'a str, ParseError> {
        let name = self.peek();
        let good = name.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '$' | '%'));
        if !good {
            return Err(self.error(format!("a name expected, not `{name}`")));
        }
        self.at += 1;
        Ok(name)
    }

    /// An error at the next token.
    pub(crate) fn error(&self, reason: impl Into<String>) -> ParseError {
        self.error_at(self.line(), reason)
    }

    pub(crate) fn error_at(&self, line: u32, reason: impl Into<String>) -> ParseError {
        let text = self.text.lines().nth(line as usize - 1).unwrap_or_default();
        ParseError { line, reason: reason.into(), text: text.trim().to_owned() }
    }
}

fn token_length(rest: &str, first: char) -> usize {
    if first == '"' {
        return rest[1..].find('"').map_or(rest.len(), |end| end + 2);
    }
    let mut length = 0;
    loop {
        let left = &rest.as_bytes()[length..];
        match left {
            [b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'$' | b'%' | b'.', ..] => length += 1,
            [b':', b':', ..] if length > 0 => length += 2,
            _ => break,
        }
    }
    if length == 0 { first.len_utf8() } else { length }
}

/// A whole number as PTX writes it, without its sign.
pub(crate) fn integer(text: &str) -> Option<u64> {
    let text = text.strip_suffix(['U', 'u']).unwrap_or(text);
    match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => u64::from_str_radix(&text[2..], 16).ok(),
        [b'0', b'b' | b'B', ..] => u64::from_str_radix(&text[2..], 2).ok(),
        [b'0', _, ..] => u64::from_str_radix(&text[1..], 8).ok(),
        [b'0'..=b'9', ..] => text.parse().ok(),
        _ => None,
    }
}

/// The bits of a float as PTX writes it: `0f3F800000`, `0d3FF0000000000000`.
pub(crate) fn float(text: &str) -> Option<(u64, u32)> {
    let digits = text.get(2..)?;
    let bits = match text.as_bytes() {
        [b'0', b'f' | b'F', ..] if digits.len() == 8 => 32,
        [b'0', b'd' | b'D', ..] if digits.len() == 16 => 64,
        _ => return None,
    };
    Some((u64::from_str_radix(digits, 16).ok()?, bits))
}
