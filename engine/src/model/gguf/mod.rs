//! GGUF files, versions 2 and 3: metadata and tensor directory. Nothing is believed before it is
//! compared with the bytes that are there: counts against the smallest size of what they count,
//! tensors against the file.

mod describe;
mod tokenizer;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek},
    path::Path,
};

use super::{
    error::{ModelError, TensorFault},
    table::{Dtype, Storage, TensorInfo, TensorTable},
};

pub use self::tokenizer::tokenizer;

pub(crate) use self::describe::layout;

/// Largest header (metadata and tensor directory) that is read.
pub const HEADER_BYTES: u64 = 512 << 20;
/// First guess at the size of a header.
const FIRST_BYTES: u64 = 1 << 20;
const MAGIC: [u8; 4] = *b"GGUF";
const PAIRS: u64 = 1 << 16;
const TENSORS: u64 = 1 << 20;
const KEY_BYTES: usize = u16::MAX as usize;
const NAME_BYTES: usize = 255;
const DIMENSIONS: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 16;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer type; a 64-bit one beyond `i64` does not occur in what is read here.
    Integer(i64),
    /// Either float type.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Integers or booleans.
    Integers(Vec<i64>),
    /// Floats.
    Floats(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
}

/// What precedes the tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Format version, 2 or 3.
    pub version: u32,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name, offsets from the start of the file.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// Parses the header in the first bytes of a file of `size` bytes.
///
/// # Errors
/// [`ModelError::Malformed`] for a broken structure (also if `bytes` does not hold the whole header),
/// [`ModelError::Unsupported`] for another version, [`ModelError::Tensor`] for a tensor that is
/// misplaced.
pub fn parse(file: &str, bytes: &[u8], size: u64) -> Result<Header, ModelError> {
    read(file, bytes, size).map_err(|stop| match stop {
        Stop::Short => ModelError::malformed(file, "ends in the middle of its header"),
        Stop::Wrong(error) => error,
    })
}

/// Opens a file and reads its header.
pub(crate) fn open(path: &Path) -> Result<(Header, TensorTable), ModelError> {
    let fail = |error| ModelError::io(path, error);
    let mut source = File::open(path).map_err(fail)?;
    let size = source.metadata().map_err(fail)?.len();
    let storage = Storage::File(path.to_owned());
    let name = storage.name();
    let most = size.min(HEADER_BYTES);
    let mut length = FIRST_BYTES.min(most);
    loop {
        let mut bytes = Vec::new();
        source.rewind().map_err(fail)?;
        source.by_ref().take(length).read_to_end(&mut bytes).map_err(fail)?;
        match read(&name, &bytes, size) {
            Err(Stop::Short) if length < most => length = (length * 4).min(most),
            Err(Stop::Short) if most < size => {
                let reason = format!("the header is longer than the {HEADER_BYTES} bytes allowed");
                return Err(ModelError::malformed(&name, reason));
            }
            Err(Stop::Short) => return Err(ModelError::malformed(&name, "ends in the middle of its header")),
            Err(Stop::Wrong(error)) => return Err(error),
            Ok(header) => {
                let tensors = header.tensors.clone();
                return Ok((header, TensorTable { files: vec![storage], tensors, absent: BTreeMap::new() }));
            }
        }
    }
}

/// Why reading a header stopped.
enum Stop {
    /// The bytes at hand end before the header does.
    Short,
    Wrong(ModelError),
}

