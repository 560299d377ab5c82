//! Keys in files, encrypted as wallets do it (version 3 of the JSON keystore, with scrypt), so that they can be
//! brought and taken along.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use aes::{
    Aes128,
    cipher::{KeyIvInit, StreamCipher},
};
use ctr::Ctr128BE;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::key::Key;
use crate::eip712::{Address, keccak};

/// Longest keystore or passphrase file that is read, in bytes.
const LONGEST_FILE: u64 = 64 << 10;
/// Most memory that a keystore may ask for, in bytes: eight times what wallets use.
const MOST_MEMORY: u64 = 2 << 30;
/// Most work, as a multiple of its memory.
const MOST_PASSES: u32 = 16;

/// A passphrase. Wiped from memory when it is dropped, and never printed.
pub struct Passphrase(Zeroizing<String>);

/// How much work it is to try one passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    log_n: u8,
    p: u32,
}

/// Why a key cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeystoreError {
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The file is no keystore, or of a kind that is not supported.
    #[error("no keystore of version 3 with scrypt: {0}")]
    Format(String),
    /// The passphrase is wrong, or the file is damaged.
    #[error("the passphrase is wrong")]
    Passphrase,
    /// A passphrase was asked for, and none came.
    #[error("no passphrase: {0}")]
    NoPassphrase(String),
    /// The system gives no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

impl Work {
    /// A fraction of a second and 128 MiB.
    pub const STANDARD: Self = Self { log_n: 17, p: 1 };
    /// A tenth of that: for keys that guard little, such as a development chain's.
    pub const LIGHT: Self = Self { log_n: 12, p: 6 };
}

impl Passphrase {
    /// A passphrase that the program has already.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The first line of a file.
    pub fn from_file(path: &Path) -> Result<Self, KeystoreError> {
        let text = read(path)?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err(KeystoreError::NoPassphrase(format!("{} is empty", path.display())));
        }
        Ok(Self::new(line.to_owned()))
    }

    /// Asks at the terminal, without showing what is typed.
    pub fn prompt(question: &str) -> Result<Self, KeystoreError> {
        let typed = rpassword::prompt_password(question);
        typed.map(Self::new).map_err(|error| KeystoreError::NoPassphrase(error.to_string()))
    }

    /// Asks twice, for a new key.
    pub fn prompt_new(question: &str) -> Result<Self, KeystoreError> {
        let first = Self::prompt(question)?;
        if first.0.is_empty() {
            return Err(KeystoreError::NoPassphrase("it must not be empty".to_owned()));
        }
        if *Self::prompt("The same again: ")?.0 != *first.0 {
            return Err(KeystoreError::NoPassphrase("the two differ".to_owned()));
        }
        Ok(first)
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

#[derive(Serialize, Deserialize)]
struct Keystore {
    version: u32,
    id: String,
    address: Option<String>,
    #[serde(alias = "Crypto")]
    crypto: Crypto,
}

#[derive(Serialize, Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParams,
    #[serde(with = "hex::serde")]
    ciphertext: Vec<u8>,
    kdf: String,
    kdfparams: KdfParams,
    #[serde(with = "hex::serde")]
    mac: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct CipherParams {
    #[serde(with = "hex::serde")]
    iv: [u8; 16],
}

#[derive(Serialize, Deserialize)]
struct KdfParams {
    dklen: u32,
    n: u64,
    r: u32,
    p: u32,
    #[serde(with = "hex::serde")]
    salt: Vec<u8>,
}

/// What a passphrase becomes: 16 bytes of key for the cipher, 16 for the check.
type Derived = Zeroizing<[u8; 32]>;

/// Writes a key to a new file that only its owner may read. Takes as long and as much memory as `work` says.
pub fn write_key(path: &Path, key: &Key, passphrase: &Passphrase, work: Work) -> Result<(), KeystoreError> {
    let text = encrypt(key, passphrase, work)?;
    let failed = |error| KeystoreError::File { path: path.display().to_string(), error };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| {
        // Half a keystore would only be in the way; what matters is why it could not be written.
        let _ = fs::remove_file(path);
        failed(error)
    })
}

/// Reads a key. Takes as long and as much memory as the file asks for, within limits.
pub fn read_key(path: &Path, passphrase: &Passphrase) -> Result<Key, KeystoreError> {
    decrypt(&read(path)?, passphrase)
}

