//! Cryptographic hashes as Nix writes, reads and computes them.

use std::{cmp::Ordering, fmt, io, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use md5::{Digest, Md5};
use sha1::Sha1;
use thiserror::Error;

use crate::base32::{self, Base32Error};

/// Why a hash can't be read. The texts are Nix's own.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HashError {
    /// The name of the algorithm is none that Nix knows.
    #[error("unknown hash algorithm '{0}', expect 'blake3', 'md5', 'sha1', 'sha256', or 'sha512'")]
    UnknownAlgo(String),
    /// The name of the format is none that Nix knows.
    #[error("unknown hash format '{0}', expect 'base16', 'base32', 'base64', or 'sri'")]
    UnknownFormat(String),
    /// [`Hash::parse_any`] without an algorithm, neither in the string nor from the caller.
    #[error("hash '{0}' does not include a type, nor is the type otherwise known from context")]
    NoAlgo(String),
    /// [`Hash::parse_any_prefixed`] without a prefix.
    #[error("hash '{0}' does not include a type")]
    NoPrefix(String),
    /// The string's algorithm is not the caller's.
    #[error("hash '{hash}' should have type '{expected}'")]
    WrongAlgo {
        /// The whole string.
        hash: String,
        /// What the caller asked for.
        expected: HashAlgo,
    },
    /// No format writes a hash of this algorithm with this many characters.
    #[error("hash '{hash}' has wrong length for hash algorithm '{algo}'")]
    WrongLength {
        /// The string without a prefix.
        hash: String,
        /// The algorithm.
        algo: HashAlgo,
    },
    /// The digits don't decode to a hash. Nix reports a foreign character as a decoded length of 0.
    #[error("invalid {format} hash '{hash}', length {len} != expected length {expected}")]
    Invalid {
        /// The format's name as Nix spells it here.
        format: &'static str,
        /// The string without a prefix.
        hash: String,
        /// Bytes decoded.
        len: usize,
        /// Bytes that the algorithm yields.
        expected: usize,
    },
    /// No `-` in what should be an SRI hash.
    #[error("hash '{0}' is not SRI")]
    NotSri(String),
    /// An empty hash stands for zeros, but of which length?
    #[error("empty hash requires explicit hash algorithm")]
    EmptyWithoutAlgo,
}

/// A hash algorithm that Nix knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgo {
    /// MD5, 16 bytes.
    Md5,
    /// SHA-1, 20 bytes.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
    /// BLAKE3, 32 bytes. Experimental in Nix (`blake3-hashes`); whether it may be used is for the caller to decide.
    Blake3,
}

impl HashAlgo {
    /// Every algorithm.
    pub const ALL: [Self; 5] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512, Self::Blake3];

    /// The name that Nix gives it: `sha256`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    /// The length of its digest in bytes.
    #[must_use]
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl FromStr for HashAlgo {
    type Err = HashError;

    fn from_str(name: &str) -> Result<Self, HashError> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| HashError::UnknownAlgo(name.to_owned()))
    }
}

impl fmt::Display for HashAlgo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A way to write a hash down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HashFormat {
    /// Lower-case hexadecimal.
    Base16,
    /// Nix's base-32, see [`crate::base32`].
    Nix32,
    /// Base-64 with padding.
    Base64,
    /// `<algo>-<base-64>`, the web's Subresource Integrity.
    Sri,
}

impl HashFormat {
    /// The name that Nix gives it: `nix32`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Base16 => "base16",
            Self::Nix32 => "nix32",
            Self::Base64 => "base64",
            Self::Sri => "sri",
        }
    }
}

impl FromStr for HashFormat {
    type Err = HashError;

    /// Reads [`HashFormat::name`], and `base32`, the deprecated name of `nix32`.
    fn from_str(name: &str) -> Result<Self, HashError> {
        match name {
            "base16" => Ok(Self::Base16),
            "nix32" | "base32" => Ok(Self::Nix32),
            "base64" => Ok(Self::Base64),
            "sri" => Ok(Self::Sri),
            _ => Err(HashError::UnknownFormat(name.to_owned())),
        }
    }
}

