//! Who a peer is: the ed25519 key it holds, the id others know it by, where it listens.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

/// The public key of a node, and its name in every protocol message.
///
/// Text form: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

impl NodeId {
    /// The 32 bytes of the ed25519 public key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight hex digits: for people and logs, never for comparison.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }

    /// Whether `signature` over `message` was made by the holder of this id.
    ///
    /// Weak keys and malleable signatures are refused.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .and_then(|key| key.verify_strict(message, &Signature::from_bytes(signature)))
            .is_ok()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

impl FromStr for NodeId {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| AddressError::Id)?;
        Ok(Self(bytes))
    }
}

/// A peer one can dial: whom to expect, and where.
///
/// Text form: `id@host:port`, with an IPv6 host in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// The id the peer must prove.
    pub id: NodeId,
    /// Where its endpoint listens (UDP).
    pub address: SocketAddr,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.address)
    }
}

impl FromStr for PeerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (id, address) = text.split_once('@').ok_or(AddressError::Separator)?;
        Ok(Self { id: id.parse()?, address: address.parse().map_err(|_| AddressError::Socket)? })
    }
}

/// Why a text is not a node id or a peer address; the fault is the text's author's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The id part is malformed.
    #[error("a node id is 64 hex digits")]
    Id,
    /// There is no `@`.
    #[error("a peer address is written id@ip:port")]
    Separator,
    /// The part after `@` is not a socket address.
    #[error("after the @ an ip:port is needed, such as 192.0.2.7:4100 or [2001:db8::7]:4100")]
    Socket,
}

/// Fills `bytes` from the operating system's randomness.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), IdentityError> {
    let provider = rustls::crypto::ring::default_provider();
    provider.secure_random.fill(bytes).map_err(|_| IdentityError::Randomness)
}

/// A node's secret key. Cloning copies the secret; it is wiped from memory when dropped.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

impl Identity {
    /// A new identity from the operating system's randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut secret = [0; 32];
        fill_random(&mut secret)?;
        Ok(Self::from_secret(secret))
    }

    /// The identity with this ed25519 secret seed. Tests use fixed seeds; nodes must not.
    pub fn from_secret(secret: [u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(&secret) }
    }

    /// The id this identity proves.
    pub fn id(&self) -> NodeId {
        NodeId(self.key.verifying_key().to_bytes())
    }

    /// Signs `message`; [`NodeId::verify`] checks it. Callers separate domains.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// Reads an identity file: one line of 64 hex digits, readable by its owner only.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let file = |source| IdentityError::File { path: path.to_owned(), source };
        refuse_readable_by_others(path)?;
        let text = fs::read_to_string(path).map_err(file)?;
        let mut secret = [0; 32];
        hex::decode_to_slice(text.trim_end(), &mut secret)
            .map_err(|_| IdentityError::Format { path: path.to_owned() })?;
        Ok(Self::from_secret(secret))
    }

    /// Writes a new identity file with mode 0600. The file appears whole or not at all, and
    /// an existing one is never replaced: losing a key loses the stake behind it.
    pub fn store(&self, path: &Path) -> Result<(), IdentityError> {
        let file = |source| IdentityError::File { path: path.to_owned(), source };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let draft = path.with_file_name(name);
        let written = self.write_draft(&draft).and_then(|()| fs::hard_link(&draft, path));
        // A draft that cannot be removed is a private file of ours; the outcome stands.
        let _ = fs::remove_file(&draft);
        written.map_err(file)
    }

    fn write_draft(&self, path: &Path) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        writeln!(file, "{}", hex::encode(self.key.to_bytes()))?;
        file.sync_all()
    }

    /// Loads the identity at `path`, or creates it there on first use.
    pub fn load_or_generate(path: &Path) -> Result<Self, IdentityError> {
        match Self::load(path) {
            Err(error) if error.is_kind(io::ErrorKind::NotFound) => {}
            loaded => return loaded,
        }
        let identity = Self::generate()?;
        match identity.store(path) {
            Ok(()) => Ok(identity),
            // Another process of the same node was first; both must use its key.
            Err(error) if error.is_kind(io::ErrorKind::AlreadyExists) => Self::load(path),
            Err(error) => Err(error),
        }
    }

    /// The key as PKCS#8, the form TLS libraries read.
    pub(crate) fn to_pkcs8(&self) -> Result<Vec<u8>, ed25519_dalek::pkcs8::Error> {
        use ed25519_dalek::pkcs8::EncodePrivateKey;
        Ok(self.key.to_pkcs8_der()?.as_bytes().to_vec())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.id().short())
    }
}

#[cfg(unix)]
fn refuse_readable_by_others(path: &Path) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata =
        fs::metadata(path).map_err(|source| IdentityError::File { path: path.to_owned(), source })?;
    match metadata.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => Err(IdentityError::Exposed { path: path.to_owned() }),
    }
}

#[cfg(not(unix))]
fn refuse_readable_by_others(_: &Path) -> Result<(), IdentityError> {
    Ok(())
}

/// Why an identity could not be made, read or written; the fault is local.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    Randomness,
    /// The file could not be read or created.
    #[error("identity file {path}: {source}", path = path.display())]
    File {
        /// The identity file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("identity file {path} is not one line of 64 hex digits", path = path.display())]
    Format {
        /// The identity file.
        path: PathBuf,
    },
    /// Others on this machine can read the secret.
    #[error("identity file {path} is readable by others: make its mode 0600", path = path.display())]
    Exposed {
        /// The identity file.
        path: PathBuf,
    },
}

impl IdentityError {
    fn is_kind(&self, kind: io::ErrorKind) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip() {
        let id = Identity::from_secret([7; 32]).id();
        assert_eq!(id.to_string().parse(), Ok(id));
        for address in ["127.0.0.1:4100", "[::1]:9"] {
            let peer = PeerAddress { id, address: address.parse().unwrap() };
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
    }

    #[test]
    fn malformed_addresses_say_which_part() {
        let id = Identity::from_secret([7; 32]).id();
        let parse = |text: &str| text.parse::<PeerAddress>();
        assert_eq!(parse("127.0.0.1:1"), Err(AddressError::Separator));
        assert_eq!(parse("abc@127.0.0.1:1"), Err(AddressError::Id));
        assert_eq!(parse(&format!("{id}@127.0.0.1")), Err(AddressError::Socket));
        assert_eq!(parse(&format!("{id}0@127.0.0.1:1")), Err(AddressError::Id));
    }

    #[test]
    fn signatures_verify_only_for_their_signer_and_message() {
        let (ours, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let signature = ours.sign(b"account");
        assert!(ours.id().verify(b"account", &signature));
        assert!(!ours.id().verify(b"another", &signature));
        assert!(!other.id().verify(b"account", &signature));
        assert!(!NodeId([0xff; 32]).verify(b"account", &signature));
    }

    #[test]
    fn identity_files_persist_and_are_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        let first = Identity::load_or_generate(&path).unwrap();
        assert_eq!(Identity::load_or_generate(&path).unwrap().id(), first.id());
        let replaced = Identity::generate().unwrap().store(&path).unwrap_err();
        assert!(replaced.is_kind(io::ErrorKind::AlreadyExists), "{replaced}");
        assert_eq!(Identity::load(&path).unwrap().id(), first.id());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a draft was left behind");
    }

    #[cfg(unix)]
    #[test]
    fn exposed_or_malformed_identity_files_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        Identity::generate().unwrap().store(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Exposed { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Format { .. })));
    }
}
