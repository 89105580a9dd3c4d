//! An SSH agent in this process (draft-ietf-sshm-ssh-agent): a key that was made here, and the certificates over
//! it. The private key is never on disk, in no other process, and ends with this one. It signs, and lists what it
//! signs with; it can be told nothing else.

use crate::client::random;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustix::{net::sockopt::socket_peercred, process::geteuid};
use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};
use zeroize::Zeroizing;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// No message that we take is longer.
const MAX_MESSAGE: u32 = 256 * 1024;
/// How long a client may be silent.
const SILENCE: Duration = Duration::from_secs(3600);
/// RFC 8709 §4.
const ALGORITHM: &[u8] = b"ssh-ed25519";

/// A key pair of one command (RFC 8032).
pub(crate) struct Key(Ed25519KeyPair);

impl Key {
    /// Makes one; none only where the library refuses every seed.
    pub(crate) fn generate() -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(&*Zeroizing::new(random::<32>())).ok().map(Self)
    }

    /// The public half as a line of an `authorized_keys` file.
    pub(crate) fn public_line(&self) -> String {
        format!("ssh-ed25519 {} jobpass", STANDARD.encode(self.public_blob()))
    }

    fn public_blob(&self) -> Vec<u8> {
        [string(ALGORITHM), string(self.0.public_key().as_ref())].concat()
    }
}

/// What the agent answers with.
struct Held {
    key: Key,
    /// Certificates (or the bare public key), as blobs.
    identities: Vec<Vec<u8>>,
}

/// Serves at a socket in a private directory, until this process ends.
///
/// # Errors
/// When the socket cannot be made, or a certificate is none of this key.
pub(crate) fn serve(socket: &Path, key: Key, certificates: &[&str]) -> io::Result<()> {
    let identities: Option<Vec<Vec<u8>>> = certificates.iter().map(|line| certificate(line, &key)).collect();
    let identities = identities.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the certificate is not one over the key that was sent")
    })?;
    let held = Arc::new(Held { key, identities });
    let listener = UnixListener::bind(socket)?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let held = Arc::clone(&held);
            // The directory lets nobody else in; this is the second lock.
            if socket_peercred(&stream).is_ok_and(|peer| peer.uid == geteuid()) {
                thread::spawn(move || held.converse(stream));
            }
        }
    });
    Ok(())
}

/// The blob of a certificate line, if it is over this key (PROTOCOL.certkeys: type, nonce, public key, …).
fn certificate(line: &str, key: &Key) -> Option<Vec<u8>> {
    let mut words = line.split_ascii_whitespace();
    let (kind, blob) = (words.next()?, STANDARD.decode(words.next()?).ok()?);
    let mut reader = blob.as_slice();
    let (inner, _nonce, public) = (take(&mut reader)?, take(&mut reader)?, take(&mut reader)?);
    let fits = kind == "ssh-ed25519-cert-v01@openssh.com" && inner == kind.as_bytes();
    (fits && public == key.0.public_key().as_ref()).then_some(blob)
}

impl Held {
    fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(SILENCE))?;
        loop {
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let length = u32::from_be_bytes(length);
            if !(1..=MAX_MESSAGE).contains(&length) {
                return Ok(());
            }
            let mut message = Vec::new();
            (&mut stream).take(length.into()).read_to_end(&mut message)?;
            let answer = self.answer(&message).unwrap_or_else(|| vec![FAILURE]);
            stream.write_all(&string(&answer))?;
        }
    }

    fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let (kind, mut rest) = message.split_first()?;
        match *kind {
            REQUEST_IDENTITIES => {
                let count = u32::try_from(self.identities.len()).ok()?.to_be_bytes();
                let entries = self.identities.iter().flat_map(|blob| [string(blob), string(b"jobpass")]);
                Some([vec![IDENTITIES_ANSWER], count.to_vec()].into_iter().chain(entries).collect::<Vec<_>>().concat())
            }
            SIGN_REQUEST => {
                let (blob, data) = (take(&mut rest)?, take(&mut rest)?);
                if !self.identities.iter().any(|known| known == blob) {
                    return None;
                }
                let signature = [string(ALGORITHM), string(self.key.0.sign(data).as_ref())].concat();
                Some([vec![SIGN_RESPONSE], string(&signature)].concat())
            }
            _ => None,
        }
    }
}

/// RFC 4251 §5 `string`.
fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = from.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (taken, rest) = rest.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate_over(public: &[u8]) -> String {
        let kind = "ssh-ed25519-cert-v01@openssh.com";
        let blob = [string(kind.as_bytes()), string(&[7; 32]), string(public), vec![0; 20]].concat();
        format!("{kind} {} comment", STANDARD.encode(blob))
    }

    #[test]
    fn only_certificates_over_the_key_are_taken() {
        let directory = tempfile::tempdir().expect("directory");
        for (name, line) in [
            ("other", certificate_over(&[1; 32])),
            ("plain", Key::generate().expect("key").public_line()),
            ("garbage", "ssh-ed25519-cert-v01@openssh.com !".to_owned()),
        ] {
            let key = Key::generate().expect("key");
            assert!(serve(&directory.path().join(name), key, &[&line]).is_err(), "{name}");
        }
    }

    #[test]
    fn it_lists_and_signs_and_nothing_else() {
        let directory = tempfile::tempdir().expect("directory");
        let socket = directory.path().join("agent");
        let key = Key::generate().expect("key");
        let public = key.0.public_key().as_ref().to_vec();
        let line = certificate_over(&public);
        let blob = STANDARD.decode(line.split(' ').nth(1).expect("a blob")).expect("base64");
        serve(&socket, key, &[&line]).expect("serves");
        let mut stream = UnixStream::connect(&socket).expect("connects");
        let mut ask = |message: &[u8]| {
            stream.write_all(&string(message)).expect("sent");
            let mut length = [0; 4];
            stream.read_exact(&mut length).expect("answered");
            let mut answer = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut answer).expect("answered");
            answer
        };
        let listed = ask(&[REQUEST_IDENTITIES]);
        assert_eq!(listed, [vec![IDENTITIES_ANSWER, 0, 0, 0, 1], string(&blob), string(b"jobpass")].concat());
        let request = |blob: &[u8]| [vec![SIGN_REQUEST], string(blob), string(b"data"), vec![0; 4]].concat();
        let signed = ask(&request(&blob));
        let signature = &signed[signed.len() - 64..];
        let verifier = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &public);
        verifier.verify(b"data", signature).expect("a signature of the key");
        let add_identity = 17;
        for refused in
            [&request(b"another")[..], &[add_identity, 0, 0, 0, 1], &[27], &[SIGN_REQUEST, 255, 255, 255, 255]]
        {
            assert_eq!(ask(refused), [FAILURE], "{refused:?}");
        }
    }
}
