//! A fake JWT issuer: its keys, the JWTs that it signs, and the server that publishes its JWKS.
//!
//! It can fail on demand, which a real one cannot: hang, send 10 MB, sign with an unpublished key; and it counts requests. It shares
//! no code with the service. Its threads end with the test process.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::certificate::{Presents, server_config};
use crate::jwt;
use crate::request::Request;

/// The audience of JWTs for the service.
pub(crate) const AUDIENCE: &str = "livekit-tokens";
/// The `iss` of all JWTs.
pub(crate) const ISSUER: &str = "https://login.example.com";
/// Bytes of an oversized response.
pub(crate) const OVERSIZED_BYTES: u64 = 10 * 1024 * 1024;

/// How the server responds to a request.
#[derive(Clone, Debug)]
pub(crate) enum IssuerBehaviour {
    /// With its JWKS.
    Normal,
    /// With its JWKS and [`OVERSIZED_BYTES`] of spaces, with or without a Content-Length.
    Oversized { content_length: bool },
    /// Not at all, but the connection stays open.
    Hangs,
    /// With this status, these header lines and this body.
    Responds(&'static str, String, String),
}

/// A running issuer.
pub(crate) struct FakeIssuer {
    address: SocketAddr,
    state: Arc<IssuerState>,
}

struct IssuerState {
    behaviour: Mutex<IssuerBehaviour>,
    keys: Mutex<Vec<Value>>,
    fetch_count: AtomicUsize,
    oversized_bytes_sent: AtomicU64,
}

impl FakeIssuer {
    /// Starts an issuer that publishes these keys.
    pub(crate) fn with_keys(keys: &[&SigningKey]) -> Self {
        Self::start(keys, IssuerBehaviour::Normal)
    }

    pub(crate) fn start(keys: &[&SigningKey], behaviour: IssuerBehaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(IssuerState {
            behaviour: Mutex::new(behaviour),
            keys: Mutex::new(keys.iter().map(|key| key.jwk()).collect()),
            fetch_count: AtomicUsize::new(0),
            oversized_bytes_sent: AtomicU64::new(0),
        });
        let (shared, tls) = (
            Arc::clone(&state),
            server_config(Presents::Name("localhost")),
        );
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, tls) = (Arc::clone(&shared), Arc::clone(&tls));
                thread::spawn(move || state.serve(stream, tls));
            }
        });
        Self { address, state }
    }

    /// The URL of the JWKS.
    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}/keys?use=sig", self.address.port())
    }

    /// Changes the response to later requests.
    pub(crate) fn set_behaviour(&self, behaviour: IssuerBehaviour) {
        *self.state.behaviour.lock().unwrap() = behaviour;
    }

    /// Publishes one more key.
    pub(crate) fn publish(&self, key: &SigningKey) {
        self.state.keys.lock().unwrap().push(key.jwk());
    }

    /// The number of requests for the JWKS so far.
    pub(crate) fn fetch_count(&self) -> usize {
        self.state.fetch_count.load(Ordering::SeqCst)
    }

    /// Bytes of oversized responses that the service received.
    pub(crate) fn oversized_bytes_sent(&self) -> u64 {
        self.state.oversized_bytes_sent.load(Ordering::SeqCst)
    }
}

impl IssuerState {
    fn serve(&self, stream: TcpStream, tls: Arc<ServerConfig>) {
        let tls = ServerConnection::new(tls).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(tls, stream));
        while let Some(request) = Request::read(&mut stream) {
            assert_eq!(
                (request.method.as_str(), request.target.as_str()),
                ("GET", "/keys?use=sig")
            );
            self.fetch_count.fetch_add(1, Ordering::SeqCst);
            let behaviour = self.behaviour.lock().unwrap().clone();
            let out = stream.get_mut();
            let written = match behaviour {
                IssuerBehaviour::Normal => {
                    let keys = json!({"keys": *self.keys.lock().unwrap()});
                    respond(out, "200 OK", "", &keys.to_string())
                }
                IssuerBehaviour::Oversized { content_length } => {
                    self.respond_oversized(out, content_length)
                }
                IssuerBehaviour::Responds(status, headers, body) => {
                    respond(out, status, &headers, &body)
                }
                IssuerBehaviour::Hangs => {
                    let _ = stream.read_to_end(&mut Vec::new());
                    break;
                }
            };
            if written.is_err() {
                break;
            }
        }
    }

    /// The valid JWKS, and then spaces, which are allowed at the end of a JSON document.
    fn respond_oversized(&self, out: &mut impl Write, content_length: bool) -> std::io::Result<()> {
        let keys = json!({"keys": *self.keys.lock().unwrap()}).to_string();
        let framing = match content_length {
            true => format!("Content-Length: {OVERSIZED_BYTES}"),
            false => "Connection: close".to_owned(),
        };
        out.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{keys}").as_bytes())?;
        let mut sent = keys.len() as u64;
        while sent < OVERSIZED_BYTES {
            let chunk = vec![b' '; 16 * 1024.min(usize::try_from(OVERSIZED_BYTES - sent).unwrap())];
            out.write_all(&chunk)?;
            sent += chunk.len() as u64;
            self.oversized_bytes_sent
                .fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
        Ok(())
    }
}

