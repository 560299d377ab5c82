//! TLS 1.3 between keys: both sides present their ed25519 key as an RFC 7250 raw public key,
//! so there is no certificate to parse, to date or to trust. A peer's id is its key.

use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme,
};

use crate::{Identity, NodeId};

/// The name of the protocol: both sides offer it, and perhaps others that they like better.
pub(super) const ALPN: &[u8] = b"dolphin/1";
/// The same for links that may move to RDMA.
pub(crate) const ALPN_RDMA: &[u8] = b"dolphin/1+rdma";

/// DER of an ed25519 SubjectPublicKeyInfo up to the key's 32 bytes (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The id in a raw public key; `None` for any other key type or encoding.
pub(super) fn id_of_key(der: &[u8]) -> Option<NodeId> {
    Some(NodeId(der.strip_prefix(&SPKI_PREFIX)?.try_into().ok()?))
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The identity in the form rustls signs with.
pub(crate) fn certified_key(identity: &Identity) -> Result<Arc<CertifiedKey>, Error> {
    let unusable = |_| Error::General("the identity is no usable key".into());
    let pkcs8 = identity.to_pkcs8().map_err(unusable)?;
    let key = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8))?;
    let spki = [&SPKI_PREFIX[..], identity.id().as_bytes()].concat();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key)))
}

/// For dialling the node `expected` and speaking one of `protocols`, best first. `found` receives the id that answers, once it has proven
/// itself or has turned out to be another.
pub(crate) fn client_config(
    key: Arc<CertifiedKey>,
    expected: NodeId,
    found: Arc<OnceLock<NodeId>>,
    protocols: Vec<Vec<u8>>,
) -> Result<QuicClientConfig, Error> {
    let verifier = KeyVerifier { expected: Some(expected), found, provider: provider() };
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    config.alpn_protocols = protocols;
    config.enable_sni = false;
    config.enable_early_data = false;
    // A resumed session would skip the proof of identity.
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|_| Error::General("no initial cipher suite".into()))
}

/// For accepting any node that proves its id and speaks one of `protocols`, best first.
pub(super) fn server_config(
    key: Arc<CertifiedKey>,
    protocols: Vec<Vec<u8>>,
) -> Result<QuicServerConfig, Error> {
    let verifier = KeyVerifier { expected: None, found: Arc::default(), provider: provider() };
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    config.alpn_protocols = protocols;
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    QuicServerConfig::try_from(config).map_err(|_| Error::General("no initial cipher suite".into()))
}

/// Accepts exactly the ed25519 keys, or exactly the expected one, whose owner signed the
/// handshake.
#[derive(Debug)]
struct KeyVerifier {
    expected: Option<NodeId>,
    found: Arc<OnceLock<NodeId>>,
    provider: Arc<CryptoProvider>,
}

/// A verifier for clients of tests, which trust any key.
#[cfg(test)]
pub(super) fn any_key() -> Arc<dyn ServerCertVerifier> {
    Arc::new(KeyVerifier { expected: None, found: Arc::default(), provider: provider() })
}

impl KeyVerifier {
    fn check_key(&self, key: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let id = id_of_key(key).filter(|_| chain.is_empty()).ok_or(CertificateError::BadEncoding)?;
        if self.expected.is_some() {
            let _ = self.found.set(id);
        }
        match self.expected {
            Some(expected) if expected != id => Err(CertificateError::ApplicationVerificationFailure.into()),
            _ => Ok(()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
        }
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(key.as_ref()),
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_key(key, chain).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check_key(key, chain).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