/// Whose key a file holds, as the file says: only the passphrase proves it. `None` if it does not say.
pub fn read_address(path: &Path) -> Result<Option<Address>, KeystoreError> {
    let keystore = parse(&read(path)?)?;
    let Some(digits) = keystore.address else { return Ok(None) };
    let mut address = [0; 20];
    hex::decode_to_slice(digits.trim_start_matches("0x"), &mut address)
        .map_err(|error| KeystoreError::Format(error.to_string()))?;
    Ok(Some(address))
}

fn read(path: &Path) -> Result<Zeroizing<String>, KeystoreError> {
    let mut text = Zeroizing::new(String::new());
    let read = File::open(path).and_then(|file| file.take(LONGEST_FILE).read_to_string(&mut text));
    read.map_err(|error| KeystoreError::File { path: path.display().to_string(), error })?;
    Ok(text)
}

fn encrypt(key: &Key, passphrase: &Passphrase, work: Work) -> Result<String, KeystoreError> {
    let (mut salt, mut iv, mut id) = ([0; 32], [0; 16], [0; 16]);
    for bytes in [&mut salt[..], &mut iv, &mut id] {
        getrandom::fill(bytes).map_err(KeystoreError::Random)?;
    }
    let kdfparams = KdfParams { dklen: 32, n: 1 << work.log_n, r: 8, p: work.p, salt: salt.to_vec() };
    let derived = derive(passphrase, &kdfparams)?;
    let mut ciphertext = key.to_bytes().to_vec();
    apply(&derived, &iv, &mut ciphertext);
    let mac = mac(&derived, &ciphertext);
    let crypto = Crypto {
        cipher: "aes-128-ctr".to_owned(),
        cipherparams: CipherParams { iv },
        ciphertext,
        kdf: "scrypt".to_owned(),
        kdfparams,
        mac,
    };
    let keystore = Keystore { version: 3, id: uuid(id), address: Some(hex::encode(key.address())), crypto };
    serde_json::to_string_pretty(&keystore).map_err(|error| KeystoreError::Format(error.to_string()))
}

fn parse(text: &str) -> Result<Keystore, KeystoreError> {
    serde_json::from_str(text).map_err(|error| KeystoreError::Format(error.to_string()))
}

fn decrypt(text: &str, passphrase: &Passphrase) -> Result<Key, KeystoreError> {
    let format = |what: &str| KeystoreError::Format(what.to_owned());
    let keystore = parse(text)?;
    let crypto = keystore.crypto;
    if (keystore.version, crypto.cipher.as_str(), crypto.kdf.as_str()) != (3, "aes-128-ctr", "scrypt") {
        return Err(format("other version, cipher or key derivation"));
    }
    if crypto.ciphertext.len() != 32 {
        return Err(format("what is encrypted is not 32 bytes"));
    }
    let derived = derive(passphrase, &crypto.kdfparams)?;
    if mac(&derived, &crypto.ciphertext) != crypto.mac {
        return Err(KeystoreError::Passphrase);
    }
    let mut secret = Zeroizing::new([0; 32]);
    secret.copy_from_slice(&crypto.ciphertext);
    apply(&derived, &crypto.cipherparams.iv, secret.as_mut());
    let key = Key::from_bytes(&secret).map_err(|_| format("what is encrypted is no key"))?;
    let address = keystore.address.map(|address| address.trim_start_matches("0x").to_lowercase());
    if address.is_some_and(|address| address != hex::encode(key.address())) {
        return Err(format("the address is another key's"));
    }
    Ok(key)
}

fn derive(passphrase: &Passphrase, params: &KdfParams) -> Result<Derived, KeystoreError> {
    let refused = || KeystoreError::Format("parameters of scrypt that are refused".to_owned());
    let memory = params.n.checked_mul(128).and_then(|bytes| bytes.checked_mul(params.r.into()));
    if !params.n.is_power_of_two()
        || params.dklen != 32
        || params.p > MOST_PASSES
        || memory.is_none_or(|bytes| bytes > MOST_MEMORY)
    {
        return Err(refused());
    }
    let log_n = params.n.trailing_zeros() as u8;
    let scrypt = scrypt::Params::new(log_n, params.r, params.p).map_err(|_| refused())?;
    let mut derived = Derived::default();
    scrypt::scrypt(passphrase.0.as_bytes(), &params.salt, &scrypt, derived.as_mut())
        .map_err(|_| refused())?;
    Ok(derived)
}