fn read(file: &str, bytes: &[u8], size: u64) -> Result<Header, Stop> {
    let mut cursor = Cursor { file, rest: bytes };
    if cursor.array::<4>()? != MAGIC {
        return Err(cursor.wrong("is not a GGUF file"));
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        let given = version.to_string();
        return Err(Stop::Wrong(ModelError::unsupported(
            file,
            "GGUF version",
            given,
            "2, 3 (little-endian)",
        )));
    }
    let tensors = cursor.count("tensors", TENSORS)?;
    let pairs = cursor.count("metadata pairs", PAIRS)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..pairs {
        let key = cursor.text(KEY_BYTES)?;
        let kind = cursor.u32()?;
        let value = cursor.value(&key, kind)?;
        if metadata.contains_key(&key) {
            return Err(cursor.wrong(format!("has the key `{key:.100}` twice")));
        }
        metadata.insert(key, value);
    }
    let mut listed = Vec::new();
    for _ in 0..tensors {
        listed.push(cursor.tensor()?);
    }
    let end = (bytes.len() - cursor.rest.len()) as u64;
    let start = end.next_multiple_of(alignment(file, &metadata)?);
    let tensors = place(file, listed, start, size).map_err(Stop::Wrong)?;
    Ok(Header { version, metadata, tensors })
}

fn alignment(file: &str, metadata: &BTreeMap<String, Value>) -> Result<u64, Stop> {
    let key = "general.alignment";
    match metadata.get(key) {
        None => Ok(32),
        Some(Value::Integer(value))
            if value.cast_unsigned().is_power_of_two() && value.cast_unsigned() <= MAX_ALIGNMENT =>
        {
            Ok(value.cast_unsigned())
        }
        Some(other) => {
            let reason = format!("is {other:?}, but must be a power of two up to {MAX_ALIGNMENT}");
            Err(Stop::Wrong(ModelError::field(file, key, reason)))
        }
    }
}

/// A tensor as the directory lists it, its offset counted from the start of the data.
struct Listed {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: u64,
}

/// Checks that every tensor lies in the file and none in another.
fn place(
    file: &str,
    listed: Vec<Listed>,
    start: u64,
    size: u64,
) -> Result<BTreeMap<String, TensorInfo>, ModelError> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::with_capacity(listed.len());
    for Listed { name, dtype, shape, offset } in listed {
        let fail = |fault| Err(ModelError::tensor(file, &name, fault));
        let columns = shape.last().copied().unwrap_or_default();
        if !columns.is_multiple_of(dtype.block()) {
            return fail(TensorFault::Blocks { columns, block: dtype.block() });
        }
        let Some(bytes) = byte_count(dtype, &shape) else { return fail(TensorFault::Size { bytes: 0 }) };
        let range = start.checked_add(offset).and_then(|first| Some((first, first.checked_add(bytes)?)));
        let Some((first, end)) = range.filter(|&(_, end)| end <= size) else {
            let end = offset.saturating_add(bytes);
            return fail(TensorFault::Range {
                start: offset,
                end,
                reason: "past the end of the file".to_owned(),
            });
        };
        ranges.push((first, end, name.clone()));
        if tensors.insert(name.clone(), TensorInfo { file: 0, dtype, shape, offset: first, bytes }).is_some()
        {
            return Err(ModelError::malformed(file, format!("lists the tensor `{name}` twice")));
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((_, before, other), (start, end, name)) = (&pair[0], &pair[1]);
        if before > start {
            let fault = TensorFault::Range { start: *start, end: *end, reason: format!("inside `{other}`") };
            return Err(ModelError::tensor(file, name, fault));
        }
    }
    Ok(tensors)
}

/// Bytes of a tensor; 0 for a format whose size is not known, `None` on overflow or broken groups.
fn byte_count(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let elements = shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n))?;
    if matches!(dtype, Dtype::Other(_)) {
        return Some(0);
    }
    let columns = shape.last().copied().filter(|&columns| columns > 0)?;
    let row = dtype.row_bytes(columns)?;
    (elements / columns).checked_mul(row).map(|bytes| bytes as u64)
}