/// A digest and the algorithm that made it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash {
    algo: HashAlgo,
    /// Zero behind the digest, so that derived equality is right.
    bytes: [u8; 64],
}

impl Hash {
    /// The hash of `data`.
    #[must_use]
    pub fn digest(algo: HashAlgo, data: impl AsRef<[u8]>) -> Self {
        let data = data.as_ref();
        match algo {
            HashAlgo::Md5 => Self::padded(algo, &Md5::digest(data)),
            HashAlgo::Sha1 => Self::padded(algo, &Sha1::digest(data)),
            HashAlgo::Sha256 => Self::from_sha256(sha256(data)),
            HashAlgo::Sha512 => Self::padded(algo, ring::digest::digest(&ring::digest::SHA512, data).as_ref()),
            HashAlgo::Blake3 => Self::padded(algo, blake3::hash(data).as_bytes()),
        }
    }

    /// A hash of zeros: what Nix takes an empty hash to be (`lib.fakeHash` by another name).
    #[must_use]
    pub const fn zero(algo: HashAlgo) -> Self {
        Self { algo, bytes: [0; 64] }
    }

    /// The SHA-256 hash with these bytes.
    #[must_use]
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        Self::padded(HashAlgo::Sha256, &bytes)
    }

    /// The hash with this digest, or nothing if the algorithm's digests have another length.
    #[must_use]
    pub fn from_digest(algo: HashAlgo, digest: &[u8]) -> Option<Self> {
        (digest.len() == algo.digest_len()).then(|| Self::padded(algo, digest))
    }

    fn padded(algo: HashAlgo, digest: &[u8]) -> Self {
        let mut hash = Self::zero(algo);
        for (to, from) in hash.bytes.iter_mut().zip(digest) {
            *to = *from;
        }
        hash
    }

    /// The algorithm.
    #[must_use]
    pub const fn algo(&self) -> HashAlgo {
        self.algo
    }

    /// The digest: [`HashAlgo::digest_len`] bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algo.digest_len()]
    }

    /// Writes the hash in `format`, with `<algo>:` before it if `prefix`. [`HashFormat::Sri`] has its own prefix always.
    #[must_use]
    pub fn format(&self, format: HashFormat, prefix: bool) -> String {
        let mut out = String::with_capacity(8 + 2 * self.algo.digest_len());
        if format == HashFormat::Sri || prefix {
            out.push_str(self.algo.name());
            out.push(if format == HashFormat::Sri { '-' } else { ':' });
        }
        match format {
            HashFormat::Base16 => encode_hex(self.as_bytes(), &mut out),
            HashFormat::Nix32 => base32::encode_to(self.as_bytes(), &mut out),
            HashFormat::Base64 | HashFormat::Sri => BASE64.encode_string(self.as_bytes(), &mut out),
        }
        out
    }

    /// Lower-case hexadecimal without a prefix.
    #[must_use]
    pub fn to_base16(&self) -> String {
        self.format(HashFormat::Base16, false)
    }

    /// Nix's base-32 without a prefix.
    #[must_use]
    pub fn to_nix32(&self) -> String {
        self.format(HashFormat::Nix32, false)
    }

    /// `<algo>-<base-64>`.
    #[must_use]
    pub fn to_sri(&self) -> String {
        self.format(HashFormat::Sri, true)
    }

    /// Reads `[<algo>:](<base-16> | <nix-32> | <base-64>)` or `<algo>-<base-64>`, telling the formats by their length.
    ///
    /// As lenient as Nix: base-64 may lack its padding in SRI, has line feeds ignored and ends at the first `=`.
    ///
    /// # Errors
    /// An algorithm that is unknown, missing from both places, or not `algo`; a length or digits that don't fit.
    pub fn parse_any(text: &str, algo: Option<HashAlgo>) -> Result<Self, HashError> {
        Self::parse_any_returning_format(text, algo).map(|(hash, _)| hash)
    }

    /// As [`Hash::parse_any`], with the format that the string was in.
    ///
    /// # Errors
    /// Those of [`Hash::parse_any`].
    pub fn parse_any_returning_format(text: &str, algo: Option<HashAlgo>) -> Result<(Self, HashFormat), HashError> {
        parse_with(text, |found| match (found, algo) {
            (None, None) => Err(HashError::NoAlgo(text.to_owned())),
            (Some(found), Some(expected)) if found != expected => {
                Err(HashError::WrongAlgo { hash: text.to_owned(), expected })
            }
            (Some(algo), _) | (None, Some(algo)) => Ok(algo),
        })
    }

    /// As [`Hash::parse_any`], where the string has to name the algorithm.
    ///
    /// # Errors
    /// Those of [`Hash::parse_any`].
    pub fn parse_any_prefixed(text: &str) -> Result<Self, HashError> {
        parse_with(text, |found| found.ok_or_else(|| HashError::NoPrefix(text.to_owned()))).map(|(hash, _)| hash)
    }

    /// Reads a hash without a prefix in base-16, Nix's base-32 or base-64.
    ///
    /// # Errors
    /// A length or digits that don't fit.
    pub fn parse_unprefixed(text: &str, algo: HashAlgo) -> Result<Self, HashError> {
        decode(text, algo, format_by_length(text, algo)?)
    }

    /// Reads `<algo>-<base-64>`.
    ///
    /// # Errors
    /// No `-`, an unknown algorithm, or digits that don't fit.
    pub fn parse_sri(text: &str) -> Result<Self, HashError> {
        let (algo, rest) = text.split_once('-').ok_or_else(|| HashError::NotSri(text.to_owned()))?;
        decode(rest, algo.parse()?, HashFormat::Sri)
    }

    /// As [`Hash::parse_any`], where the empty string stands for [`Hash::zero`]. Nix warns
    /// `found empty hash, assuming '<SRI>'` in that case; so should the caller.
    ///
    /// # Errors
    /// Those of [`Hash::parse_any`], and an empty hash without an algorithm.
    pub fn parse_allow_empty(text: &str, algo: Option<HashAlgo>) -> Result<Self, HashError> {
        if text.is_empty() {
            algo.map(Self::zero).ok_or(HashError::EmptyWithoutAlgo)
        } else {
            Self::parse_any(text, algo)
        }
    }
}