fn respond(
    out: &mut impl Write,
    status: &str,
    header_lines: &str,
    body: &str,
) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{header_lines}Content-Length: {length}\r\n\r\n");
    out.write_all((head + body).as_bytes())
}

/// A key that signs JWTs, and its id.
pub(crate) struct SigningKey {
    pub(crate) id: String,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl SigningKey {
    /// The RSA key of 2048 bits in `tests/vectors/jwt_issuer.json`, because generating one takes long.
    pub(crate) fn rsa(id: &str) -> Self {
        let pkcs8 = rsa_vector("pkcs8");
        let der = STANDARD.decode(pkcs8.as_str().unwrap()).unwrap();
        Self::new(
            id,
            Pair::Rsa(Box::new(RsaKeyPair::from_pkcs8(&der).unwrap())),
        )
    }

    /// A new P-256 key.
    pub(crate) fn p256(id: &str) -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref(), &random).unwrap();
        Self::new(id, Pair::P256(pair))
    }

    /// A new Ed25519 key.
    pub(crate) fn ed25519(id: &str) -> Self {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::new(
            id,
            Pair::Ed25519(Ed25519KeyPair::from_pkcs8(der.as_ref()).unwrap()),
        )
    }

    fn new(id: &str, pair: Pair) -> Self {
        let id = id.to_owned();
        Self { id, pair }
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
            Pair::Ed25519(_) => "EdDSA",
        }
    }

    /// The public key as a JWK.
    pub(crate) fn jwk(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.pair {
            Pair::Rsa(_) => rsa_vector("jwk"),
            Pair::P256(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = (encode(&point[1..33]), encode(&point[33..]));
                json!({"kty": "EC", "crv": "P-256", "x": x, "y": y})
            }
            Pair::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref())})
            }
        };
        jwk["kid"] = self.id.as_str().into();
        jwk
    }

    /// A valid JWT of this user.
    pub(crate) fn token_for(&self, user: &str) -> String {
        self.sign(&user_claims(user))
    }

    /// A JWT with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "kid": self.id, "typ": "JWT"});
        self.sign_with_header(&header, claims)
    }

    /// A JWT with this header, right or wrong.
    pub(crate) fn sign_with_header(&self, header: &Value, claims: &Value) -> String {
        let message = signing_input(header, claims);
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(
                    &RSA_PKCS1_SHA256,
                    &random,
                    message.as_bytes(),
                    &mut signature,
                )
                .unwrap();
                signature
            }
            Pair::P256(pair) => {
                let signature = pair.sign(&random, message.as_bytes()).unwrap();
                signature.as_ref().to_vec()
            }
            Pair::Ed25519(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Claims of a user, valid for ten minutes.
pub(crate) fn user_claims(user: &str) -> Value {
    let now = jwt::now();
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": user, "iat": now, "nbf": now, "exp": now + 600})
}

/// A JWT signed with HS256.
pub(crate) fn sign_hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = signing_input(header, claims);
    let mac = Hmac::<Sha256>::new_from_slice(secret)
        .unwrap()
        .chain_update(&message);
    format!(
        "{message}.{}",
        URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    )
}

/// The RSA key of the vectors in one of its forms: `jwk`, `pem` or `pkcs8`.
pub(crate) fn rsa_vector(form: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("../vectors/jwt_issuer.json")).unwrap();
    all["keys"]["rsa"][form].clone()
}

fn signing_input(header: &Value, claims: &Value) -> String {
    let segment = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", segment(header), segment(claims))
}
