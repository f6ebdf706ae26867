//! Nix's base-32: a base-32 that nobody else uses.
//!
//! Its alphabet leaves out `e`, `o`, `u` and `t`, and it writes a byte string's bits from the last byte to the first.

use thiserror::Error;

/// The digits, in order of value. `e`, `o`, `t` and `u` are left out so that no hash spells a rude word.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

const INVALID: u8 = 0xff;

const VALUE: [u8; 256] = {
    let mut table = [INVALID; 256];
    let mut i = 0;
    while i < ALPHABET.len() {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Why a string is not Nix base-32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Base32Error {
    /// A byte outside [`ALPHABET`].
    #[error("invalid character in Nix32 (Nix's Base32 variation) string: '{}'", char::from(*.0))]
    InvalidCharacter(u8),
    /// No byte string has an encoding of this length.
    #[error("a Nix32 string can't have a length of {0}")]
    InvalidLength(usize),
    /// The bits that the last digits have to spare are not zero, so this is not what [`encode`] writes.
    #[error("Nix32 string has non-zero spare bits")]
    SpareBits,
}

/// The length of the encoding of `len` bytes, in digits.
#[must_use]
pub const fn encoded_len(len: usize) -> usize {
    (len * 8).div_ceil(5)
}

/// The number of bytes that `len` digits encode; spare bits are not counted.
#[must_use]
pub const fn decoded_len(len: usize) -> usize {
    len * 5 / 8
}

/// Whether `byte` is a digit of [`ALPHABET`].
#[must_use]
pub const fn is_digit(byte: u8) -> bool {
    VALUE[byte as usize] != INVALID
}

/// Writes `bytes` in Nix's base-32: [`encoded_len`] digits.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(encoded_len(bytes.len()));
    encode_to(bytes, &mut out);
    out
}

/// As [`encode`], appended to `out`.
pub fn encode_to(bytes: &[u8], out: &mut String) {
    for n in (0..encoded_len(bytes.len())).rev() {
        let bit = n * 5;
        let (i, shift) = (bit / 8, bit % 8);
        let low = u16::from(bytes[i]);
        let high = bytes.get(i + 1).map_or(0, |b| u16::from(*b));
        let digit = ((high << 8 | low) >> shift) & 0x1f;
        out.push(char::from(ALPHABET[usize::from(digit)]));
    }
}

/// Reads what [`encode`] writes, and nothing else.
///
/// # Errors
/// A byte outside the alphabet, a length that no encoding has, or spare bits that are not zero.
pub fn decode(digits: impl AsRef<[u8]>) -> Result<Vec<u8>, Base32Error> {
    let digits = digits.as_ref();
    let mut out = vec![0u8; decoded_len(digits.len())];
    if encoded_len(out.len()) != digits.len() {
        return Err(Base32Error::InvalidLength(digits.len()));
    }
    let mut spare = 0;
    for (n, c) in digits.iter().rev().enumerate() {
        let digit = VALUE[usize::from(*c)];
        if digit == INVALID {
            return Err(Base32Error::InvalidCharacter(*c));
        }
        let bit = n * 5;
        let (i, shift) = (bit / 8, bit % 8);
        let [low, high] = (u16::from(digit) << shift).to_le_bytes();
        for (i, part) in [(i, low), (i + 1, high)] {
            match out.get_mut(i) {
                Some(byte) => *byte |= part,
                None => spare |= part,
            }
        }
    }
    // Characters are checked first, as Nix does, so that the more telling error wins.
    if spare != 0 { Err(Base32Error::SpareBits) } else { Ok(out) }
}
