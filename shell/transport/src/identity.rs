//! Who is at the other end: an Ed25519 key, shown in a self-signed certificate and proven by the TLS 1.3 handshake.
//!
//! There is no certificate authority, no host name and no expiry here: a peer *is* its key, and a pin set says which
//! keys may enter. The certificate is only the envelope TLS wants around the key. The handshake signature is always
//! verified with the provider's own functions. Sessions are never resumed: a resumed session would skip the pin check
//! and so outlive the removal of a key. Nothing here knows replicas or links; the client-facing API uses it as well.

use std::fmt;
use std::sync::{Arc, RwLock};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};

/// A raw Ed25519 public key, as it stands in a certificate's public key field. This is what is pinned.
pub type PublicKey = [u8; 32];

/// The name written into every certificate. Nobody checks it; TLS libraries insist on one.
pub const CERTIFICATE_NAME: &str = "replica.dwcp";

/// What precedes the 32 key bytes in the DER form of an Ed25519 public key (RFC 8410).
const SPKI_ED25519_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What precedes the 32 seed bytes in a PKCS #8 private key of version 1 (RFC 8410).
const PKCS8_ED25519_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the TLS key cannot be read ({0}): give an unencrypted PKCS #8 PEM block `PRIVATE KEY`")]
    Unreadable(String),
    #[error("the TLS key is not an Ed25519 key: make one with `dwcp keygen`")]
    NotEd25519,
    #[error("no TLS key could be generated ({0}): check that the system offers randomness")]
    Generate(String),
    #[error("no certificate could be made from the TLS key ({0}): make a new key with `dwcp keygen`")]
    Certificate(String),
    #[error("TLS could not be configured ({0})")]
    Tls(#[from] rustls::Error),
}

/// A private Ed25519 key and the self-signed certificate that shows its public half.
pub struct TlsIdentity {
    key: KeyPair,
    public_key: PublicKey,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").field("public_key", &key_text(&self.public_key)).finish_non_exhaustive()
    }
}

impl TlsIdentity {
    /// A new key from the system's randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(|e| IdentityError::Generate(e.to_string()))?;
        Self::from_key(key)
    }

    /// The key whose private seed is `seed`.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, IdentityError> {
        let mut der = PKCS8_ED25519_PREFIX.to_vec();
        der.extend_from_slice(seed);
        let der = PrivatePkcs8KeyDer::from(der);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
            .map_err(|e| IdentityError::Unreadable(e.to_string()))?;
        Self::from_key(key)
    }

    /// Reads what [`Self::to_pem`] wrote (or `openssl genpkey -algorithm ed25519`).
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, IdentityError> {
        // The reader of PEM repeats what it takes for a block's name: with a broken first line that is the key itself.
        let unreadable = |error: rcgen::Error| match error {
            rcgen::Error::PemError(_) => "it is no PEM".to_string(),
            other => other.to_string(),
        };
        let key = KeyPair::from_pem(pem).map_err(|error| IdentityError::Unreadable(unreadable(error)))?;
        Self::from_key(key)
    }

    fn from_key(key: KeyPair) -> Result<Self, IdentityError> {
        if key.algorithm() != &PKCS_ED25519 {
            return Err(IdentityError::NotEd25519);
        }
        let public_key = key.public_key_raw().try_into().map_err(|_| IdentityError::NotEd25519)?;
        // The validity and serial number are functions of the key alone, so one key always shows one certificate.
        let mut params = CertificateParams::new(vec![CERTIFICATE_NAME.to_string()])
            .map_err(|e| IdentityError::Certificate(e.to_string()))?;
        params.distinguished_name.push(DnType::CommonName, CERTIFICATE_NAME);
        let certificate = params.self_signed(&key).map_err(|e| IdentityError::Certificate(e.to_string()))?;
        Ok(Self {
            public_key,
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key,
        })
    }

    /// The private key as a PKCS #8 PEM block. Write it to a file only its owner can read.
    pub fn to_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The certificate as PEM, for tools that want a file to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The pin by which others know this identity.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

/// Which keys may enter. Clones share one set, so a change reaches configurations already in use; it binds the
/// handshakes that follow, not links already up. Bound: what its owner puts in.
#[derive(Clone, Debug)]
pub struct PinSet {
    keys: Arc<RwLock<Pinned>>,
}

#[derive(Debug)]
enum Pinned {
    Keys(Vec<PublicKey>),
    AnyKey,
}