/// Encrypts and decrypts alike.
fn apply(derived: &Derived, iv: &[u8; 16], bytes: &mut [u8]) {
    let key = derived.first_chunk::<16>().expect("32 bytes begin with 16");
    Ctr128BE::<Aes128>::new(key.into(), iv.into()).apply_keystream(bytes);
}

fn mac(derived: &Derived, ciphertext: &[u8]) -> [u8; 32] {
    keccak(&Zeroizing::new([&derived[16..], ciphertext].concat()))
}

/// Random bytes as a UUID of version 4.
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const QUICK: Work = Work { log_n: 4, p: 1 };

    /// Of `eth-account` 0.14.0, a Python library. (The vector in the keystore's definition has parameters that the
    /// definition of scrypt forbids, and no program writes such.)
    const KNOWN: &str = r#"{
        "address": "008AeEda4D805471dF9b2A5B0f38A0C3bCBA786b",
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": { "iv": "7e8ef501e519675043a72fffaa1488ee" },
            "ciphertext": "c724b42a2b1fbcbbe8bbc8fcb2cc69ba1da9f64230664455054445c5d6ba7392",
            "kdf": "scrypt",
            "kdfparams": { "dklen": 32, "n": 4096, "r": 8, "p": 1, "salt": "f2be6427bc5e3e3f71fb4ce3dc3ab216" },
            "mac": "9f5b703322a8974f4ed2d8d98d44c9b2663a614c0f6caa54b33c4f57f5a52b16"
        },
        "id": "1970c327-979e-41bb-afe8-ba213442f82a",
        "version": 3
    }"#;

    fn passphrase() -> Passphrase {
        Passphrase::new("correct horse".to_owned())
    }

    #[test]
    fn other_programs_keystores_are_read() {
        let key = decrypt(KNOWN, &Passphrase::new("testpassword".to_owned())).unwrap();
        let secret = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d";
        assert_eq!(hex::encode(*key.to_bytes()), secret);
        let wrong = decrypt(KNOWN, &passphrase());
        assert!(matches!(wrong, Err(KeystoreError::Passphrase)), "{wrong:?}");
    }

    #[test]
    fn a_key_is_read_as_it_was_written_and_by_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        let key = Key::generate().unwrap();
        write_key(&path, &key, &passphrase(), QUICK).unwrap();
        assert_eq!(read_key(&path, &passphrase()).unwrap().address(), key.address());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&hex::encode(*key.to_bytes())));

        let again = write_key(&path, &Key::generate().unwrap(), &passphrase(), QUICK);
        assert!(matches!(again, Err(KeystoreError::File { .. })), "{again:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "a key is never overwritten");
    }

    #[test]
    fn a_file_cannot_ask_for_all_memory_or_time() {
        for (from, to) in [
            ("\"n\": 4096", "\"n\": 1099511627776"),
            ("\"n\": 4096", "\"n\": 4097"),
            ("\"n\": 4096", "\"n\": 0"),
            ("\"r\": 8", "\"r\": 4000000000"),
            ("\"r\": 8", "\"r\": 0"),
            ("\"p\": 1", "\"p\": 100000"),
            ("\"p\": 1", "\"p\": 0"),
            ("\"dklen\": 32", "\"dklen\": 16"),
            ("scrypt\"", "pbkdf2\""),
            ("\"version\": 3", "\"version\": 1"),
            ("c724b42a", "c724b4"),
        ] {
            assert!(KNOWN.contains(from), "{from}");
            let odd = decrypt(&KNOWN.replace(from, to), &passphrase());
            assert!(matches!(odd, Err(KeystoreError::Format(_))), "{to}: {odd:?}");
        }
    }

    #[test]
    fn a_passphrase_is_the_first_line_and_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        fs::write(&path, "correct horse\r\nbattery\n").unwrap();
        let read = Passphrase::from_file(&path).unwrap();
        assert_eq!(*read.0, *passphrase().0);
        assert!(!format!("{read:?}").contains("horse"));
        fs::write(&path, "\n").unwrap();
        assert!(Passphrase::from_file(&path).is_err());
        assert!(Passphrase::from_file(&folder.path().join("none")).is_err());
    }
}