fn dtype(code: u32) -> Dtype {
    match code {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Q4_0,
        3 => Dtype::Other("Q4_1"),
        6 => Dtype::Other("Q5_0"),
        7 => Dtype::Other("Q5_1"),
        8 => Dtype::Q8_0,
        9 => Dtype::Other("Q8_1"),
        10 => Dtype::Other("Q2_K"),
        11 => Dtype::Other("Q3_K"),
        12 => Dtype::Q4_K,
        13 => Dtype::Other("Q5_K"),
        14 => Dtype::Q6_K,
        15 => Dtype::Other("Q8_K"),
        16..=19 | 21 | 22 | 29 => Dtype::Other("an IQ format"),
        20 => Dtype::Other("IQ4_NL"),
        23 => Dtype::Other("IQ4_XS"),
        24..=27 => Dtype::Other("integers"),
        28 => Dtype::Other("F64"),
        30 => Dtype::Bf16,
        34 | 35 => Dtype::Other("a ternary format"),
        39 => Dtype::Other("MXFP4"),
        _ => Dtype::Other("an unknown format"),
    }
}

/// Reads from the front of a header.
struct Cursor<'a> {
    file: &'a str,
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn wrong(&self, reason: impl Into<String>) -> Stop {
        Stop::Wrong(ModelError::malformed(self.file, reason))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let (&array, rest) = self.rest.split_first_chunk().ok_or(Stop::Short)?;
        self.rest = rest;
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, Stop> {
        let count = self.u64()?;
        if count <= most {
            Ok(count)
        } else {
            Err(self.wrong(format!("claims {count} {what}; at most {most} are read")))
        }
    }

    fn text(&mut self, most: usize) -> Result<String, Stop> {
        let length = self.count("bytes of text", most as u64)? as usize;
        let (text, rest) = self.rest.split_at_checked(length).ok_or(Stop::Short)?;
        self.rest = rest;
        match std::str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.wrong("has a text that is not UTF-8")),
        }
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value, Stop> {
        Ok(match kind {
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text(HEADER_BYTES as usize)?),
            9 => self.list(key)?,
            _ => Value::Integer(self.integer(key, kind)?),
        })
    }

    fn integer(&mut self, key: &str, kind: u32) -> Result<i64, Stop> {
        Ok(match kind {
            0 | 7 => i64::from(u8::from_le_bytes(self.array()?)),
            1 => i64::from(i8::from_le_bytes(self.array()?)),
            2 => i64::from(u16::from_le_bytes(self.array()?)),
            3 => i64::from(i16::from_le_bytes(self.array()?)),
            4 => i64::from(u32::from_le_bytes(self.array()?)),
            5 => i64::from(i32::from_le_bytes(self.array()?)),
            10 | 11 => i64::from_le_bytes(self.array()?),
            _ => return Err(self.wrong(format!("has the unknown type {kind} at `{key:.100}`"))),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, Stop> {
        let kind = self.u32()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => {
                return Err(
                    self.wrong(format!("has a list of type {kind} at `{key:.100}`, which is not read"))
                );
            }
        };
        let length = self.count("elements of a list", HEADER_BYTES / size)?;
        // Every element takes at least `size` bytes, so this also bounds what is allocated below.
        if length > self.rest.len() as u64 / size {
            return Err(Stop::Short);
        }
        let indices = 0..length;
        Ok(match kind {
            8 => Value::Texts(indices.map(|_| self.text(HEADER_BYTES as usize)).collect::<Result<_, _>>()?),
            6 => Value::Floats(
                indices
                    .map(|_| Ok(f64::from(f32::from_le_bytes(self.array()?))))
                    .collect::<Result<_, Stop>>()?,
            ),
            12 => Value::Floats(
                indices.map(|_| Ok(f64::from_le_bytes(self.array()?))).collect::<Result<_, Stop>>()?,
            ),
            _ => Value::Integers(indices.map(|_| self.integer(key, kind)).collect::<Result<_, _>>()?),
        })
    }

    fn tensor(&mut self) -> Result<Listed, Stop> {
        let name = self.text(NAME_BYTES)?;
        let dimensions = self.u32()?;
        if !(1..=DIMENSIONS).contains(&dimensions) {
            return Err(self.wrong(format!("tensor `{name}` has {dimensions} dimensions")));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            let n = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
            shape.push(n);
        }
        // The file lists the innermost dimension first.
        shape.reverse();
        Ok(Listed { name, dtype: dtype(self.u32()?), shape, offset: self.u64()? })
    }
}

#[cfg(test)]
pub(crate) mod tests;