impl PinSet {
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self { keys: Arc::new(RwLock::new(Pinned::Keys(keys.into_iter().collect()))) }
    }

    /// Any Ed25519 key enters once it proves possession of its private half; the caller must then read it with
    /// [`peer_public_key`] and decide. For servers whose clients stand in a registry of their own.
    pub fn any_key() -> Self {
        Self { keys: Arc::new(RwLock::new(Pinned::AnyKey)) }
    }

    pub fn replace(&self, keys: impl IntoIterator<Item = PublicKey>) {
        *self.keys.write().expect("no panic while the pin set is held") =
            Pinned::Keys(keys.into_iter().collect());
    }

    pub fn contains(&self, key: &PublicKey) -> bool {
        match &*self.keys.read().expect("no panic while the pin set is held") {
            Pinned::Keys(keys) => keys.contains(key),
            Pinned::AnyKey => true,
        }
    }
}

/// The configuration of a listening side. TLS 1.3 only. With `require_client` a peer without certificate is refused;
/// without it such a peer enters anonymously, and one that does show a certificate must still be in `pins`.
/// The caller may set `alpn_protocols`.
pub fn server_config(
    identity: &TlsIdentity,
    pins: &PinSet,
    require_client: bool,
) -> Result<ServerConfig, IdentityError> {
    let verifier = Arc::new(PinVerifier {
        pins: pins.clone(),
        provider: provider(),
        client_is_mandatory: require_client,
    });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.private_key())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The configuration of a dialling side. TLS 1.3 only; the server must hold one of the keys in `pins`. The name it is