/// By length, then bytes, then algorithm, which is Nix's order.
impl Ord for Hash {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |h: &Self| (h.algo.digest_len(), h.bytes, h.algo);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Hash {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_sri())
    }
}

/// SRI, the form that Nix prefers.
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_sri())
    }
}

fn parse_with(
    text: &str,
    resolve: impl FnOnce(Option<HashAlgo>) -> Result<HashAlgo, HashError>,
) -> Result<(Hash, HashFormat), HashError> {
    // A colon anywhere makes it the separator; only without one is a dash looked for.
    let (found, rest, sri) = if let Some((algo, rest)) = text.split_once(':') {
        (Some(algo.parse()?), rest, false)
    } else if let Some((algo, rest)) = text.split_once('-') {
        (Some(algo.parse()?), rest, true)
    } else {
        (None, text, false)
    };
    let algo = resolve(found)?;
    let format = if sri { HashFormat::Sri } else { format_by_length(rest, algo)? };
    Ok((decode(rest, algo, format)?, format))
}

fn format_by_length(text: &str, algo: HashAlgo) -> Result<HashFormat, HashError> {
    let (len, digest) = (text.len(), algo.digest_len());
    if len == 2 * digest {
        Ok(HashFormat::Base16)
    } else if len == base32::encoded_len(digest) {
        Ok(HashFormat::Nix32)
    } else if len == digest.div_ceil(3) * 4 {
        Ok(HashFormat::Base64)
    } else {
        Err(HashError::WrongLength { hash: text.to_owned(), algo })
    }
}