/// dialled by does not matter. Without `identity` the dialler stays anonymous. The caller may set `alpn_protocols`.
pub fn client_config(identity: Option<&TlsIdentity>, pins: &PinSet) -> Result<ClientConfig, IdentityError> {
    let verifier =
        Arc::new(PinVerifier { pins: pins.clone(), provider: provider(), client_is_mandatory: true });
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain(), identity.private_key())?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// The key a peer has proven to hold, from `peer_certificates()` of a finished handshake.
pub fn peer_public_key(certificates: Option<&[CertificateDer<'_>]>) -> Option<PublicKey> {
    certificate_public_key(certificates?.first()?).ok()
}

/// The first bytes of a key in hexadecimal: enough to tell keys apart in a log line.
pub fn key_text(key: &PublicKey) -> String {
    use fmt::Write;
    key[..8].iter().fold(String::with_capacity(16), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

/// Why a certificate was turned away, carried inside rustls' error so that the log can name the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key {} is not pinned here", key_text(&self.offered))]
pub(crate) struct NotPinned {
    pub(crate) offered: PublicKey,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificate_public_key(certificate: &CertificateDer<'_>) -> Result<PublicKey, rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let spki = parsed.subject_public_key_info();
    spki.strip_prefix(&SPKI_ED25519_PREFIX[..])
        .and_then(|key| key.try_into().ok())
        .ok_or_else(|| CertificateError::BadEncoding.into())
}

#[derive(Debug)]
struct PinVerifier {
    pins: PinSet,
    provider: Arc<CryptoProvider>,
    client_is_mandatory: bool,
}

impl PinVerifier {
    fn check_pin(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let offered = certificate_public_key(certificate)?;
        if self.pins.contains(&offered) {
            Ok(())
        } else {
            Err(CertificateError::Other(OtherError(Arc::new(NotPinned { offered }))).into())
        }
    }

    /// The proof that the peer holds the private half of the key it showed. Without it the pin would mean nothing:
    /// certificates are public.
    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }
}

fn refuse_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check_pin(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for PinVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_is_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check_pin(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConnection, ServerConnection};

    fn name() -> ServerName<'static> {
        ServerName::try_from(CERTIFICATE_NAME).expect("a valid name")
    }

    /// Runs a handshake in memory until both sides are done or one fails.
    fn handshake(
        client: ClientConfig,
        server: ServerConfig,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let mut client = ClientConnection::new(Arc::new(client), name())?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).expect("memory");
            }
            let mut cursor = &wire[..];
            while !cursor.is_empty() {
                server.read_tls(&mut cursor).expect("memory");
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).expect("memory");
            }
            let mut cursor = &wire[..];
            while !cursor.is_empty() {
                client.read_tls(&mut cursor).expect("memory");
                client.process_new_packets()?;
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok((client, server))
    }

    #[test]
    fn a_key_survives_its_pem_and_shows_one_certificate() {
        let first = TlsIdentity::generate().expect("generate");
        let again = TlsIdentity::from_pkcs8_pem(&first.to_pem()).expect("read back");
        assert_eq!(first.public_key(), again.public_key());
        assert_eq!(first.certificate_pem(), again.certificate_pem());
    }

    #[test]
    fn a_seed_gives_the_public_key_of_rfc_8032() {
        let mut seed = [0u8; 32];
        let text = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        for (i, byte) in seed.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex");
        }
        let identity = TlsIdentity::from_seed(&seed).expect("seed");
        assert_eq!(key_text(&identity.public_key()), public[..16]);
    }

    #[test]
    fn a_key_that_is_no_ed25519_key_is_refused_with_a_remedy() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("p256");
        let error = TlsIdentity::from_pkcs8_pem(&key.serialize_pem()).expect_err("p256 is refused");
        assert!(matches!(error, IdentityError::NotEd25519));
        let error = TlsIdentity::from_pkcs8_pem("not a key").expect_err("garbage is refused");
        assert!(error.to_string().contains("PKCS #8"), "{error}");
    }

    #[test]
    fn pinned_peers_meet_and_learn_each_others_key() {
        let (a, b) = (TlsIdentity::generate().expect("a"), TlsIdentity::generate().expect("b"));
        let client = client_config(Some(&a), &PinSet::new([b.public_key()])).expect("client");
        let server = server_config(&b, &PinSet::new([a.public_key()]), true).expect("server");
        let (client, server) = handshake(client, server).expect("both pinned");
        assert_eq!(peer_public_key(client.peer_certificates()), Some(b.public_key()));
        assert_eq!(peer_public_key(server.peer_certificates()), Some(a.public_key()));
    }

    #[test]
    fn an_unpinned_key_is_refused_on_either_side_and_named() {
        let (a, b, c) = (
            TlsIdentity::generate().expect("a"),
            TlsIdentity::generate().expect("b"),
            TlsIdentity::generate().expect("c"),
        );
        let pins = PinSet::new([c.public_key()]);
        for (client_pins, server_pins, offered) in [
            (pins.clone(), PinSet::new([a.public_key()]), b.public_key()),
            (PinSet::new([b.public_key()]), pins.clone(), a.public_key()),
        ] {
            let client = client_config(Some(&a), &client_pins).expect("client");
            let server = server_config(&b, &server_pins, true).expect("server");
            let Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))) =
                handshake(client, server)
            else {
                panic!("an unpinned key must be refused as such")
            };
            assert_eq!(cause.downcast_ref::<NotPinned>(), Some(&NotPinned { offered }));
        }
    }

    #[test]
    fn a_pinned_certificate_without_its_private_key_is_refused() {
        let (victim, thief, client) = (
            TlsIdentity::generate().expect("victim"),
            TlsIdentity::generate().expect("thief"),
            TlsIdentity::generate().expect("client"),
        );
        // The thief shows the victim's public certificate but can only sign with its own key.
        let key = rustls::crypto::ring::sign::any_supported_type(&thief.private_key()).expect("key");
        let stolen = rustls::sign::CertifiedKey::new(victim.chain(), key);
        let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(stolen));
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("version")
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        let client = client_config(Some(&client), &PinSet::new([victim.public_key()])).expect("client");
        let error = handshake(client, server).expect_err("the signature does not fit the key");
        assert_eq!(error, rustls::Error::InvalidCertificate(CertificateError::BadSignature));
    }

    #[test]
    fn an_anonymous_client_enters_only_where_none_is_required() {
        let server = TlsIdentity::generate().expect("server");
        let pins = PinSet::new([server.public_key()]);
        let anonymous = || client_config(None, &pins).expect("client");
        let open = server_config(&server, &PinSet::new([]), false).expect("open");
        let (_, connection) = handshake(anonymous(), open).expect("none required");
        assert_eq!(peer_public_key(connection.peer_certificates()), None);
        let closed = server_config(&server, &PinSet::new([]), true).expect("closed");
        let error = handshake(anonymous(), closed).expect_err("one required");
        assert_eq!(error, rustls::Error::NoCertificatesPresented);
    }

    #[test]
    fn a_pin_removed_later_binds_configurations_already_made() {
        let (a, b) = (TlsIdentity::generate().expect("a"), TlsIdentity::generate().expect("b"));
        let pins = PinSet::new([a.public_key()]);
        let server = server_config(&b, &pins, true).expect("server");
        let mut client = client_config(Some(&a), &PinSet::new([b.public_key()])).expect("client");
        // A client that would resume its session, and so skip showing its key, if only the server let it.
        client.resumption = Resumption::in_memory_sessions(8);
        handshake(client.clone(), server.clone()).expect("still pinned");
        pins.replace([]);
        handshake(client, server).expect_err("no longer pinned");
    }
}