fn decode(text: &str, algo: HashAlgo, format: HashFormat) -> Result<Hash, HashError> {
    // Nix carries on with an empty digest after a foreign character, so its message speaks of a length of 0.
    let (name, digest) = match format {
        HashFormat::Base16 => ("base16", decode_hex(text).unwrap_or_default()),
        HashFormat::Nix32 => match base32::decode(text) {
            Ok(digest) => ("nix32", digest),
            Err(Base32Error::SpareBits) => ("nix32", vec![0; algo.digest_len() + 1]),
            Err(Base32Error::InvalidCharacter(_) | Base32Error::InvalidLength(_)) => ("nix32", Vec::new()),
        },
        HashFormat::Base64 => ("Base64", decode_base64(text).unwrap_or_default()),
        HashFormat::Sri => ("SRI", decode_base64(text).unwrap_or_default()),
    };
    Hash::from_digest(algo, &digest).ok_or_else(|| HashError::Invalid {
        format: name,
        hash: text.to_owned(),
        len: digest.len(),
        expected: algo.digest_len(),
    })
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn encode_hex(bytes: &[u8], out: &mut String) {
    for b in bytes {
        out.push(char::from(HEX[usize::from(b >> 4)]));
        out.push(char::from(HEX[usize::from(b & 15)]));
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    text.as_bytes().chunks(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// Nix's lenient base-64, which no engine of the `base64` crate accepts: ends at the first `=`, skips line feeds, drops
/// what bits are left at the end.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut acc, mut bits) = (0u32, 0);
    for c in text.bytes().take_while(|c| *c != b'=').filter(|c| *c != b'\n') {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        acc = (acc << 6 | u32::from(digit)) & 0xfff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((acc >> bits & 0xff) as u8);
        }
    }
    Some(out)
}

/// The SHA-256 of `data`, the hash that nearly everything in a store is named by.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, data);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// Folds a digest to 20 bytes by XOR, as the hash part of a store path is made.
#[must_use]
pub fn compress_hash(digest: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    for chunk in digest.chunks(20) {
        for (to, from) in out.iter_mut().zip(chunk) {
            *to ^= from;
        }
    }
    out
}

/// Hashes what is written to it. Writing never fails.
pub struct Hasher {
    state: State,
    len: u64,
}

enum State {
    Md5(Md5),
    Sha1(Sha1),
    // Without SHA extensions `ring` measured 1.3 to 1.5 times as fast as `sha2`; both use the extensions if there are any.
    Sha256(ring::digest::Context),
    Sha512(ring::digest::Context),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new(algo: HashAlgo) -> Self {
        let state = match algo {
            HashAlgo::Md5 => State::Md5(Md5::new()),
            HashAlgo::Sha1 => State::Sha1(Sha1::new()),
            HashAlgo::Sha256 => State::Sha256(ring::digest::Context::new(&ring::digest::SHA256)),
            HashAlgo::Sha512 => State::Sha512(ring::digest::Context::new(&ring::digest::SHA512)),
            HashAlgo::Blake3 => State::Blake3(Box::default()),
        };
        Self { state, len: 0 }
    }

    /// Takes in more data.
    pub fn update(&mut self, data: &[u8]) {
        self.len += data.len() as u64;
        match &mut self.state {
            State::Md5(h) => h.update(data),
            State::Sha1(h) => h.update(data),
            State::Sha256(h) | State::Sha512(h) => h.update(data),
            State::Blake3(h) => {
                h.update(data);
            }
        }
    }

    /// The hash of everything written, and how many bytes that was.
    #[must_use]
    pub fn finish(self) -> (Hash, u64) {
        let hash = match self.state {
            State::Md5(h) => Hash::padded(HashAlgo::Md5, &h.finalize()),
            State::Sha1(h) => Hash::padded(HashAlgo::Sha1, &h.finalize()),
            State::Sha256(h) => Hash::padded(HashAlgo::Sha256, h.finish().as_ref()),
            State::Sha512(h) => Hash::padded(HashAlgo::Sha512, h.finish().as_ref()),
            State::Blake3(h) => Hash::padded(HashAlgo::Blake3, h.finalize().as_bytes()),
        };
        (hash, self.len)
    }
}

impl io::Write for Hasher {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
